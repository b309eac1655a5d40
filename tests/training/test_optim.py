from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from ups.config.learning import OptimizerSettings
from ups.errors import UpsError
from ups.training.muon import Muon
from ups.training.optim import build_optimizer, clip_gradients, set_rate


def settings(name: str, **values: float) -> OptimizerSettings:
    return OptimizerSettings.model_validate({"name": name, "lr": 0.01, **values})


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def descend(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for seed in range(5):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


REFERENCES = {
    "adam": lambda groups: torch.optim.Adam(groups, 0.01, (0.9, 0.99)),
    "adamw": lambda groups: torch.optim.AdamW(groups, 0.01, (0.9, 0.99)),
    "sgd": lambda groups: torch.optim.SGD(groups, 0.01, 0.9),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_named_optimizers_are_those_of_torch_and_decay_matrices_alone(name: str) -> None:
    ours, theirs = network(), network()
    groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in theirs.parameters()]
    descend(ours, build_optimizer(ours, settings(name, weight_decay=0.1)))
    descend(theirs, REFERENCES[name](groups))
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-5, atol=1e-7)


def test_muon_has_two_rates_and_both_follow_the_schedule() -> None:
    optimizer = build_optimizer(network(), settings("muon", adam_lr=0.002))
    assert isinstance(optimizer, Muon)
    set_rate(optimizer, 0.5)
    assert {group["method"]: group["lr"] for group in optimizer.param_groups} == {"muon": 0.005, "adamw": 0.001}
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4]


@pytest.mark.parametrize("name", ["muon", *REFERENCES])
def test_complex_and_frozen_parameters(name: str) -> None:
    module = network()
    module.register_parameter("modes", nn.Parameter(torch.ones(4, 3, dtype=torch.complex64)))
    module[0].requires_grad_(False)
    optimizer = build_optimizer(module, settings(name))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in params} == {id(p) for p in module.parameters() if p.requires_grad}
    module.modes.abs().square().sum().backward()
    optimizer.step()
    assert module.modes.abs().max() < 1


def test_a_frozen_module_is_refused() -> None:
    with pytest.raises(UpsError, match="every parameter of this stage is frozen"):
        build_optimizer(network().requires_grad_(False), settings("adamw"))


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_clipping_is_that_of_torch_and_tells_the_norm_before(limit: float) -> None:
    ours, theirs = network(), network()
    for module in (ours, theirs):
        module(torch.ones(2, 3)).sum().backward()
    norm = clip_gradients(list(ours.parameters()), limit)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])
    assert torch.equal(
        clip_gradients(list(ours.parameters()), None), nn.utils.get_total_norm([p.grad for p in ours.parameters()])
    )


def test_building_an_optimizer_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from ups.config.learning import OptimizerSettings;"
        "from ups.training.optim import build_optimizer;"
        "build_optimizer(torch.nn.Linear(4, 4), OptimizerSettings()).zero_grad(); print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "False"
