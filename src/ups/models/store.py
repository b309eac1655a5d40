"""A trained model on disk: `weights.safetensors` beside `config.json`. Nothing in it is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ups import __version__
from ups.errors import CheckpointError
from ups.files import write_whole
from ups.models.architecture import Architecture
from ups.models.baselines import NetworkEmulator, make_baseline
from ups.models.diffusion import DiffusionArchitecture
from ups.models.emulator import Emulator, TaskSpec
from ups.models.prior import PriorArchitecture, SteadyPrior
from ups.models.simulator import Simulator
from ups.versions import MODEL_FORMAT as FORMAT

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
CONFIG_OF_RUN = "config.yaml"  # of a run's folder, in which a model lies
CUSTOM = " (custom)"  # mark of a network whose sizes and parts are not those of the package's baselines
Plain = TypeVar("Plain", TaskSpec, Architecture, DiffusionArchitecture, PriorArchitecture)


def save_model(emulator: Emulator, folder: Path) -> None:
    """Writes an emulator into `folder`, made if missing; each file appears whole or not at all."""
    custom = isinstance(emulator, NetworkEmulator) and emulator.custom
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "kind": f"{emulator.name}{CUSTOM}" if custom else emulator.name,
        "tasks": {task: asdict(spec) for task, spec in emulator.tasks.items()},
    }
    if isinstance(emulator, Simulator):
        corrector = emulator.corrector
        config["architecture"] = asdict(emulator.architecture)
        config["corrector"] = None if corrector is None else asdict(corrector.architecture)
        config["student"] = corrector is not None and corrector.student is not None
    if isinstance(emulator, SteadyPrior):
        config["architecture"] = asdict(emulator.architecture)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in emulator.state_dict().items()}
    weights = save(tensors)
    config["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    write_whole(folder / WEIGHTS, weights)
    write_whole(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_weights(emulator: Emulator, folder: Path) -> None:
    """Reads the weights that `save_model` wrote of an emulator like this one into it.

    Raises:
        CheckpointError: there are none, they are damaged, or another emulator's.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        emulator.load_state_dict(_tensors(folder / WEIGHTS, config))
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not hold the weights of this model: {error}") from error


def _tensors(path: Path, config: Any) -> dict[str, torch.Tensor]:
    """The weights of a file, if they are those that `config` was written with; older ones do not say.

    Raises:
        SafetensorError: they are not.
    """
    content = path.read_bytes()
    known = config.get("weights_sha256") if isinstance(config, dict) else None
    if known is not None and hashlib.sha256(content).hexdigest() != known:
        raise SafetensorError(f"the SHA-256 of {path.name} is not the one in {CONFIG}")
    return load(content)


def load_model(folder: Path, device: torch.device | None = None) -> Emulator:
    """Reads an emulator that `save_model` wrote, in evaluation mode.

    Raises:
        CheckpointError: the folder holds no model, or one that is damaged or of another format.
    """
    config_path, weights_path = folder / CONFIG, folder / WEIGHTS
    for path in (config_path, weights_path):
        if not path.is_file():
            what = f"{path.name} is missing" if folder.is_dir() else "there is no such folder"
            settings = folder.parent / CONFIG_OF_RUN
            remedy = "train one with 'ups run', or name a run's folder"
            if folder.name == "model" and settings.is_file():
                remedy = f"the training of this run has not ended yet; 'ups run {settings}' goes on with it"
            raise CheckpointError(f"{folder} holds no trained model: {what}; {remedy}")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        tensors = _tensors(weights_path, config)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise CheckpointError(
            f"the model in {folder} is damaged ({error}); copy it again, or train it again with 'ups run'"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise CheckpointError(f"{config_path} describes no model of ups; name a run's folder, or train one: 'ups run'")
    if config["format"] != FORMAT:
        age = "an older" if config["format"] < FORMAT else "a newer"
        raise _other_version(folder, config, age, f"its format is {config['format']}, {__version__} reads {FORMAT}")
    try:
        emulator = make_emulator(config)
    except KeyError as error:
        raise _other_version(folder, config, "another", f"{CONFIG} lacks {error}") from error
    except TypeError as error:
        raise _other_version(folder, config, "another", f"{CONFIG}: {error}") from error
    try:
        emulator.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{config_path} and {WEIGHTS} do not belong together: they are of two models, or of another version of "
            f"ups; copy both again, or train again with 'ups run' ({error})"
        ) from error
    return emulator.to(device or torch.device("cpu")).eval()


def is_model(folder: Path) -> bool:
    """Whether a folder itself is what `save_model` wrote, by the names of its files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _other_version(folder: Path, config: Mapping[str, Any], age: str, detail: str) -> CheckpointError:
    """The error of a model that this version cannot read: who wrote it, why not, and what to do."""
    writer = f"ups {config['version']}" if "version" in config else f"{age} version of ups"
    writer += " of another state" if config.get("version") == __version__ else ""
    return CheckpointError(
        f"the model in {folder} was saved by {writer} and cannot be loaded by this one, {__version__}; "
        f"train it again with this version ('ups run --force check'), or load it with the one that saved it "
        f"({detail})"
    )


def make_emulator(config: Mapping[str, Any]) -> Emulator:
    """The untrained emulator that a model's `config.json` describes."""
    tasks = {task: from_json(TaskSpec, spec) for task, spec in config["tasks"].items()}
    if config["kind"] == Simulator.name:
        return make_simulator(tasks, config)
    if config["kind"] == SteadyPrior.name:
        return SteadyPrior(tasks, from_json(PriorArchitecture, config["architecture"]))
    if str(config["kind"]).endswith(CUSTOM):
        raise CheckpointError(f"a model of kind '{config['kind']}' can only be loaded by the program that built it")
    return make_baseline(config["kind"], tasks)


def make_simulator(tasks: Mapping[str, TaskSpec], config: Mapping[str, Any]) -> Simulator:
    """The untrained simulator of a model's `config.json`, with the corrector and the student that it has."""
    simulator = Simulator(tasks, from_json(Architecture, config["architecture"]))
    if config.get("corrector") is not None:
        corrector = simulator.add_corrector(from_json(DiffusionArchitecture, config["corrector"]))
        if config["student"]:
            corrector.add_student()
    return simulator


def adopt(simulator: Simulator, folder: Path) -> None:
    """Takes over weights, corrector and student of the simulator that `save_model` wrote into `folder`.

    Raises:
        CheckpointError: the folder holds no model, or one that is damaged or of another architecture.
    """
    found = load_model(folder, next(simulator.parameters()).device)
    if not isinstance(found, Simulator):
        raise CheckpointError(f"{folder} holds the model '{found.name}', not a simulator; train it again")
    simulator.corrector = found.corrector
    simulator.architecture = replace(simulator.architecture, cutoff=found.architecture.cutoff)
    try:
        simulator.load_state_dict(found.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"the model in {folder} is of another architecture: {error}; train it again") from error


def from_json(kind: type[Plain], values: Mapping[str, Any]) -> Plain:
    """A plain dataclass from its JSON form: lists become tuples, unknown and missing keys are errors."""
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise TypeError(f"unknown keys {', '.join(sorted(unknown))}")
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**plain)
