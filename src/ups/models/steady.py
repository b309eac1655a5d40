"""Emulators of problems without time: given fields in, the solution out, on the lattice trained on or a finer one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.errors import UpsError
from ups.models.emulator import Emulator, TaskSpec
from ups.models.layers import ModuleMap
from ups.physics.equations import get_equation

GEOMETRY = 2  # channels that tell where the walls are

Role = Literal["given", "sought"]


class SteadyScale(nn.Module):
    """Fields of one task, to and from the units a network works in.

    What is given is standardised; what is sought is divided by its root mean square, so that zero stays zero.
    """

    mean: Tensor
    std: Tensor
    size: Tensor

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        shape = (len(spec.fields), *[1] * spec.axes)
        size = tuple(math.hypot(mean, std) for mean, std in zip(spec.mean, spec.std, strict=True))
        for name, values in (("mean", spec.given_mean), ("std", spec.given_std), ("size", size)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(shape), persistent=False)

    def enter(self, u: Tensor, role: Role) -> Tensor:
        return (u - self.mean) / self.std if role == "given" else u / self.size

    def leave(self, u_hat: Tensor, role: Role) -> Tensor:
        return u_hat * self.std + self.mean if role == "given" else u_hat * self.size


class SteadyEmulator(Emulator):
    """What all emulators of steady problems share: scales, the walls' geometry, and the grids they take.

    Args:
        tasks: what is known of each task; all must be steady.

    Raises:
        UpsError: a task has time.
    """

    def __init__(self, tasks: Mapping[str, TaskSpec]) -> None:
        super().__init__(tasks)
        with_time = [task for task, spec in tasks.items() if not spec.steady]
        if with_time:
            raise UpsError(f"{', '.join(with_time)}: the steady prior is for problems without time; train the operator")
        self.scales: ModuleMap[SteadyScale] = ModuleMap({task: SteadyScale(spec) for task, spec in tasks.items()})

    def shares(self, task: str, grid: tuple[int, ...]) -> tuple[Float[Tensor, " cell"], ...]:
        """Coordinates of a lattice as shares of the domain, axis by axis.

        A finer lattice begins as many of its own cells from the wall as the trained one does.
        """
        spec = self.tasks[task]
        domain = get_equation(spec.name).domain
        device, found = self.scales[task].size.device, []
        for axis, size in enumerate(grid):
            low, high = domain[axis]
            spacing = spec.spacing[axis] * spec.lattice[axis] / size
            first = (spec.origin[axis] - low) * spacing / spec.spacing[axis]
            found.append((first + spacing * torch.arange(size, device=device)) / (high - low))
        return tuple(found)

    def holding(self, geometry: Float[Tensor, "batch 2 *grid"], task: str) -> Float[Tensor, "batch 2 *grid"]:
        """The geometry where solutions vanish at the walls, as they do in proportion to it; elsewhere 1."""
        vanishes = get_equation(self.tasks[task].name).boundary == "dirichlet"
        return geometry if vanishes else torch.ones_like(geometry)

    @staticmethod
    def geometry(shares: tuple[Tensor, ...]) -> Float[Tensor, " 2 *grid"]:
        """Product and minimum over axes of 4 s (1 - s), which the symmetries of the box leave alone: g and a distance.

        Both vanish at the walls; in the middle they are 1.
        """
        bumps = torch.meshgrid(*((4 * share * (1 - share)).clamp(min=0) for share in shares), indexing="ij")
        stacked = torch.stack(bumps)
        return torch.stack([stacked.prod(0), stacked.amin(0)]).to(stacked.dtype)

    def takes_grid(self, grid: tuple[int, ...], spec: TaskSpec) -> bool:
        """Whether a grid is a whole multiple of the trained one, the same along every axis."""
        factors = {divmod(size, trained) for size, trained in zip(grid, spec.lattice, strict=True)}
        times, rest = factors.pop()
        return not factors and rest == 0 and times >= 1

    def grid_advice(self, spec: TaskSpec) -> str:
        lattice = " x ".join(map(str, spec.lattice))
        return f"give a grid that is a whole multiple of {lattice}, the same along every axis, or train on such data"

    def rollout(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        steps: int,
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        mode: str = "physical",
    ) -> Float[Tensor, "batch 1 channel *grid"]:
        """The solution; `steps` must be 1."""
        self.check(context, task, dt)
        one_step(task, steps)
        return self.step(context, task=task, dt=dt, params=params)[:, None]


def one_step(task: str, steps: int) -> None:
    """Refuses any other number of steps."""
    if steps != 1:
        raise UpsError(f"{task} has no time: it has one solution, so that steps must be 1, not {steps}")
