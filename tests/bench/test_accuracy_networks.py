"""The networks of the accuracy bench, those of other packages too: they step on every grid, and all of them learns."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accuracy_bench.models import MODELS, build_network, recipe_of
from accuracy_bench.peers import External
from ups.models.emulator import TaskSpec
from ups.physics.equations import EQUATIONS


def make_spec(name: str) -> TaskSpec:
    equation = EQUATIONS[name]
    lattice = tuple(32 for _ in range(equation.dim))
    spacing = tuple(length / 32 for length in equation.lengths)
    return TaskSpec(
        name=name, fields=tuple(field.name for field in equation.fields), lattice=lattice, spacing=spacing,
        origin=tuple(low + step / 2 for (low, _), step in zip(equation.domain, spacing, strict=True)),
        periodic=equation.periodic, form=equation.form,
        conserved=tuple(field.conserved for field in equation.fields), context=1, dt=0.1,
        mean=(0.0,) * len(equation.fields), std=(1.0,) * len(equation.fields),
        static=0 if equation.forcing is None else 1,
    )  # fmt: skip


PACKAGES = {
    "neuralop_fno": ("neuralop", "neuralop.models"),
    "neuralop_uno": ("neuralop", "neuralop.models"),
    "pdetransformer": ("pdetransformer", "diffusers"),
}
"""Of networks of other packages: the package, and what of it, or of those it needs, has to import."""
ENTRIES = [
    (equation, model)
    for equation in ("burgers1d", "reaction_diffusion2d", "kolmogorov2d")
    for model in sorted(MODELS)
    if MODELS[model].kind == "network"
    and EQUATIONS[equation].dim in MODELS[model].axes
    and (model not in PACKAGES or equation != "kolmogorov2d")
]


def require_package(model: str) -> None:
    """Skips the test where a network's package is not installed, or not with all that it needs."""
    if model not in PACKAGES:
        return
    package, imported = PACKAGES[model]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: it is in the extra 'bench'")
    why = f"{package} is installed without what it needs: see the extra 'bench'"
    pytest.importorskip(imported, reason=why, exc_type=ImportError)


def test_a_package_installed_without_what_it_needs_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neuralop").mkdir()
    (tmp_path / "neuralop" / "__init__.py").write_text("import no_such_dependency")
    for name in [name for name in sys.modules if name.partition(".")[0] == "neuralop"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(pytest.skip.Exception, match="installed without what it needs"):
        require_package("neuralop_fno")


@pytest.mark.parametrize(("equation", "model"), ENTRIES)
@pytest.mark.filterwarnings("ignore")  # of other packages
def test_networks_step_on_every_grid_and_all_their_weights_learn(equation: str, model: str) -> None:
    spec = make_spec(equation)
    require_package(model)
    recipe = recipe_of(MODELS[model], spec.axes, "burgers")
    emulator = build_network(MODELS[model], {equation: spec}, recipe)
    u = torch.randn(2, 1, len(spec.fields), *spec.lattice)
    call = {"task": equation, "dt": torch.full((2,), 0.1), "params": torch.zeros(2, 0)}
    for weight in emulator.parameters():
        weight.data += 0.01 * torch.randn_like(weight)  # those that start at zero would hide the others
    emulator.step(u, **call).square().sum().backward()
    assert all(weight.grad is not None for weight in emulator.parameters())
    assert all(isinstance(value, torch.Tensor) for value in emulator.state_dict().values())


@pytest.mark.parametrize(("model", "views"), [("fno", 0), ("unet", 0), ("fno+", 1), ("unet+", 1)])
def test_views_are_a_part_of_ours(model: str, views: int) -> None:
    spec = make_spec("burgers1d")
    emulator = build_network(MODELS[model], {"burgers1d": spec}, recipe_of(MODELS[model], 1, "burgers"))
    assert emulator.symmetrize == views
    assert "operator.symmetrize=0" in MODELS["ups_stack"].settings


def test_external_networks_save_tensors_alone() -> None:
    class Described(nn.Linear):
        def state_dict(self, *given: Any, **more: Any) -> Any:
            state = super().state_dict(*given, **more)
            state["_metadata"] = {"version": 1}
            return state

    assert list(nn.Sequential(External(Described(2, 3))).state_dict()) == ["0.network.weight", "0.network.bias"]
