"""The simulator: codec, linear base and latent operator composed into one step, rolled out in latent or physical space.

The step itself is that of `step.py`, between decoder and encoder: z_{t+dt} = E(B D z_t + rest(D z_t)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ups.errors import UpsError, UsageError
from ups.models.architecture import Architecture
from ups.models.codec import Codec
from ups.models.corrector import Corrector
from ups.models.diffusion import DiffusionArchitecture
from ups.models.emulator import TaskSpec
from ups.models.layers import ModuleMap, full_precision
from ups.models.lowpass import low_pass
from ups.models.noise import NoiseSeries
from ups.models.operator import LatentOperator
from ups.models.step import StepEmulator
from ups.models.views import Seen
from ups.physics.guards import Guards

Correct = Callable[[Tensor, Tensor, Seen], Tensor]
"""(normalised context, normalised prediction, the view that both are seen in) -> corrected prediction."""


class Simulator(StepEmulator):
    """The latent simulator of one or more tasks of the same number of dimensions.

    Args:
        tasks: what is known of each task.
        architecture: sizes; `patch` must divide every lattice, and so must `coarsen` and the trunk's own halving.
            A step keeps the share `cutoff` of the wave numbers of periodic axes, and ends with the `guards` (of
            `ups.physics.guards`). Of an ensemble every `corrector_every`-th is corrected. `mode` chose the weights.
    """

    name = "ups"

    def __init__(self, tasks: Mapping[str, TaskSpec], architecture: Architecture) -> None:
        a = self.architecture = architecture
        super().__init__(tasks, base=a.base, form=a.form, moving_frame=a.moving_frame)
        dims = {spec.axes for spec in tasks.values()}
        if len(dims) > 1:
            raise UpsError(
                "one model serves tasks of one dimension, "
                f"not {', '.join(f'{t} ({s.axes}D)' for t, s in tasks.items())}; train them apart"
            )
        self.codecs: ModuleMap[Codec] = ModuleMap(
            {
                task: Codec(len(spec.fields), architecture.latent_dim, architecture.patch, spec.periodic)
                for task, spec in tasks.items()
            }
        )
        self.operator = LatentOperator(
            dims.pop(),
            {task: (spec.channels_read, self.physics[task].rest.width) for task, spec in tasks.items()},
            {task: len(spec.param_names) for task, spec in tasks.items()},
            coarsen=a.coarsen, architecture=a.architecture, hidden_dim=a.hidden_dim, depths=a.depths, heads=a.heads,
            window=a.window, mlp_ratio=a.mlp_ratio, qk_norm=a.qk_norm, drop_path=a.drop_path, stem_width=a.stem_width,
            use_activation_checkpoint=a.use_activation_checkpoint,
        )  # fmt: skip
        self.corrector: Corrector | None = None
        self.guards = {task: self._guards_of(task, a.guards) for task in tasks}
        for task, spec in tasks.items():
            self._check_lattice(task, spec.lattice)
            self.physics[task].views.keep_tokens(1 if self.codecs[task].lossless else a.patch)

    def _guards_of(self, task: str, names: tuple[str, ...]) -> Guards:
        """The guards of these names for a task, whose codec must give back what they leave."""
        if not names:
            return Guards.none
        guards = Guards.of(task, **dict.fromkeys(names, True), lengths=self.tasks[task].lengths)
        codec, a = self.codecs[task], self.architecture
        if not codec.lossless:
            raise UsageError(
                f"{task}: guards are exact only where the codec loses nothing, but latent.dim {a.latent_dim} is less "
                f"than the {codec.values} values of a token (latent.patch {a.patch}): what is decoded would not keep "
                f"guards.{' and guards.'.join(names)}; raise latent.dim to {codec.values}, lower latent.patch, or "
                "leave the guards out"
            )
        if not codec.exact:
            raise UsageError(
                f"{task}: guards are exact only where decoding undoes encoding, which this model's codec was trained "
                "away from (latent.codec.train_with_operator); leave the guards out"
            )
        return guards

    @contextmanager
    def switched(self, task: str, guards: tuple[str, ...] | None = None, **sizes: int | None) -> Iterator[None]:
        """Inside, a task's steps end with these guards, and these sizes of the architecture hold; None leaves each."""
        before = self.guards, self.architecture
        try:
            if guards is not None:
                self.guards = {**self.guards, task: self._guards_of(task, guards)}
            given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
            self.architecture = replace(self.architecture, **given)
            yield
        finally:
            self.guards, self.architecture = before

    def _check_lattice(self, task: str, lattice: Sequence[int]) -> None:
        a, factor = self.architecture, self.operator.trunk.factor
        grid = " x ".join(map(str, lattice))
        if any(size % a.patch for size in lattice):
            raise UpsError(
                f"{task}: a grid of {grid} cannot be cut into latent tokens: each axis must be a multiple of {a.patch} "
                "(latent.patch)"
            )
        unit = math.prod(a.coarsen) * factor * (a.window or 1)
        if any(size % unit for size in lattice):
            asked = [f"operator.pdet.coarsen {' x '.join(map(str, a.coarsen))}"] if a.coarsen else []
            asked += [f"halvings of pdet_unet {factor}"] if factor > 1 else []
            asked += [f"operator.pdet.window {a.window}"] if a.window else []
            raise UpsError(
                f"{task}: a grid of {grid} cannot be cut into the operator's tokens: each axis must be a multiple of "
                f"{unit} ({', '.join(asked)})"
            )

    def add_corrector(self, architecture: DiffusionArchitecture) -> Corrector:
        """An untrained residual diffusion of this operator; it takes the place of another one."""
        forms = {task: self.architecture.form or spec.form for task, spec in self.tasks.items()}
        self.corrector = Corrector(self.tasks, architecture, self.architecture.coarsen, forms)
        return self.corrector

    @property
    def symmetrize(self) -> int:
        return self.architecture.symmetrize

    # --- codec -------------------------------------------------------------------------------------------------------

    def encode(
        self, u: Float[Tensor, "batch context channel *grid"], *, task: str
    ) -> Float[Tensor, "batch context latent *tokens"]:
        """Physical frames to latent tokens, frame by frame."""
        with full_precision(u):
            u_hat = self.normalizers[task](u)
            z: Tensor = self.codecs[task].encode(u_hat.flatten(0, 1)).unflatten(0, u.shape[:2])
        return z

    def decode(
        self, z: Float[Tensor, "batch time latent *tokens"], *, task: str
    ) -> Float[Tensor, "batch time channel *grid"]:
        """Latent tokens to physical frames on the lattice."""
        with full_precision(z):
            u_hat = self.codecs[task].decode(z.flatten(0, 1))
            frames: Tensor = self.normalizers[task].inverse(u_hat).unflatten(0, z.shape[:2])
        return frames

    def decode_at(
        self, z: Float[Tensor, "batch time latent *tokens"], points: Float[Tensor, "point axis"], *, task: str
    ) -> Float[Tensor, "batch time channel point"]:
        """Latent tokens to physical values at any points, given in physical coordinates."""
        spec = self.tasks[task]
        origin, spacing = (
            torch.tensor(values, dtype=torch.float64, device=points.device) for values in (spec.origin, spec.spacing)
        )
        normalizer = self.normalizers[task]
        with full_precision(z):
            u_hat = self.codecs[task].decode_at(z.flatten(0, 1), (points.double() - origin) / spacing)
            values = u_hat * normalizer.std.reshape(-1, 1) + normalizer.mean.reshape(-1, 1)
        frames: Tensor = values.unflatten(0, z.shape[:2])
        return frames

    def reconstruct(
        self, u: Float[Tensor, "batch channel *grid"], *, task: str
    ) -> Float[Tensor, "batch channel *grid"]:
        return self.decode(self.encode(u[:, None], task=task), task=task)[:, 0]

    # --- step --------------------------------------------------------------------------------------------------------

    def advance(
        self,
        z: Float[Tensor, "batch context latent *tokens"],
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        correct: Correct | None = None,
        start: Float[Tensor, "batch channel *grid"] | None = None,
        number: int | None = None,
        members: int = 1,
    ) -> Float[Tensor, "batch latent *tokens"]:
        """G: the latents `dt` after the last of `z`.

        Args:
            correct: what becomes of the operator's prediction before it is encoded; None leaves it.
            start: normalised frame whose integrals a guard keeps; None takes the last of `z`.
            number: of steps before it in the roll-out; see `look`.
            members: of an ensemble that `z` holds, one after the other.
        """
        codec, guards, views = self.codecs[task], self.guards[task], self.physics[task].views
        view, count = self.look(task, number, members)
        with full_precision(z):
            u_hat = codec.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            seen = views.see(u_hat, view)
        u_next = self.advance_normalized(seen, task=task, dt=dt, params=params, count=count)
        u_next = low_pass(u_next, self.tasks[task].periodic, self.architecture.cutoff)
        if correct is not None:
            u_next = correct(seen, u_next, view)
        u_next = views.back(u_next, view)
        with full_precision(z):
            if guards.active:
                normalizer = self.normalizers[task]
                before = normalizer.inverse(u_hat[:, -1] if start is None else start)
                u_next = normalizer(guards(normalizer.inverse(u_next), before))
            z_next: Tensor = codec.encode(u_next)
        return z_next

    def rest(
        self, u_hat: Float[Tensor, "batch channel *grid"], features: Float[Tensor, "batch feature"], task: str
    ) -> Tensor:
        raw: Tensor = self.operator(u_hat, features, task, self.tasks[task].periodic)
        return raw

    def step(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        number: int = 0,
    ) -> Float[Tensor, "batch channel *grid"]:
        z = self.advance(self.encode(context, task=task), task=task, dt=dt, params=params, number=number)
        return self.decode(z[:, None], task=task)[:, 0]

    def rollout_latent(
        self,
        context: Tensor,
        steps: int,
        *,
        task: str,
        dt: Tensor,
        params: Tensor,
        mode: str = "latent",
        correct: Correct | None = None,
        members: int = 1,
    ) -> Float[Tensor, "batch steps latent *tokens"]:
        """Latents of `steps` steps after the context frames; mode `physical` decodes and encodes again after each."""
        self.check(context, task, dt)
        z, latents = self.encode(context, task=task), []
        start = self.normalizers[task](context[:, -1])
        for number in range(steps):
            now = correct if (number + 1) % self.architecture.corrector_every == 0 else None
            z_next = self.advance(
                z, task=task, dt=dt, params=params, correct=now, start=start, number=number, members=members
            )[:, None]
            latents.append(z_next)
            if mode == "physical":
                z_next = self.encode(self.decode(z_next, task=task), task=task)
            z = torch.cat([z[:, 1:], z_next], dim=1)
        return torch.cat(latents, dim=1)

    @property
    def draws(self) -> bool:
        return self.corrector is not None

    def rollout_members(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        steps: int,
        *,
        members: int,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        mode: str = "latent",
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "member batch steps channel *grid"]:
        z = self.rollout_members_latent(
            context, steps, members=members, task=task, dt=dt, params=params, mode=mode, rng=rng
        )
        frames: Tensor = self.decode(z, task=task).unflatten(0, (members, len(context)))
        return frames

    def rollout_members_latent(
        self,
        context: Tensor,
        steps: int,
        *,
        members: int,
        task: str,
        dt: Tensor,
        params: Tensor,
        mode: str = "latent",
        rng: torch.Generator | None = None,
    ) -> Float[Tensor, "member_batch steps latent *tokens"]:
        """As `rollout_latent`, of all members of all samples, one member after the other."""
        if self.corrector is None:
            raise UpsError("this model draws no members: train the stage diff_residual, or ask for none")
        self.check(context, task, dt)
        context, dt, params = (part.repeat(members, *[1] * (part.ndim - 1)) for part in (context, dt, params))
        features = self.normalizers[task].features(dt, params)
        noise = self.corrector.noise(task, rng, self.architecture.corrector_every)
        correct = partial(self._corrected, task=task, features=features, noise=noise)
        z = self.rollout_latent(
            context, steps, task=task, dt=dt, params=params, mode=mode, correct=correct, members=members
        )
        return self.corrector.towards_mean(z.unflatten(0, (members, -1)), task).flatten(0, 1)

    def _corrected(
        self, u_hat: Tensor, u_next: Tensor, view: Seen, *, task: str, features: Tensor, noise: NoiseSeries
    ) -> Tensor:
        assert self.corrector is not None
        return self.corrector.correct(task, self.physics[task], u_hat, u_next, features, noise, view=view)

    def rollout(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        steps: int,
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        mode: str = "latent",
    ) -> Float[Tensor, "batch steps channel *grid"]:
        return self.decode(self.rollout_latent(context, steps, task=task, dt=dt, params=params, mode=mode), task=task)

    @torch.no_grad()
    def fit(self, task: str, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """As `StepEmulator.fit`; a lossy codec starts at the principal components of the first frames."""
        super().fit(task, pairs)
        self.codecs[task].fit_first(self.normalizers[task](before) for before, _, _ in pairs)
