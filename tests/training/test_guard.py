from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ups.config.learning import OptimizerSettings
from ups.training.guard import StepGuard
from ups.training.optim import build_optimizer, gradient_norms

NAMES = ["muon", "adamw", "adam", "sgd"]


def train(name: str, evidence: list[float], *, on_device: bool, skip: bool = False) -> tuple[nn.Module, dict]:
    """Steps with a NaN gradient where the evidence is not finite; with `skip`, these steps are left out by hand."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    module[0].weight.data = module[0].weight.data.t().contiguous().t()  # dense, and not in the usual order
    settings = OptimizerSettings.model_validate({"name": name, "lr": 0.1, "weight_decay": 0.1, "momentum": 0.9})
    optimizer = build_optimizer(module, settings)
    guard = StepGuard(optimizer, torch.amp.GradScaler("cpu", enabled=False), on_device=on_device)
    for i, number in enumerate(evidence):
        module.zero_grad()
        late = name != "sgd"  # whose fused kernel wants all momenta to begin at once
        used = module[0] if late and i < 2 else module
        used(torch.full((2, 4), float(i + 1))).sum().backward()
        if not math.isfinite(number):
            for p in module.parameters():
                if p.grad is not None:
                    p.grad.fill_(math.nan)
        if not (skip and not math.isfinite(number)):
            guard.step(torch.tensor(float(number)))
    return module, optimizer.state_dict()


def flat(module: nn.Module, state: dict) -> list[Tensor]:
    states = [item for one in state["state"].values() for item in one.values() if isinstance(item, Tensor)]
    return [*module.parameters(), *states]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("evidence", [[1, math.nan, 1, 1], [math.inf, 1, math.nan, 1, 1], [1, 1, math.nan, math.nan]])
def test_a_bad_step_leaves_everything_as_if_it_had_never_been(
    name: str, on_device: bool, evidence: list[float]
) -> None:
    expected = flat(*train(name, evidence, on_device=False, skip=True))
    found = flat(*train(name, evidence, on_device=on_device))
    assert len(found) == len(expected)
    assert all(tensor.isfinite().all() for tensor in found)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_host_does_not_wait_for_what_is_decided_on_the_device(name: str) -> None:
    class Syncs(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counts = []
    for steps in (4, 14):
        with Syncs() as syncs:
            train(name, [1.0] * steps, on_device=True)
        counts.append(syncs.count)
    assert counts[0] == counts[1]


def test_norms_are_of_every_parameter_and_zero_where_there_is_no_gradient() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    module[1].weight.grad = torch.full((3, 6), 2.0)
    norms = gradient_norms(list(module.parameters()))
    torch.testing.assert_close(norms, torch.tensor([0.0, 0.0, 2 * math.sqrt(18), 0.0]))
