"""The composed simulator, its roll-out, and what users hold of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.helpers import make_spec

from ups.errors import CheckpointError, UpsError, UsageError
from ups.models.baselines import make_baseline
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
    with pytest.raises(UpsError, match=r"multiple of 16 \(operator.pdet.coarsen 4 x 4\)"):
        Simulator({"task": make_spec(size=24)}, replace(SMALL, coarsen=(4, 4)))
    windowed = replace(SMALL, coarsen=(2,), architecture="pdet_unet", depths=(1, 1), window=8)
    with pytest.raises(UpsError, match=r"\(operator.pdet.coarsen 2, halvings of pdet_unet 2, operator.pdet.window 8\)"):
        Simulator({"task": make_spec(size=48)}, windowed)
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


class Pairs:
    """Batches of random pairs, the same at every pass; notes how many normalised fields are alive at each batch."""

    def __init__(self, simulator: Simulator, split: int) -> None:
        rng = torch.Generator().manual_seed(3)
        u, params = torch.randn(120, 1, 32, generator=rng), torch.rand(120, 1, generator=rng) + 0.1
        after = u.roll(1, -1) * (1 + params[..., None]) + 0.1 * u.square()
        self.batches = list(zip(u.split(split), after.split(split), params.split(split), strict=True))
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.alive = 0
        simulator.normalizers["task"].register_forward_hook(lambda _m, _i, out: self.made.append(weakref.ref(out)))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            self.alive = max(self.alive, sum(field() is not None for field in self.made))
            yield batch


def test_a_fit_to_streamed_batches_is_the_fit_to_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.models.propagator.ENOUGH", 1000)  # which halves are compared depends on the batches
    spec = make_spec(param_names=("nu",), param_log=(True,), param_mean=(-0.6,), param_std=(0.5,))
    fitted = []
    for split in (10, 120):
        torch.manual_seed(0)
        simulator = Simulator({"task": spec}, replace(SMALL, latent_dim=3))
        simulator.fit("task", Pairs(simulator, split))
        fitted.append(simulator.state_dict())
    for name, streamed in fitted[0].items():
        torch.testing.assert_close(streamed, fitted[1][name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_fit_holds_no_more_than_the_batch_at_hand_and_the_one_before() -> None:
    simulator = make(param_names=("nu",), param_log=(True,), param_mean=(-0.6,), param_std=(0.5,))
    pairs = Pairs(simulator, 10)
    simulator.fit("task", pairs)
    assert 0 < pairs.alive <= 4 < len(pairs.batches)


def test_a_lossy_codec_starts_at_the_components_of_the_first_frames_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.models.simulator.CODEC_FRAMES", 25)
    simulator = Simulator({"task": make_spec()}, replace(SMALL, latent_dim=2))
    u = torch.randn(120, 1, 32)
    u[25:] *= 1000
    simulator.fit("task", [(part, part, torch.zeros(len(part), 0)) for part in u.split(10)])
    codec = Simulator({"task": make_spec()}, replace(SMALL, latent_dim=2)).codecs["task"]
    codec.fit(simulator.normalizers["task"](u[:25]))
    torch.testing.assert_close(simulator.codecs["task"].encoder, codec.encoder)


def test_pairs_that_can_be_read_only_once_are_refused() -> None:
    u = torch.randn(4, 1, 32)
    with pytest.raises(ValueError, match="more than once"):
        make().fit("task", iter([(u, u, torch.zeros(4, 0))]))


@torch.no_grad()
def test_a_unet_may_end_in_a_single_token() -> None:
    """Its convolutions are then wider than what they read; a conserved field keeps its integral all the same."""
    torch.manual_seed(0)
    wide = replace(SMALL, architecture="pdet_unet", depths=(1, 1), coarsen=(4,))
    simulator = Simulator({"task": make_spec(size=8)}, wide)
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    u = torch.randn(2, 1, 1, 8)
    out = simulator.rollout(u, 2, **arguments(2))
    assert (out[:, -1] - u[:, 0]).abs().max() > 0.01
    torch.testing.assert_close(out.mean(-1), u.mean(-1).expand(2, 2, 1), atol=2e-6, rtol=0)


@torch.no_grad()
def test_the_codec_loses_nothing_under_autocast() -> None:
    simulator = make()
    u, nodes = torch.randn(2, 1, 32), (torch.arange(32)[:, None] + 0.5) / 32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = simulator.reconstruct(u, task="task")
        at_nodes = simulator.decode_at(simulator.encode(u[:, None], task="task"), nodes, task="task")
        stepped = simulator.step(u[:, None], **arguments(2))
    torch.testing.assert_close(found, u, atol=1e-5, rtol=0)
    torch.testing.assert_close(at_nodes[:, 0], u, atol=1e-4, rtol=0)
    assert stepped.dtype == torch.float32
    torch.testing.assert_close(stepped.mean(-1), u.mean(-1), atol=2e-6, rtol=0)


def test_dt_tells_the_tasks_of_a_model_apart() -> None:
    one, params = make(), torch.zeros(1, 0)
    assert one.normalizers["task"].features(torch.tensor([0.1]), params).item() == pytest.approx(0.0, abs=1e-6)
    two = Simulator({"a": make_spec(dt=0.1), "b": make_spec(dt=0.4)}, SMALL)
    found = [two.normalizers[task].features(torch.tensor([dt]), params).item() for task, dt in (("a", 0.1), ("b", 0.4))]
    assert found == pytest.approx([-math.log(2), math.log(2)], abs=1e-6)


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_another_time_step_is_refused(mode: str) -> None:
    simulator, u = make(dt=0.05), torch.randn(2, 1, 1, 32)
    given = {"task": "task", "params": torch.zeros(2, 0), "mode": mode}
    simulator.rollout(u, 1, dt=torch.full((2,), 0.05 * 1.0005), **given)  # type: ignore[arg-type]
    with pytest.raises(UpsError, match=r"steps of 0.05; it was not trained for 0.1"):
        simulator.rollout(u, 1, dt=torch.tensor([0.05, 0.1]), **given)  # type: ignore[arg-type]
    with pytest.raises(UpsError, match=r"steps of 0.05; it was not trained for 0.1"):
        make_baseline("persistence", simulator.tasks).rollout(u, 1, dt=torch.full((2,), 0.1), **given)  # type: ignore[arg-type]


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


def test_a_model_shows_what_it_takes() -> None:
    moving = make_spec(size=32, param_names=("nu", "beta"), param_low=(0.1, 2.0), param_high=(0.5, 2.0))
    assert repr(Surrogate(make_baseline("persistence", {"task": moving}), torch.device("cpu"))) == (
        "ups model 'persistence':\n  task: u on 32, steps of 0.1, nu = 0.1 to 0.5, beta = 2"
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


def test_views_of_arrays_and_whole_numbers_of_numpy_are_taken(surrogate: Surrogate) -> None:
    u0 = np.random.default_rng(0).normal(size=(3, 1, 32))
    turned = surrogate.rollout(u0[::-1], steps=np.int64(2))
    torch.testing.assert_close(turned, surrogate.rollout(u0, steps=2).flip(0))


def with_parameter(**changes: object) -> Surrogate:
    spec = {"param_names": ("nu",), "param_log": (True,), "param_mean": (math.log(0.02),), "param_std": (0.5,)}
    return Surrogate(make(**{**spec, **changes}), torch.device("cpu"))


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
