"""The steady prior: the solution of a problem without time, found by a few learned refinement steps.

    u_0 = 0,      u_{k+1} = u_k + g(x) drift(u_k, a, div(kappa(a) grad u_k), g, k / K),      k = 0 ... K - 1

from the given fields a (coefficients), with one network for all steps. The divergence is a finite-volume one, with
conductivities kappa that are learned functions of a, cell by cell: it is what the iterate leaves over of a conservation
law. g tells where the walls are, and vanishes there, as the solution does; where nothing flows through the walls, and
the solution does not vanish, the drift is added as it is. As the codec loses nothing, the refinement
runs on its lattice: that is the latent space, turned.

A lattice finer than the trained one by a whole factor r is r^d shifted lattices of the trained spacing, each with its
own distances to the walls; they are solved side by side and put together again. So the network meets no spacing that it
was not trained for.

Members of an ensemble are u_K + s(x) e(x), see `spread.py`; what expects the size s of the error is trained on the
errors of the refinement, which it cannot change.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ups.errors import UpsError
from ups.models.codec import Codec
from ups.models.divergence import Divergences
from ups.models.emulator import TaskSpec
from ups.models.layers import ModuleMap, full_precision
from ups.models.operator import LatentOperator
from ups.models.pyramid import halvings
from ups.models.spread import ErrorModel
from ups.models.steady import GEOMETRY, Role, SteadyEmulator, one_step


@dataclass(frozen=True)
class PriorArchitecture:
    """Plain sizes of a steady prior.

    Args:
        num_steps: refinement steps, K.
        conductivities: learned conductivities whose divergences every step sees; 0 for none.
        patch, architecture, hidden_dim, depths, heads, mlp_ratio, stem_width: of the network, see `LatentOperator`.
        spread_width: channels of the network that expects the error.
    """

    num_steps: int = 2
    conductivities: int = 4
    patch: int = 2
    architecture: str = "pdet_stack"
    hidden_dim: int = 64
    depths: tuple[int, ...] = (2,)
    heads: int = 4
    mlp_ratio: float = 2.0
    stem_width: int = 16
    spread_width: int = 16


class SteadyPrior(SteadyEmulator):
    """Finds the solution of a steady problem from what is given; a frame of given fields in, the solution out.

    Args:
        tasks: what is known of each task; all must be steady and of the same number of dimensions.
        architecture: sizes; `patch` (and the halvings of a U-Net) must divide every lattice.

    Raises:
        UpsError: a task that has time, tasks of different dimensions, or a lattice that cannot be cut into tokens.
    """

    name = "steady_prior"

    def __init__(self, tasks: Mapping[str, TaskSpec], architecture: PriorArchitecture) -> None:
        super().__init__(tasks)
        self.architecture = a = architecture
        axes = self._axes_of(tasks)
        self.codecs: ModuleMap[Codec] = ModuleMap(
            {
                task: Codec(len(spec.fields), len(spec.fields) * a.patch**axes, a.patch, spec.periodic)
                for task, spec in tasks.items()
            }
        )
        self.codecs.requires_grad_(False)  # an isometry: there is nothing to train
        self.divergences: ModuleMap[Divergences] = ModuleMap(
            {task: Divergences(len(spec.fields), a.conductivities) for task, spec in tasks.items()}
        )
        reads = {task: (2 + a.conductivities) * len(spec.fields) + GEOMETRY for task, spec in tasks.items()}
        self.drift = LatentOperator(
            axes,
            {task: (reads[task], len(spec.fields)) for task, spec in tasks.items()},
            {task: len(spec.param_names) for task, spec in tasks.items()},
            coarsen=halvings(a.patch), architecture=a.architecture, hidden_dim=a.hidden_dim, depths=a.depths,
            heads=a.heads, mlp_ratio=a.mlp_ratio, stem_width=a.stem_width,
        )  # fmt: skip
        unit = a.patch * self.drift.trunk.factor
        for task, spec in tasks.items():
            if any(size % unit for size in spec.lattice):
                grid = " x ".join(map(str, spec.lattice))
                raise UpsError(f"{task}: a grid of {grid} has no whole tokens: make each axis a multiple of {unit}")
        self.errors: ModuleMap[ErrorModel] = ModuleMap(
            {
                task: ErrorModel(axes, len(spec.fields), reads[task] + len(spec.fields), a.spread_width, spec.lattice)
                for task, spec in tasks.items()
            }
        )

    @staticmethod
    def _axes_of(tasks: Mapping[str, TaskSpec]) -> int:
        """The number of axes that all tasks have."""
        dims = {spec.axes for spec in tasks.values()}
        if len(dims) > 1:
            raise UpsError(f"one model serves tasks of one dimension, not {', '.join(tasks)}; train them apart")
        return dims.pop()

    # --- codec -------------------------------------------------------------------------------------------------------

    def encode(
        self, u: Float[Tensor, "batch channel *grid"], *, task: str, role: Role
    ) -> Float[Tensor, "batch latent *tokens"]:
        """Physical fields, given or sought, to latent tokens."""
        tokens: Tensor = self.codecs[task].encode(self.scales[task].enter(u, role))
        return tokens

    def decode(
        self, z: Float[Tensor, "batch latent *tokens"], *, task: str, role: Role
    ) -> Float[Tensor, "batch channel *grid"]:
        """Latent tokens to physical fields, given or sought."""
        return self.scales[task].leave(self.codecs[task].decode(z), role)

    def reconstruct(
        self, u: Float[Tensor, "batch channel *grid"], *, task: str
    ) -> Float[Tensor, "batch channel *grid"]:
        return self.decode(self.encode(u, task=task, role="sought"), task=task, role="sought")

    # --- refinement --------------------------------------------------------------------------------------------------

    def refine(
        self,
        a_hat: Float[Tensor, "batch channel *grid"],
        geometry: Float[Tensor, "batch 2 *grid"],
        features: Float[Tensor, "batch parameter"],
        task: str,
    ) -> list[Float[Tensor, "batch channel *grid"]]:
        """u_1 ... u_K in normalised units, on a lattice of the trained spacing."""
        u, iterates, held = torch.zeros_like(a_hat), list[Tensor](), self.holding(geometry, task)[:, :1]
        steps = self.architecture.num_steps
        for k in range(steps):
            inputs = self._inputs(u, a_hat, geometry, task)
            when = torch.cat([features.new_full((len(features), 1), k / steps), features], dim=1)
            drift: Tensor = self.drift(inputs, when, task, self.tasks[task].periodic)
            u = u + held * drift.to(u.dtype)
            iterates.append(u)
        return iterates

    def _inputs(self, u: Tensor, a_hat: Tensor, geometry: Tensor, task: str) -> Tensor:
        with full_precision(u):
            return torch.cat([u, a_hat, geometry, self.divergences[task](u, a_hat)], dim=1)

    def expected_error(
        self, iterates: list[Tensor], a_hat: Tensor, geometry: Tensor, task: str
    ) -> Float[Tensor, "batch channel *grid"]:
        """s(x), in normalised units; no gradient reaches the refinement."""
        with full_precision(a_hat):
            before = iterates[-2] if len(iterates) > 1 else torch.zeros_like(a_hat)
            last = iterates[-1].detach()
            inputs = torch.cat([self._inputs(last, a_hat, geometry, task).detach(), last - before.detach()], dim=1)
            size: Tensor = self.errors[task](inputs)
            return size * self.holding(geometry, task)[:, 1:].sqrt()

    def solve(
        self, given: Float[Tensor, "batch channel *grid"], task: str, params: Float[Tensor, "batch parameter"]
    ) -> tuple[Float[Tensor, "batch channel *grid"], Float[Tensor, "batch channel *grid"]]:
        """Solution and size of its expected error, normalised, from physical fields on the trained lattice or finer.

        The ensemble's spread is the size times the task's `level`.
        """
        spec, scale = self.tasks[task], self.scales[task]
        features = self.normalizers[task].params(params)
        grid = tuple(given.shape[2:])
        shares, factor = self.shares(task, grid), grid[0] // spec.lattice[0]
        a_hat = scale.enter(given, "given")
        u, size = torch.empty_like(a_hat), torch.empty_like(a_hat)
        for place, coarse in _shifted(shares, factor):
            part = a_hat[place]
            geometry = self.geometry(coarse).to(part).expand(len(part), -1, *spec.lattice)
            iterates = self.refine(part, geometry, features, task)
            u[place] = iterates[-1]
            size[place] = self.expected_error(iterates, part, geometry, task)
        return u, size

    # --- emulator ----------------------------------------------------------------------------------------------------

    def step(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        number: int = 0,
    ) -> Float[Tensor, "batch channel *grid"]:
        u, _ = self.solve(context[:, -1], task, params)
        return self.scales[task].leave(u, "sought")

    @property
    def draws(self) -> bool:
        return True

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
    ) -> Float[Tensor, "member batch 1 channel *grid"]:
        """Samples of the solution around the deterministic one; `steps` must be 1."""
        self.check(context, task, dt)
        one_step(task, steps)
        u, size = self.solve(context[:, -1], task, params)
        errors = self.errors[task]
        noise = errors.noise(members, len(u), self.shares(task, tuple(u.shape[2:])), rng)
        found: Tensor = self.scales[task].leave(u + errors.level * size * noise, "sought")[:, :, None]
        return found


def _shifted(shares: tuple[Tensor, ...], factor: int) -> Iterator[tuple[tuple[slice, ...], tuple[Tensor, ...]]]:
    """Every lattice of each `factor`-th cell: where it stands in a field, and its coordinates."""
    for first in itertools.product(range(factor), repeat=len(shares)):
        every = tuple(slice(start, None, factor) for start in first)
        yield (
            (slice(None), slice(None), *every),
            tuple(share[cells] for share, cells in zip(shares, every, strict=True)),
        )
