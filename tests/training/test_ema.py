from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ups.training.ema import Ema, NoEma, build_ema


def test_average_follows_its_recursion() -> None:
    module, decay = nn.Linear(3, 2, bias=False), 0.6
    ema, expected = Ema(module, decay), module.weight.detach().numpy().astype(np.float64)
    for t in range(1, 30):
        with torch.no_grad():
            module.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(t)))
        ema.update()
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * module.weight.detach().numpy()
    np.testing.assert_allclose(ema.average[0].numpy(), expected, rtol=1e-5, atol=1e-7)


def test_constant_weights_are_their_own_average() -> None:
    module = nn.Linear(3, 2)
    ema = Ema(module, 0.9)
    for _ in range(5):
        ema.update()
    torch.testing.assert_close(ema.average, [p.detach() for p in module.parameters()])


def test_average_is_in_the_module_inside_the_context_alone() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    ema, weight, address = Ema(module, 0.9), module.weight.detach().clone(), module.weight.data_ptr()
    with torch.no_grad():
        module.weight.add_(1.0)
    ema.update()
    with ema.applied():
        torch.testing.assert_close(module.weight.detach(), weight + 9 / 11)  # d = 2 / 11 after one update
    assert torch.equal(module.weight.detach(), weight + 1)
    assert module.weight.data_ptr() == address


def test_state_goes_on() -> None:
    module = nn.Linear(3, 2)
    first, second = Ema(module, 0.99), Ema(nn.Linear(3, 2), 0.99)
    first.update()
    second.load_state_dict(first.state_dict())
    second.weights = first.weights
    with torch.no_grad():
        module.weight.add_(1.0)
    first.update()
    second.update()
    assert all(torch.equal(a, b) for a, b in zip(first.average, second.average, strict=True))


def test_no_average_is_the_weights_themselves() -> None:
    module = nn.Linear(3, 2)
    ema = build_ema(module, 0.0)
    assert isinstance(ema, NoEma)
    ema.update()
    ema.load_state_dict(ema.state_dict())
    with torch.no_grad():
        module.weight.fill_(2.0)
    with ema.applied():
        assert module.weight.eq(2.0).all()
