"""Training from cached latents is training from frames, without their encoding."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.latent_cache import CACHE, make_set, parts
from tests.layouts import write_task
from tests.models.helpers import make_spec

from ups.config.load import load_settings
from ups.data.augment import Augment
from ups.data.fields import Batch
from ups.data.latents import LatentStore
from ups.data.windows import WindowLoader
from ups.models.architecture import Architecture
from ups.models.simulator import Simulator
from ups.physics.equations import get_equation
from ups.pipeline.run import train_pipeline
from ups.pipeline.train import encode_frames
from ups.runtime import SilentProgress
from ups.training.losses import InverseCurriculum
from ups.training.objectives import CodecObjective, OperatorObjective, OperatorTerms
from ups.training.physics import PhysicsPriors, TaskPriors

ALL_TERMS = OperatorTerms(spectral=0.3, rollout=1.0, rollout_horizon=3, inv_dec=0.5, num_queries=20)
AUGMENTS = {"burgers1d": Augment(get_equation("burgers1d"), enabled=False)}


def make_simulator(latent_dim: int, frozen: bool = True, context: int = 1) -> Simulator:
    """Four values per token: 4 latents lose nothing, 2 do."""
    torch.manual_seed(0)
    params = {"param_names": ("nu",), "param_log": (False,), "param_mean": (0.3,), "param_std": (0.1,)}
    spec = make_spec(size=16, context=context, name="burgers1d", **params)
    architecture = Architecture(latent_dim=latent_dim, patch=4, hidden_dim=16, heads=2, depths=(1,), stem_width=8)
    simulator = Simulator({"burgers1d": spec}, architecture)
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    simulator.codecs.requires_grad_(not frozen)
    return simulator


def make_objective(simulator: Simulator) -> OperatorObjective:
    equation = get_equation("burgers1d")
    weights = {"residual": 0.1, "latent_norm": 0.1, "boundary": 0.2, "conservation": 0.1}
    priors = PhysicsPriors({"burgers1d": TaskPriors(equation, (1 / 16,), bc_type="neumann", **weights)}, 2)
    return OperatorObjective(simulator, AUGMENTS, ALL_TERMS, InverseCurriculum(0, 1.0), priors)


def batches(tmp_path: Path, simulator: Simulator, dtype: Any, context: int = 1) -> list[tuple[Batch, Batch]]:
    """The same batches with frames and with latents."""
    trajectories = make_set()
    weights = simulator.codecs["burgers1d"].state_dict()
    latents = LatentStore(tmp_path, dtype=dtype).load(
        "train", trajectories, partial(encode_frames, simulator, "burgers1d"), weights
    )
    sets = {"burgers1d": trajectories}
    plain = WindowLoader(sets, 4, context, 3, seed=0)
    cached = WindowLoader(sets, 4, context, 3, seed=0, latents={"burgers1d": latents})
    return list(islice(zip(plain, cached, strict=False), 3))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float16", 2e-2)])
def test_losses_and_gradients_from_latents_of_an_exact_codec_are_those_from_frames(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    simulator = make_simulator(4)
    objectives = [make_objective(simulator), make_objective(simulator)]
    seen = set()
    for pair in batches(tmp_path, simulator, dtype):
        found = []
        for objective, batch in zip(objectives, pair, strict=True):
            simulator.zero_grad()
            loss, metrics = objective(batch, torch.Generator().manual_seed(1))
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in simulator.parameters() if p.grad is not None])
            found.append((metrics, gradient))
        (from_frames, expected), (from_latents, gradient) = found
        assert from_frames.keys() == from_latents.keys()
        seen |= from_frames.keys()
        size = sum(float(value) for value in from_frames.values())
        for name, value in from_frames.items():
            assert float(from_latents[name]) == pytest.approx(float(value), rel=tolerance, abs=tolerance * size), name
        assert float((gradient - expected).norm()) <= 20 * tolerance * float(expected.norm())
    assert seen == {"forward", "relative", "spectral", "rollout", "inv_dec", "residual", "latent_norm", "boundary",
                    "conservation"}  # fmt: skip


def test_an_operator_of_a_lossy_codec_is_held_to_what_the_codec_expresses(tmp_path: Path) -> None:
    """Its loss is that of the frames as the codec reproduces them; the latent term is that of the frames themselves."""
    simulator = make_simulator(2, context=2)
    objective = make_objective(simulator)
    for plain, cached in batches(tmp_path, simulator, "float32", context=2):
        shown = simulator.decode(simulator.encode(plain.frames, task="burgers1d"), task="burgers1d")
        rng = torch.Generator
        expected = objective(replace(plain, frames=shown), rng().manual_seed(1))[1]
        forward = objective(plain, rng().manual_seed(1))[1]["forward"]
        objective.batches -= 2  # so that the priors are due again
        found = objective(cached, rng().manual_seed(1))[1]
        objective.batches += 1
        torch.testing.assert_close(found["forward"], forward, rtol=1e-5, atol=1e-6)
        for name in ("forward", "relative", "spectral", "rollout", "inv_dec", "latent_norm"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_frames_are_not_encoded_where_there_are_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = make_simulator(4)
    ((plain, cached), *_) = batches(tmp_path, simulator, "float32")
    codec, calls = simulator.codecs["burgers1d"], []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda u: calls.append(len(u)) or encode(u))
    objective = OperatorObjective(simulator, AUGMENTS, OperatorTerms(), InverseCurriculum(0, 1.0))
    with torch.no_grad():
        objective(cached, torch.Generator())
        steps = len(calls)
        objective(plain, torch.Generator())
    assert steps == cached.horizon  # each ends with the encoding of its prediction
    assert len(calls) == 2 * steps + 1
    assert max(calls[:steps]) == len(cached)


def test_who_knows_nothing_of_latents_fails_on_them(tmp_path: Path) -> None:
    simulator = make_simulator(4)
    ((_, cached), *_) = batches(tmp_path, simulator, "float32")
    with pytest.raises(RuntimeError, match="meta"):
        CodecObjective(simulator, AUGMENTS)(cached, torch.Generator())[0].item()
    with pytest.raises(ValueError, match="latents are those of a frozen codec"):
        make_objective(make_simulator(4, frozen=False))(cached, torch.Generator())


class Heard(SilentProgress):
    """Keeps the lines said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_run_trains_its_operator_from_the_cache_as_without(tmp_path: Path) -> None:
    """The same losses to rounding; another run with the same codec finds the cache."""
    torch.set_num_threads(1)
    write_task(tmp_path / "burgers.h5", "burgers1d", num=10, frames=6, resolution=16)
    tree = {
        "task": "burgers1d",
        "threads": 1,
        "data": {"root": str(tmp_path), "files": ["burgers.h5"]},
        "latent": {"dim": 4, "patch": 4},
        "operator": {"base": "persistence", "pdet": {"hidden_dim": 16, "depths": 1, "heads": 2, "stem_width": 8}},
        "training": {"batch_size": 4, "log_every": 1, "augment": False, "latent_cache_dtype": "float32"},
        "stages": {"codec": {"epochs": 0}, "operator": {"steps": 8}},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(tree))  # JSON is YAML
    losses, said = {}, {}
    cache = f"training.latent_cache_dir={tmp_path / 'cache'}"
    for name, overrides in {"plain": (), "cached": (cache,), "again": (cache,)}.items():
        heard = Heard()
        settings = load_settings(tmp_path / "config.yaml", (f"runs_dir={tmp_path / name}", *overrides))
        outcome = train_pipeline(settings, progress=heard)
        records = [json.loads(line) for line in (outcome.run_dir / "log.jsonl").read_text().splitlines()]
        losses[name] = [record["loss"] for record in records if record["stage"] == "operator" and "loss" in record]
        said[name] = [line for line in heard.lines if "latent cache" in line]
    assert len(losses["plain"]) == 8
    assert losses["cached"] == pytest.approx(losses["plain"], rel=1e-3)
    assert losses["cached"][0] == pytest.approx(losses["plain"][0], rel=1e-5)
    assert losses["again"] == losses["cached"]
    assert (len(said["plain"]), len(said["cached"]), len(said["again"])) == (0, 1, 0)
    assert parts(tmp_path / "cache") == CACHE
