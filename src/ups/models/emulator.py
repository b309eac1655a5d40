"""What every emulator is: fields in physical units in, the fields one step later out, and the roll-out of that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.errors import UpsError
from ups.models.layers import ModuleMap

DT_TOLERANCE = 1e-3  # relative: time axes in files are rounded


@dataclass(frozen=True)
class TaskSpec:
    """What a trained model knows of a task: everything needed to advance its fields, and nothing of the data's files.

    `mean` and `std` are the train statistics of each field; `param_mean` and `param_std` those of each parameter, or of
    its logarithm where `param_log`; `param_low` and `param_high` bound its raw values (empty in models saved without).
    `lattice` is the grid trained on; `origin` the coordinate of its first node. `galilean`: see `frame.MovingFrame`.
    `static`: fields that do not change with time but enter every step, as the equation's forcing does.
    `derived`: fields that the equation derives from a frame's own, and a network is shown beside them.
    `given`: fields of the first frame of a steady problem, whose other frame holds `fields`; `given_mean` and
    `given_std` are their train statistics. Empty where the problem has time.
    """

    name: str
    fields: tuple[str, ...]
    lattice: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    periodic: tuple[bool, ...]
    form: str
    conserved: tuple[bool, ...]
    context: int
    dt: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    param_names: tuple[str, ...] = ()
    param_log: tuple[bool, ...] = ()
    param_mean: tuple[float, ...] = ()
    param_std: tuple[float, ...] = ()
    param_low: tuple[float, ...] = ()
    param_high: tuple[float, ...] = ()
    galilean: bool = False
    static: int = 0
    derived: int = 0
    given: tuple[str, ...] = ()
    given_mean: tuple[float, ...] = ()
    given_std: tuple[float, ...] = ()

    @property
    def steady(self) -> bool:
        """Whether the task has no time: `fields` are sought from `given`."""
        return bool(self.given)

    @property
    def axes(self) -> int:
        return len(self.lattice)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Extent of the domain along each axis: the period where periodic."""
        return tuple(size * step for size, step in zip(self.lattice, self.spacing, strict=True))

    @property
    def domain(self) -> tuple[tuple[float, float], ...]:
        """Bounds of each axis: half a cell beyond the first and the last node."""
        places = zip(self.origin, self.spacing, self.lattice, strict=True)
        return tuple((start - 0.5 * step, start + (size - 0.5) * step) for start, step, size in places)

    @property
    def channels_read(self) -> int:
        """Channels that a step is made from: the fields of every context frame, the static and the derived ones."""
        return self.context * len(self.fields) + self.static + self.derived

    @property
    def varies(self) -> bool:
        """Whether training saw more than one value of some parameter."""
        return any(std > 0 for std in self.param_std)


class Normalizer(nn.Module):
    """Fields, dt and parameters of one task, to and from the units a network works in.

    Args:
        reference_log_dt: log of the time step that the conditioner reads as zero; None takes the task's own.
    """

    mean: Tensor
    std: Tensor
    param_mean: Tensor
    param_std: Tensor

    def __init__(self, spec: TaskSpec, reference_log_dt: float | None = None) -> None:
        super().__init__()
        self.reference_log_dt = math.log(spec.dt) if reference_log_dt is None else reference_log_dt
        self.param_log = spec.param_log
        shape = (len(spec.fields), *[1] * spec.axes)
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).reshape(shape), persistent=False)
        self.register_buffer("param_mean", torch.tensor(spec.param_mean, dtype=torch.float32), persistent=False)
        param_std = [std if std > 0 else 1.0 for std in spec.param_std]
        self.register_buffer("param_std", torch.tensor(param_std, dtype=torch.float32), persistent=False)

    def forward(self, u: Float[Tensor, "*batch channel *grid"]) -> Tensor:
        return (u - self.mean) / self.std

    def inverse(self, u_hat: Float[Tensor, "*batch channel *grid"]) -> Tensor:
        return torch.addcmul(self.mean, u_hat, self.std)

    def params(self, params: Float[Tensor, "batch parameter"]) -> Float[Tensor, "batch parameter"]:
        """Standardised parameters, zero at the train mean."""
        columns = [params[:, i].log() if log else params[:, i] for i, log in enumerate(self.param_log)]
        return (torch.stack(columns, 1) - self.param_mean) / self.param_std if columns else params

    def features(
        self, dt: Float[Tensor, " batch"], params: Float[Tensor, "batch parameter"]
    ) -> Float[Tensor, "batch parameters_and_dt"]:
        """What the conditioner reads: log(dt / dt_ref) and the standardised parameters.

        dt_ref is the geometric mean of the steps of the model's tasks: it tells the tasks apart by their step, and is
        zero where there is one task alone.
        """
        return torch.cat([(dt.log() - self.reference_log_dt)[:, None], self.params(params)], dim=1)


