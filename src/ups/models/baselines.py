"""The baselines every run is compared with: persistence, the linear propagator, FNO and U-Net.

FNO and U-Net have the sizes that were found best for them, else those of PDEBench's (Takamoto et al. 2022), and get
what is known to help them: normalised fields, and a prediction of the step's change, scaled by its root mean square,
rather than of the next field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.errors import UpsError
from ups.models.emulator import Emulator, TaskSpec
from ups.models.networks import FNO, UNetNetwork
from ups.models.steady import GEOMETRY, SteadyEmulator
from ups.models.step import StepEmulator


class Persistence(Emulator):
    """u_{t+dt} = u_t: what any emulator must beat. Of a steady problem, the train mean of every field, everywhere."""

    name = "persistence"

    def step(self, context: Tensor, *, task: str, dt: Tensor, params: Tensor, number: int = 0) -> Tensor:
        last, spec = context[:, -1], self.tasks[task]
        if not spec.steady:
            return last
        return torch.tensor(spec.mean, device=last.device).reshape(-1, *[1] * spec.axes).expand_as(last)

    def takes_grid(self, grid: tuple[int, ...], spec: TaskSpec) -> bool:
        return spec.steady or super().takes_grid(grid, spec)  # the mean of a steady problem is there for any grid


def without_derived(tasks: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
    """The tasks of a model that nothing is derived for."""
    return {task: replace(spec, derived=0) for task, spec in tasks.items()}


class LinearEmulator(StepEmulator):
    """The least-squares linear propagator alone (`propagator.py`); fitted, not trained."""

    name = "linear"

    def __init__(self, tasks: Mapping[str, TaskSpec]) -> None:
        super().__init__(without_derived(tasks), base="linear")

    def rest(self, u_hat: Tensor, features: Tensor, task: str) -> Tensor | None:
        return None


def make_fno(spec: TaskSpec, channels_in: int, channels_out: int, **sizes: Any) -> nn.Module:
    """An FNO for one task; `sizes` are keyword arguments of `FNO`."""
    return FNO(spec.axes, channels_in, channels_out, **sizes)


def make_unet(spec: TaskSpec, channels_in: int, channels_out: int, *, levels: int = 4, **sizes: Any) -> nn.Module:
    """A U-Net for one task; `sizes` are keyword arguments of `UNetNetwork`.

    Raises:
        UpsError: an axis of the task's grid cannot be halved `levels` times.
    """
    if any(size % 2**levels for size in spec.lattice):
        raise UpsError(
            f"{spec.name}: the U-Net halves the grid {levels} times; {spec.lattice} is not a multiple of "
            f"{2**levels} on each axis"
        )
    return UNetNetwork(spec.axes, channels_in, channels_out, levels=levels, **sizes)


MakeNetwork = Callable[..., nn.Module]
"""Task, channels read and written, sizes -> a network, called with (batch, channel, *grid) and which axes wrap."""

NETWORKS: dict[str, MakeNetwork] = {"fno": make_fno, "unet": make_unet}

SIZES: dict[tuple[str, int], dict[str, Any]] = {
    ("fno", 1): {"width": 32, "modes": 32, "layers": 3},
    ("unet", 1): {"width": 16, "levels": 3, "residual": True},
    ("unet", 2): {"width": 16, "levels": 3, "residual": True},
}
"""Of networks in time, by architecture and dimension: best by validation after 30 to 90 CPU seconds, of some candidates
(`bench/accuracy.py search`). The FNO that was best in two dimensions failed on another task there: it has PDEBench's.
"""


PLAIN_PARTS = {"base": "persistence", "form": "increment", "moving_frame": False, "derived": False, "symmetrize": 0}
"""Structural parts of a baseline's network: none."""


