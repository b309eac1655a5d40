"""The trained simulator as its users hold it: arrays in, arrays out, physical units, parameters by name."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ups.errors import UpsError, UsageError
from ups.hub import SCHEME, download
from ups.models.emulator import Emulator, TaskSpec
from ups.models.simulator import Simulator
from ups.models.store import is_model, load_model
from ups.physics.guards import GUARDS

SAME_VALUE = 1e-3  # relative difference up to which a parameter is the one value trained at
EDGE = 1e-6  # relative: float32 rounding of the ends of the range trained on

Array = Tensor | NDArray[np.generic] | Sequence[Any]


class Surrogate:
    """A trained model behind the interface users call; made by `ups.load`.

    Args:
        emulator: the model.
        device: where it computes; results come back on it.
    """

    def __init__(self, emulator: Emulator, device: torch.device) -> None:
        self.emulator, self.device = emulator.to(device).eval(), device

    def __repr__(self) -> str:
        """The model and what each of its tasks takes, as a notebook shows it."""
        return "\n".join([f"ups model '{self.emulator.name}':", *map(_summary, self.emulator.tasks.values())])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks the model was trained on."""
        return tuple(self.emulator.tasks)

    def spec(self, task: str | None = None) -> TaskSpec:
        """Fields, grid, domain, time step and parameters of a task; the only one where the model has one."""
        if task is None and len(self.tasks) > 1:
            raise UsageError(f"this model serves {', '.join(self.tasks)}: say which with task=...")
        name = task or self.tasks[0]
        if name not in self.emulator.tasks:
            raise UsageError(f"this model serves {', '.join(self.tasks)}, not '{name}'")
        return self.emulator.tasks[name]

    @torch.no_grad()
    def rollout(
        self,
        u0: Array,
        steps: SupportsIndex,
        params: Mapping[str, float | Sequence[float]] | None = None,
        *,
        task: str | None = None,
        points: Array | None = None,
        members: SupportsIndex | None = None,
        seed: int = 0,
        mode: str | None = None,
        guards: Sequence[str] | None = None,
        corrector_every: SupportsIndex | None = None,
        views: SupportsIndex | None = None,
        extrapolate: bool = False,
    ) -> Float[Tensor, "*member batch steps channel *where"]:
        """Rolls the model out from initial fields, in physical units.

        Args:
            u0: (batch, channel, *grid), or (batch, context, channel, *grid) for a model of more than one context frame.
            steps: frames to predict, each `spec().dt` after the last.
            params: PDE parameters by name, one number for all samples or one each; those left out take the train mean.
                A parameter that training saw a single value of takes no other.
            points: (point, axis) physical coordinates to decode at instead of the grid.
            members: roll-outs in an ensemble, every step of each with its own draw of the operator's error; None rolls
                the operator out alone. For a model whose stage `diff_residual` was trained.
            seed: of the draws.
            mode: `latent` stays in latent space between steps, `physical` decodes and encodes at each; None is the one
                that the model was chosen by (`evaluation.rollout_mode`).
            guards: projections that every step ends with, of `conservation`, `positivity`, `divergence` and
                `boundary`; () is none of them, None those that the model was trained with.
            corrector_every: steps between corrections of an ensemble's members; None is as trained.
            views: of the field that a step is the mean over (`operator.symmetrize`): more take as many times as long
                and are nearer where a symmetry is what the network lacks; 0 sees fields as they are, None is as
                trained. How far members are apart was calibrated for that.
            extrapolate: let parameters lie outside the range trained on.

        Returns:
            (batch, steps, channel, *grid), or (batch, steps, channel, point) with `points`; with `members`, all members
            before that: (member, batch, steps, ...).

        Raises:
            UpsError: shapes, parameters or points do not fit the model; the message says which and what would.
        """
        if members is not None:
            members = _count("members", members)
            if not self.emulator.draws:
                raise UsageError(
                    f"members: this model ('{self.emulator.name}') is deterministic; train the stage diff_residual for "
                    "an ensemble, or leave members out"
                )
        steps = _count("steps", steps)
        spec = self.spec(task)
        if corrector_every is not None and members is None:
            raise UsageError("corrector_every: only the members of an ensemble are corrected; give members too")
        chosen = self.manner(spec.name, mode=mode, guards=guards, corrector_every=corrector_every, views=views)
        context = self._tensor("u0", u0)
        given = tuple(context.shape)
        if given[:1] == (0,):
            raise UsageError("u0 holds no sample: its first axis, the batch, is empty")
        if context.ndim == spec.axes + 2:
            context = context[:, None]
        self.emulator.check(context, spec.name, given=given)
        if not bool(torch.isfinite(context).all()):
            raise UpsError("u0 holds NaN or infinite values; a roll-out from them would hold nothing else")
        batch = len(context)
        dt = torch.full((batch,), spec.dt, device=self.device)
        arguments: dict[str, Any] = {
            "task": spec.name,
            "dt": dt,
            "params": self._params(spec, {} if params is None else params, batch, extrapolate),
            "mode": chosen.get("mode", "latent"),
        }
        if points is not None and not isinstance(self.emulator, Simulator):
            raise UsageError(
                f"points: the model '{self.emulator.name}' predicts on its grid alone; "
                "only the simulator decodes anywhere"
            )
        where = None if points is None else self._points(spec, points)
        with self.switched(spec.name, chosen):
            if members is not None:
                rng = torch.Generator().manual_seed(seed)
                arguments |= {"members": members, "rng": rng}
                if where is None or not isinstance(self.emulator, Simulator):
                    return self.emulator.rollout_members(context, steps, **arguments)
                z = self.emulator.rollout_members_latent(context, steps, **arguments)
                values: Tensor = self.emulator.decode_at(z, where, task=spec.name).unflatten(0, (members, batch))
                return values
            if where is None or not isinstance(self.emulator, Simulator):
                return self.emulator.rollout(context, steps, **arguments)
            z = self.emulator.rollout_latent(context, steps, **arguments)
            return self.emulator.decode_at(z, where, task=spec.name)

    def manner(
        self,
        task: str | None = None,
        *,
        mode: str | None = None,
        guards: Sequence[str] | None = None,
        corrector_every: SupportsIndex | None = None,
        views: SupportsIndex | None = None,
    ) -> dict[str, Any]:
        """How a roll-out with these choices goes; see `rollout`. What is not chosen is as the model was trained.

        Returns:
            `mode`, `guards` (names), `corrector_every` and `views`; empty of a model that leaves no such choice.

        Raises:
            UsageError: a choice that this model does not leave.
        """
        spec = self.spec(task)
        asked = {"mode": mode, "guards": guards, "corrector_every": corrector_every, "views": views}
        given = [name for name, value in asked.items() if value is not None]
        if not isinstance(self.emulator, Simulator):
            if given:
                why = f"{spec.name} has no time" if spec.steady else f"'{self.emulator.name}' is no latent simulator"
                raise UsageError(f"{', '.join(given)}: {why}, and so no such choice in a roll-out; leave it out")
            return {}
        if mode not in (None, "latent", "physical"):
            raise UsageError(f"mode is '{mode}'; it must be latent or physical")
        if isinstance(guards, str):
            raise UsageError(f"guards is '{guards}'; give a list of names, such as ['{guards}']")
        unknown = [name for name in guards or () if name not in GUARDS]
        if unknown:
            raise UsageError(f"guards: there is no '{unknown[0]}'; the guards are {', '.join(GUARDS)}")
        trained = self.emulator.architecture
        return {
            "mode": mode or trained.mode,
            "guards": trained.guards if guards is None else tuple(guards),
            "corrector_every": trained.corrector_every
            if corrector_every is None
            else _count("corrector_every", corrector_every),
            "views": trained.symmetrize if views is None else self._views(views, trained.symmetrize),
        }

    def switched(self, task: str, manner: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Inside, roll-outs of a task go in a `manner`, but for its mode, which each is told."""
        if not isinstance(self.emulator, Simulator):
            return nullcontext()
        guards, every, views = manner["guards"], manner["corrector_every"], manner["views"]
        return self.emulator.switched(task, guards, corrector_every=every, symmetrize=views)

    @staticmethod
    def _views(views: SupportsIndex, trained: int) -> int:
        """The number of views of a step, of a model that was trained with so many."""
        number = _count("views", views, least=0)
        if number and not trained:
            raise UsageError(
                f"views is {number}, but this model sees fields only as they are (operator.symmetrize 0): it may never "
                "have been shown other views; leave views out"
            )
        return number

    def _tensor(self, name: str, values: Array | float, dtype: torch.dtype = torch.float32) -> Tensor:
        """What a user gave, as real numbers on the model's device."""
        if not isinstance(values, Tensor):
            try:
                array = np.asarray(values)
            except ValueError as error:  # rows of several lengths
                raise UsageError(f"{name} is no array of numbers") from error
            if array.dtype.kind not in "biuf":
                raise UsageError(f"{name} holds {array.dtype}; give real numbers")
            # torch takes no negative strides
            values = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        if values.is_complex():
            raise UsageError(f"{name} is complex; give real numbers")
        return values.to(device=self.device, dtype=dtype)

    def _params(
        self, spec: TaskSpec, given: Mapping[str, float | Sequence[float]], batch: int, extrapolate: bool
    ) -> Tensor:
        if not isinstance(given, Mapping):
            raise UsageError(f"params is a {type(given).__name__}; give a dictionary from names to values")
        unknown = set(map(str, given)) - set(spec.param_names)
        if unknown:
            raise UsageError(
                f"params: {spec.name} has {', '.join(spec.param_names) or 'no parameters'}, "
                f"not {', '.join(sorted(unknown))}"
            )
        columns = []
        for index, (name, log, mean) in enumerate(zip(spec.param_names, spec.param_log, spec.param_mean, strict=True)):
            value = self._tensor(f"params: {name}", given.get(name, float(np.exp(mean)) if log else mean))
            if not bool(torch.isfinite(value).all()):
                raise UsageError(f"params: {name} is NaN or infinite")
            if value.numel() not in (1, batch):
                raise UsageError(
                    f"params: {name} has {value.numel()} values for {batch} samples; give one, or one per sample"
                )
            if log and not bool((value > 0).all()):
                raise UsageError(f"params: {name} must be positive")
            if name in given:
                _check_trained(spec, index, value.double(), extrapolate)
            columns.append(value.expand(batch) if value.numel() == 1 else value)
        return torch.stack(columns, 1) if columns else torch.zeros(batch, 0, device=self.device)

    def _points(self, spec: TaskSpec, points: Array) -> Tensor:
        where = self._tensor("points", points, torch.float64)
        if where.ndim == 1 and spec.axes == 1:
            where = where[:, None]
        if where.ndim != 2 or where.shape[1] != spec.axes:
            raise UsageError(
                f"points has shape {tuple(where.shape)}; {spec.name} needs (points, {spec.axes}) coordinates"
            )
        for axis, (low, high) in enumerate(spec.domain):
            column = where[:, axis]
            if not bool(((column >= low - 1e-9) & (column <= high + 1e-9)).all()):
                raise UsageError(
                    f"points: coordinate {axis} reaches from {column.min():g} to {column.max():g}; "
                    f"the domain is {low:g} to {high:g}"
                )
        return where


def _count(name: str, value: SupportsIndex, least: int = 1) -> int:
    """A whole number from `least` on."""
    try:
        count = operator.index(value)
    except TypeError as error:
        raise UsageError(f"{name} is {value!r}; it must be a whole number") from error
    if count < least:
        raise UsageError(f"{name} is {count}; it must be at least {least}")
    return count


def _check_trained(spec: TaskSpec, index: int, value: Tensor, extrapolate: bool) -> None:
    """Refuses values of one parameter that training did not cover; a model saved without a range has none to leave."""
    name, mean = spec.param_names[index], spec.param_mean[index]
    if spec.param_std[index] == 0:
        only = spec.param_low[index] if spec.param_low else float(np.exp(mean)) if spec.param_log[index] else mean
        other = ~((value - only).abs() <= SAME_VALUE * abs(only))
        if bool(other.any()):
            raise UsageError(
                f"params: this model was trained at {name} = {only:g} alone, and knows nothing of "
                f"{name} = {float(value[other][0]):g}; train on data of several values of {name}"
            )
    elif spec.param_low and not extrapolate:
        low, high = spec.param_low[index], spec.param_high[index]
        outside = ~((value >= low - EDGE * abs(low)) & (value <= high + EDGE * abs(high)))
        if bool(outside.any()):
            raise UsageError(
                f"params: {name} = {float(value[outside][0]):g} is outside the range trained on, {low:g} to {high:g}; "
                "stay within it, or ask for it with extrapolate=True"
            )


def _summary(spec: TaskSpec) -> str:
    """Fields, grid, time step and parameters of a task in one line."""
    fields = f"{', '.join(spec.given)} -> {', '.join(spec.fields)}" if spec.steady else ", ".join(spec.fields)
    bounds = zip(spec.param_names, spec.param_low, spec.param_high, strict=False)  # none in models saved without
    params = [f"{name} = {low:g}" if low == high else f"{name} = {low:g} to {high:g}" for name, low, high in bounds]
    step = [] if spec.steady else [f"steps of {spec.dt:g}"]
    grid = " x ".join(map(str, spec.lattice))
    domain = " x ".join(f"[{low:.5g}, {high:.5g}]" for low, high in spec.domain)
    return ", ".join([f"  {spec.name}: {fields} on {grid} cells of {domain}", *step, *(params or spec.param_names)])


def require_device(device: torch.device | str) -> None:
    """Refuses a device that PyTorch does not know, or does not find here.

    Raises:
        UsageError: so it is.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device is {str(device)!r}, which PyTorch does not find here: {error}") from error


def load(folder: str | Path, device: torch.device | str | None = None) -> Surrogate:
    """Reads a trained model from a run's folder, from its `model/` or a copy of that, or from `hf://OWNER/NAME`.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        UpsError: it is on the Hugging Face Hub, and the extra `hub` is not installed.
        UsageError: there is no such device here.
    """
    if device is not None:
        require_device(device)
    place = download(folder) if isinstance(folder, str) and folder.startswith(SCHEME) else Path(folder)
    chosen = (
        torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    inside = place / "model"
    return Surrogate(load_model(place if is_model(place) and not inside.is_dir() else inside, chosen), chosen)
