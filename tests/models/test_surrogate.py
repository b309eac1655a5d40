"""What users hold of a model: arrays, names and points in, fields out, and what they get wrong is named."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.helpers import make_spec
from tests.models.small_simulator import make_simulator

from ups.errors import UpsError, UsageError
from ups.models.baselines import make_baseline
from ups.models.simulator import Simulator
from ups.models.store import save_model
from ups.models.surrogate import Surrogate, load


@pytest.fixture
def surrogate() -> Surrogate:
    simulator = make_simulator(param_names=("nu",), param_log=(True,), param_mean=(-4.0,), param_std=(0.5,))
    return Surrogate(simulator, torch.device("cpu"))


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
    with pytest.raises(UpsError, match=r"shape \(2, 1, 16\)"):
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


WRONG = {
    "params={'nu': '0.01'}": "params: nu holds <U4; give real numbers",
    "params={'nu': float('nan')}": "nu is NaN",
    "params=[0.01]": "params is a list",
    "params=0.01": "params is a float",
    "steps=2.5": "steps is 2.5; it must be a whole number",
    "steps='4'": "steps is '4'",
    "steps=0": "at least 1",
    "members=2.5": "members is 2.5",
    "points=['a']": "points holds",
    "u0=numpy.zeros((0, 1, 32))": "holds no sample",
    "u0=numpy.zeros((2, 1, 32), complex)": "u0 holds complex128",
    "u0=torch.zeros(2, 1, 32, dtype=torch.complex64)": "u0 is complex",
    "u0=[[1.0], [1.0, 2.0]]": "u0 is no array",
}


def test_the_domain_ends_half_a_cell_beyond_the_nodes() -> None:
    spec = make_spec(2, lattice=(16, 8), spacing=(0.25, 0.5), origin=(-1.875, 0.0))
    assert spec.domain == ((-2.0, 2.0), (-0.25, 3.75))


def test_a_model_shows_what_it_takes() -> None:
    moving = make_spec(size=32, param_names=("nu", "beta"), param_low=(0.1, 2.0), param_high=(0.5, 2.0))
    assert repr(Surrogate(make_baseline("persistence", {"task": moving}), torch.device("cpu"))) == (
        "ups model 'persistence':\n  task: u on 32 cells of [0, 1], steps of 0.1, nu = 0.1 to 0.5, beta = 2"
    )


def test_arguments_of_a_wrong_kind_are_wrong_usage(surrogate: Surrogate, tmp_path: Path) -> None:
    """In a process of its own: here, the tests' type checks would come first."""
    save_model(surrogate.emulator, tmp_path / "model")
    calls = "".join(
        f"try: model.rollout(**dict(good, {wrong}))\nexcept ups.errors.UsageError as error: print(error)\n"
        for wrong in WRONG
    )
    begin = f"import numpy, torch, ups, ups.errors\nmodel = ups.load({str(tmp_path)!r})\n"
    script = f"{begin}good = dict(u0=torch.randn(2, 1, 32), steps=2)\n{calls}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == len(WRONG)
    for line, says in zip(told, WRONG.values(), strict=True):
        assert says in line


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps:7"])
def test_a_device_that_is_not_there_is_named(surrogate: Surrogate, tmp_path: Path, device: str) -> None:
    save_model(surrogate.emulator, tmp_path / "model")
    with pytest.raises(UsageError, match=f"device is '{device}', which PyTorch does not find here"):
        load(tmp_path, device)


def test_views_of_arrays_and_whole_numbers_of_numpy_are_taken(surrogate: Surrogate) -> None:
    u0 = np.random.default_rng(0).normal(size=(3, 1, 32))
    turned = surrogate.rollout(u0[::-1], steps=np.int64(2))
    torch.testing.assert_close(turned, surrogate.rollout(u0, steps=2).flip(0))


def with_parameter(**changes: object) -> Surrogate:
    spec = {"param_names": ("nu",), "param_log": (True,), "param_mean": (math.log(0.02),), "param_std": (0.5,)}
    return Surrogate(make_simulator(**{**spec, **changes}), torch.device("cpu"))


def test_parameters_outside_the_trained_range_are_refused_unless_asked_for() -> None:
    surrogate, u0 = with_parameter(param_low=(0.01,), param_high=(0.04,)), torch.randn(2, 1, 32)
    for inside in (0.01, 0.04, 0.04 * (1 + 5e-7), [0.01, 0.03]):
        surrogate.rollout(u0, steps=1, params={"nu": inside})
    for outside in (0.04 * (1 + 1e-5), [0.02, 0.0099], float("nan")):
        with pytest.raises(UsageError, match=r"range trained on, 0.01 to 0.04(.|\n)*|nu is NaN"):
            surrogate.rollout(u0, steps=1, params={"nu": outside})
    assert surrogate.rollout(u0, steps=1, params={"nu": 0.08}, extrapolate=True).isfinite().all()


@pytest.mark.parametrize("known", [True, False], ids=["with range", "saved without range"])
def test_a_model_of_one_parameter_value_takes_no_other(known: bool) -> None:
    only = {"param_low": (0.01,), "param_high": (0.01,)} if known else {}
    surrogate, u0 = with_parameter(param_mean=(math.log(0.01),), param_std=(0.0,), **only), torch.randn(2, 1, 32)
    torch.testing.assert_close(
        surrogate.rollout(u0, steps=1), surrogate.rollout(u0, steps=1, params={"nu": 0.01}), atol=1e-5, rtol=0
    )
    surrogate.rollout(u0, steps=1, params={"nu": 0.010005})
    with pytest.raises(UsageError, match=r"trained at nu = 0.01 alone"):
        surrogate.rollout(u0, steps=1, params={"nu": [0.01, 0.02]})
    with pytest.raises(UsageError, match=r"trained at nu = 0.01 alone"):
        surrogate.rollout(u0, steps=1, params={"nu": 0.02}, extrapolate=True)


def test_a_model_saved_without_ranges_is_read(tmp_path: Path) -> None:
    save_model(with_parameter(param_low=(0.01,), param_high=(0.04,)).emulator, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    assert load(tmp_path).spec().param_high == (0.04,)
    config = json.loads(path.read_text())
    del config["tasks"]["task"]["param_low"], config["tasks"]["task"]["param_high"]
    path.write_text(json.dumps(config))
    assert load(tmp_path).rollout(torch.randn(1, 1, 32), steps=1, params={"nu": 0.08}).shape == (1, 1, 1, 32)


def test_a_roll_out_is_in_the_mode_that_the_model_was_chosen_by(tmp_path: Path) -> None:
    """A codec whose decoding is not undone by encoding tells the modes apart."""
    simulator = make_simulator(size=32)
    lossy = Simulator(simulator.tasks, replace(simulator.architecture, latent_dim=2, mode="physical")).eval()
    for p in (*lossy.operator.parameters(), lossy.codecs["task"].decoder):
        torch.nn.init.normal_(p, std=0.1)
    save_model(lossy, tmp_path / "model")
    model, u0 = load(tmp_path), torch.randn(2, 1, 32)
    as_chosen, latent, physical = (model.rollout(u0, steps=3, mode=mode) for mode in (None, "latent", "physical"))
    assert not torch.allclose(latent, physical, atol=1e-3)
    assert torch.equal(as_chosen, physical)
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    del config["architecture"]["mode"]  # as it was once saved
    path.write_text(json.dumps(config))
    assert torch.equal(load(tmp_path).rollout(u0, steps=3), latent)
