"""A model on disk: read as it was, found in its run or by itself, refused where damaged or of another version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.helpers import make_spec
from tests.models.small_simulator import arguments, make_simulator

from ups import __version__
from ups.errors import CheckpointError
from ups.models.baselines import make_baseline
from ups.models.store import FORMAT, load_model, load_weights, save_model
from ups.models.surrogate import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as a run keeps it."""
    save_model(make_baseline("persistence", {"task": make_spec()}), tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_model(folder)
    return str(refused.value)


def test_a_run_and_the_folder_inside_it_are_the_same_model(folder: Path) -> None:
    u0 = torch.randn(1, 1, 32)
    for given in (folder.parent, folder, str(folder)):
        torch.testing.assert_close(load(given).rollout(u0, steps=1)[:, 0], u0)


@pytest.mark.parametrize(("name", "what"), [("none", "there is no such folder"), (".", "config.json is missing")])
def test_a_folder_without_a_model_is_refused_with_what_is_missing(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match=f"holds no trained model: {what}; .* name a run's folder"):
        load(tmp_path / name)


def test_of_a_run_whose_training_has_not_ended_it_is_said_how_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(CheckpointError, match=f"has not ended yet; 'ups run {tmp_path}/config.yaml' goes on with it"):
        load(tmp_path)


def test_a_model_names_the_version_that_saved_it(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["version"] == __version__


@pytest.mark.parametrize(
    ("found", "version", "writer"),
    [
        (FORMAT - 1, None, "an older version of ups"),
        (FORMAT + 1, None, "a newer version of ups"),
        (FORMAT + 1, "9.8.7", "ups 9.8.7"),
    ],
)
def test_another_format_is_refused_with_its_writer_and_what_to_do(
    folder: Path, found: int, version: str | None, writer: str
) -> None:
    rewrite(folder, lambda config: config.update(format=found))
    rewrite(folder, lambda config: config.update(version=version) if version else config.pop("version"))
    said = refusal(folder)
    assert f"was saved by {writer} and cannot be loaded by this one, {__version__}; train it again" in said
    assert f"its format is {found}, {__version__} reads {FORMAT}" in said


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda config: config["tasks"]["task"].update(viscosity=1), "unknown keys viscosity"),
        (lambda config: config["tasks"]["task"].pop("form"), "form"),
        (lambda config: config.pop("kind"), "lacks 'kind'"),
    ],
)
def test_a_model_of_other_keys_is_said_to_be_of_another_version(
    folder: Path, change: Callable[[dict[str, Any]], object], detail: str
) -> None:
    rewrite(folder, change)
    rewrite(folder, lambda config: config.pop("version"))
    said = refusal(folder)
    assert "was saved by another version of ups" in said
    assert "train it again with this version ('ups run --force check')" in said
    assert detail in said


def test_a_model_without_a_format_is_none_of_ours(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "describes no model of ups" in refusal(folder)


@torch.no_grad()
def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    simulator = make_simulator(param_names=("nu",), param_log=(True,), param_mean=(-4.0,), param_std=(0.5,))
    simulator.fit("task", [(torch.randn(40, 1, 32), torch.randn(40, 1, 32), torch.rand(40, 1) + 0.1)])
    save_model(simulator, tmp_path / "model")
    u = torch.randn(2, 1, 1, 32)
    found = load_model(tmp_path / "model").rollout(u, 2, **arguments(2, 1))
    torch.testing.assert_close(found, simulator.rollout(u, 2, **arguments(2, 1)), rtol=0, atol=0)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "weights.safetensors"]


def test_damaged_or_missing_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path)
    save_model(make_simulator(), tmp_path / "model")
    weights, config = tmp_path / "model" / "weights.safetensors", tmp_path / "model" / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    with pytest.raises(CheckpointError, match=r"is damaged .the SHA-256 of weights.safetensors is not the one"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"the SHA-256 of weights\.safetensors is not the one"):
        load_weights(make_simulator(), tmp_path / "model")
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights)
    rewrite(tmp_path / "model", lambda config: config.pop("weights_sha256"))  # as older versions saved it
    with pytest.raises(CheckpointError, match="do not belong together"):
        load(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps({**json.loads(config.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format"):
        load(tmp_path)
