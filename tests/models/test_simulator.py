"""The composed simulator, its roll-out, and what users hold of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.helpers import make_spec

from ups.errors import CheckpointError, UpsError, UsageError
from ups.models.simulator import Architecture, Simulator
from ups.models.store import load_model, save_model
from ups.models.surrogate import Surrogate, load

SMALL = Architecture(latent_dim=16, patch=4, hidden_dim=16, heads=2, depths=(1,), stem_width=8)


def make(**changes: object) -> Simulator:
    torch.manual_seed(0)
    simulator = Simulator({"task": make_spec(**changes)}, SMALL)  # type: ignore[arg-type]
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return simulator.eval()


def arguments(batch: int, parameters: int = 0) -> dict[str, object]:
    return {"task": "task", "dt": torch.full((batch,), 0.1), "params": torch.ones(batch, parameters)}


@torch.no_grad()
@pytest.mark.parametrize("axes", [1, 2])
def test_latent_and_physical_roll_outs_agree_when_the_codec_loses_nothing(axes: int) -> None:
    simulator = make(axes=axes, size=16)
    u = torch.randn(2, 1, 1, *[16] * axes)
    latent, physical = (simulator.rollout(u, 4, mode=mode, **arguments(2)) for mode in ("latent", "physical"))
    assert latent.shape == (2, 4, 1, *[16] * axes)
    torch.testing.assert_close(latent, physical, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_conserved_field_keeps_its_integral_over_a_roll_out() -> None:
    u = torch.randn(3, 1, 1, 32)
    out = make().rollout(u, 10, **arguments(3))
    assert (out[:, -1] - u[:, 0]).abs().max() > 0.1
    torch.testing.assert_close(out.mean(-1), u.mean(-1).expand(3, 10, 1), atol=2e-6, rtol=0)


@torch.no_grad()
def test_context_frames_are_used_and_moved_along() -> None:
    simulator = make(context=2)
    u = torch.randn(1, 2, 1, 32)
    two = simulator.rollout(u, 2, **arguments(1))
    first = simulator.step(u, **arguments(1))
    again = simulator.step(torch.stack([u[:, 1], first], 1), **arguments(1))
    torch.testing.assert_close(two, torch.stack([first, again], 1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(simulator.step(torch.stack([u[:, 1], u[:, 1]], 1), **arguments(1)), first, atol=1e-4)


@torch.no_grad()
def test_units_do_not_matter() -> None:
    """The same model in units that are a thousand times larger predicts the same fields."""
    plain, scaled = make(), make(mean=(300.0,), std=(1700.0,))
    u = torch.randn(2, 1, 1, 32)
    torch.testing.assert_close(
        scaled.rollout(1000 * u, 3, **arguments(2)) / 1000, plain.rollout(u, 3, **arguments(2)), atol=1e-5, rtol=1e-4
    )


def test_grids_that_cannot_be_cut_into_tokens_are_refused() -> None:
    with pytest.raises(UpsError, match="multiple of 4"):
        Simulator({"task": make_spec(size=30)}, SMALL)
    with pytest.raises(UpsError, match="one dimension"):
        Simulator({"a": make_spec(), "b": make_spec(axes=2)}, SMALL)


@torch.no_grad()
def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    simulator = make(param_names=("nu",), param_log=(True,), param_mean=(-4.0,), param_std=(0.5,))
    simulator.fit("task", [(torch.randn(40, 1, 32), torch.randn(40, 1, 32), torch.rand(40, 1) + 0.1)])
    save_model(simulator, tmp_path / "model")
    u = torch.randn(2, 1, 1, 32)
    found = load_model(tmp_path / "model").rollout(u, 2, **arguments(2, 1))
    torch.testing.assert_close(found, simulator.rollout(u, 2, **arguments(2, 1)), rtol=0, atol=0)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "weights.safetensors"]


def test_damaged_or_missing_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path)
    save_model(make(), tmp_path / "model")
    weights, config = tmp_path / "model" / "weights.safetensors", tmp_path / "model" / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match="do not belong together"):
        load(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps({**json.loads(config.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format"):
        load(tmp_path)


@pytest.fixture
def surrogate() -> Surrogate:
    return Surrogate(
        make(param_names=("nu",), param_log=(True,), param_mean=(-4.0,), param_std=(0.5,)), torch.device("cpu")
    )


def test_users_call_it_with_arrays_and_names(surrogate: Surrogate) -> None:
    u0 = np.random.default_rng(0).normal(size=(3, 1, 32))
    out = surrogate.rollout(u0, steps=4, params={"nu": 0.01})
    assert out.shape == (3, 4, 1, 32)
    each = surrogate.rollout(u0, steps=4, params={"nu": [0.01, 0.02, 0.01]})
    torch.testing.assert_close(each[0], out[0])
    assert not torch.allclose(each[1], out[1])


def test_points_on_the_grid_give_the_grid_values(surrogate: Surrogate) -> None:
    u0 = torch.randn(2, 1, 32)
    x = (np.arange(32) + 0.5) / 32
    at_points = surrogate.rollout(u0, steps=3, points=x)
    torch.testing.assert_close(at_points, surrogate.rollout(u0, steps=3), atol=1e-4, rtol=1e-4)
    assert surrogate.rollout(u0, steps=3, points=[[0.123]]).shape == (2, 3, 1, 1)


def test_what_users_get_wrong_is_named(surrogate: Surrogate) -> None:
    u0 = torch.randn(2, 1, 32)
    with pytest.raises(UpsError, match=r"shape \(2, 1, 1, 16\)"):
        surrogate.rollout(u0[..., :16], steps=1)
    with pytest.raises(UsageError, match="nu, not mu"):
        surrogate.rollout(u0, steps=1, params={"mu": 1.0})
    with pytest.raises(UsageError, match="positive"):
        surrogate.rollout(u0, steps=1, params={"nu": -1.0})
    with pytest.raises(UsageError, match="3 values for 2 samples"):
        surrogate.rollout(u0, steps=1, params={"nu": [1.0, 2.0, 3.0]})
    with pytest.raises(UpsError, match="domain is 0 to 1"):
        surrogate.rollout(u0, steps=1, points=[[1.5]])
    with pytest.raises(UpsError, match="deterministic"):
        surrogate.rollout(u0, steps=1, members=4)
    with pytest.raises(UpsError, match="NaN"):
        surrogate.rollout(torch.full((2, 1, 32), torch.nan), steps=1)
    with pytest.raises(UsageError, match="at least 1"):
        surrogate.rollout(u0, steps=0)