class Emulator(nn.Module):
    """Advances physical fields by one time step. Persistence, FNO, U-Net and the simulator all are emulators.

    Args:
        tasks: what is known of each task it serves.
    """

    name = "emulator"

    def __init__(self, tasks: Mapping[str, TaskSpec]) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        mean_log_dt = sum(math.log(spec.dt) for spec in tasks.values()) / len(tasks)
        self.normalizers: ModuleMap[Normalizer] = ModuleMap(
            {task: Normalizer(spec, mean_log_dt) for task, spec in tasks.items()}
        )
        self.context = max(spec.context for spec in tasks.values())

    def step(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        number: int = 0,
    ) -> Float[Tensor, "batch channel *grid"]:
        """The fields `dt` after the last context frame, in physical units; the step after `number` of a roll-out."""
        raise NotImplementedError

    def rollout(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        steps: int,
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        mode: str = "physical",
    ) -> Float[Tensor, "batch steps channel *grid"]:
        """Autoregressive roll-out in physical units; it sees the context frames alone.

        Args:
            dt: the step trained on: a model knows no other.
            mode: `latent` stays in latent space between steps, if there is one; `physical` decodes and encodes at each.

        Raises:
            UpsError: the model was not trained for the task, the grid or the time step.
        """
        self.check(context, task, dt)
        frames = []
        for number in range(steps):
            frame = self.step(context, task=task, dt=dt, params=params, number=number)
            frames.append(frame)
            context = torch.cat([context[:, 1:], frame[:, None]], dim=1)
        return torch.stack(frames, dim=1)

    @property
    def draws(self) -> bool:
        """Whether it can draw different members of an ensemble from the same context."""
        return False

    def rollout_members(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        steps: int,
        *,
        members: int,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        mode: str = "physical",
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "member batch steps channel *grid"]:
        """An ensemble of roll-outs, each step of every member with its own sample of the error; in physical units.

        Args:
            members: how many roll-outs of each sample.
            rng: of the samples, on the CPU; None takes PyTorch's own stream.

        Raises:
            UpsError: the model is deterministic (`draws` is False).
        """
        raise UpsError(
            f"'{self.name}' is deterministic: it draws no members. Train the stage diff_residual for an ensemble"
        )

    def reconstruct(
        self, u: Float[Tensor, "batch channel *grid"], *, task: str
    ) -> Float[Tensor, "batch channel *grid"]:
        """What the codec makes of a field; the field itself where there is no codec."""
        return u

    def advice(self, spec: TaskSpec, context: Tensor) -> str:
        """What to do about initial frames (batch, context, field, *grid) that do not fit."""
        names = ", ".join(spec.given or spec.fields)
        if context.ndim != 3 + spec.axes:
            return f"the batch comes first, then the field{'s' if ',' in names else ''} {names}, then the grid"
        if context.shape[1] != spec.context:
            return f"give {spec.context} frame{'s' if spec.context > 1 else ''} of context"
        if context.shape[2] != len(spec.given or spec.fields):
            return f"give the field{'s' if ',' in names else ''} {names}, in this order"
        return self.grid_advice(spec)

    def grid_advice(self, spec: TaskSpec) -> str:
        """What to do about fields on another grid."""
        grid = " x ".join(map(str, spec.lattice))
        return f"interpolate the input onto {grid} points, or train on data of its grid (data.resolution)"

    def takes_grid(self, grid: tuple[int, ...], spec: TaskSpec) -> bool:
        """Whether fields on a grid of this shape can be advanced."""
        return grid == spec.lattice

    def check(
        self, context: Tensor, task: str, dt: Tensor | None = None, *, given: tuple[int, ...] | None = None
    ) -> None:
        """Refuses fields and time steps that the model was not trained for, naming both shapes or steps.

        Args:
            given: shape of what `context` was made from, where the user gave it without the axis of context frames.

        Raises:
            UpsError: in the user's terms.
        """
        if task not in self.tasks:
            raise UpsError(f"this model knows the tasks {', '.join(self.tasks)}, not '{task}'")
        spec = self.tasks[task]
        expected, grid = (spec.context, len(spec.fields)), tuple(context.shape[3:])
        if tuple(context.shape[1:3]) != expected or len(grid) != spec.axes or not self.takes_grid(grid, spec):
            raise UpsError(_wrong_shape(spec, tuple(context.shape), given) + f"; {self.advice(spec, context)}")
        if dt is None:
            return
        other = ~((dt.double() - spec.dt).abs() <= DT_TOLERANCE * spec.dt)
        if bool(other.any()):
            raise UpsError(
                f"{task}: the model makes steps of {spec.dt:g}; it was not trained for {float(dt[other][0]):g}; "
                "give steps of its own size, or train on data with that time step"
            )


def _wrong_shape(spec: TaskSpec, found: tuple[int, ...], given: tuple[int, ...] | None) -> str:
    """The shape that initial fields have, and the one they should have, both as the user would write them."""
    what = "what is given (u0) has" if spec.steady else "the initial fields (u0) have"
    sizes = ("any", len(spec.fields), *spec.lattice)
    layout = "(batch, field, *grid)"
    if spec.context > 1 or len(given or found) == spec.axes + 3:
        sizes, layout = ("any", spec.context, *sizes[1:]), "(batch, context, field, *grid)"
    wanted = ", ".join(map(str, sizes))
    return f"{spec.name}: {what} shape {given or found}, but the model was trained on {layout} = ({wanted})"