class NetworkEmulator(StepEmulator):
    """A grid-to-grid network as emulator: one network per task, parameters appended as constant channels.

    Args:
        name: of the emulator.
        make: builds the network of one task; None takes the one of `NETWORKS` that is called like the emulator, in
            its usual size.
        base, form, moving_frame, derived, symmetrize: `persistence`, `increment`, False, False and 0 for the plain
            baseline; others give it the structural parts of the simulator.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSpec],
        name: str,
        make: MakeNetwork | None = None,
        *,
        base: str = "persistence",
        form: str | None = "increment",
        moving_frame: bool = False,
        derived: bool = False,
        symmetrize: int = 0,
    ) -> None:
        tasks = tasks if derived else without_derived(tasks)
        super().__init__(tasks, base=base, form=form, moving_frame=moving_frame, symmetrize=symmetrize)
        given = {"base": base, "form": form, "moving_frame": moving_frame, "derived": derived, "symmetrize": symmetrize}
        self.parts: dict[str, Any] = given
        self.custom = make is not None or self.parts != PLAIN_PARTS
        usual = {task: {} if make else SIZES.get((name, spec.axes), {}) for task, spec in tasks.items()}
        self.name, make = name, make or NETWORKS[name]
        self.networks = nn.ModuleDict(
            {
                task: make(
                    spec, spec.channels_read + len(spec.param_names), self.physics[task].rest.width, **usual[task]
                )
                for task, spec in tasks.items()
            }
        )

    def rest(self, u_hat: Float[Tensor, "batch channel *grid"], features: Tensor, task: str) -> Tensor:
        spec = self.tasks[task]
        constants = features[:, 1:].reshape(*features[:, 1:].shape, *[1] * spec.axes).expand(-1, -1, *u_hat.shape[2:])
        raw: Tensor = self.networks[task](torch.cat([u_hat, constants], 1), spec.periodic)
        return raw


class SteadyNetwork(SteadyEmulator):
    """A grid-to-grid network as emulator of steady problems: given fields in, the solution out, one network per task.

    It reads what the steady prior reads: standardised fields, where the walls are, and parameters, as channels. On a
    finer lattice than the trained one it is applied as it is.

    Args:
        name: of the emulator, and of its network in `NETWORKS`.
    """

    def __init__(self, tasks: Mapping[str, TaskSpec], name: str) -> None:
        super().__init__(tasks)
        self.name, make = name, NETWORKS[name]
        self.networks = nn.ModuleDict(
            {
                task: make(spec, len(spec.given) + GEOMETRY + len(spec.param_names), len(spec.fields))
                for task, spec in tasks.items()
            }
        )

    def solve(
        self,
        a_hat: Float[Tensor, "batch channel *grid"],
        geometry: Float[Tensor, "batch 2 *grid"],
        features: Float[Tensor, "batch parameter"],
        task: str,
    ) -> Float[Tensor, "batch channel *grid"]:
        """The solution in units of its size, from standardised fields and parameters."""
        spec = self.tasks[task]
        constants = features.reshape(*features.shape, *[1] * spec.axes).expand(-1, -1, *a_hat.shape[2:])
        found: Tensor = self.networks[task](torch.cat([a_hat, geometry, constants], 1), spec.periodic)
        return found

    def step(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        number: int = 0,
    ) -> Float[Tensor, "batch channel *grid"]:
        given, scale = context[:, -1], self.scales[task]
        geometry = self.geometry(self.shares(task, tuple(given.shape[2:]))).to(given)
        geometry = geometry.expand(len(given), *geometry.shape)
        u = self.solve(scale.enter(given, "given"), geometry, self.normalizers[task].params(params), task)
        return scale.leave(u, "sought")


def make_baseline(name: str, tasks: Mapping[str, TaskSpec]) -> Emulator:
    """The baseline called `name`: persistence, linear, fno or unet; of problems without time where the tasks are."""
    if name in NETWORKS and all(spec.steady for spec in tasks.values()):
        return SteadyNetwork(tasks, name)
    if name == "persistence":
        return Persistence(tasks)
    if name == "linear":
        return LinearEmulator(tasks)
    return NetworkEmulator(tasks, name)
