"""A step in the form the physics has: a linear base plus a learned rest, read as fluxes, sources or increments.

    u_{t+dt} = B u_t + rest,      rest_i = sum_axes (F_{i-1/2} - F_{i+1/2}) [+ S_i]      or      rest_i = dU_i,

with the linear propagator B, and fluxes F, sources S or increments dU written by a network. A flux leaves the integral
of a conserved field unchanged at any weights, trained or not; exactly so in latent space too, as long as the codec
loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.derived import Derived
from ups.models.emulator import Emulator, TaskSpec
from ups.models.frame import MovingFrame
from ups.models.layers import ModuleMap, full_precision
from ups.models.propagator import LinearPropagator
from ups.models.rest import Rest
from ups.models.views import PLAIN, Seen, Views
from ups.physics.equations import get_equation

LINEAR_PAYS = 0.5
"""Share of a step up to which the linear propagator is worth its noise and its time (bench/results/ablations.md)."""


class Physics(nn.Module):
    """What a step knows without learning: base, form of the rest, moving frame, forcing, derived fields, for one task.

    Attributes:
        is_linear: whether the linear propagator is the base; otherwise the last frame is. Base `auto` learns it in
            fitting, and keeps it in the state of the module.
        base_leaves: |u_{t+dt} - B u_t| / |u_{t+dt} - u_t| over the pairs of frames fitted to; None before.
    """

    static: Tensor

    def __init__(self, spec: TaskSpec, base: str, form: str, moving_frame: bool) -> None:
        super().__init__()
        channels = len(spec.fields)
        self.chooses, self.is_linear = base == "auto", base != "persistence"
        self.base_leaves: float | None = None
        self.base = (
            LinearPropagator(
                spec.lattice,
                spec.periodic,
                channels,
                [column for column, std in enumerate(spec.param_std) if std > 0],
                spec.conserved,
                static=spec.static,
            )
            if self.is_linear
            else None
        )
        self.rest = Rest(channels, form, spec.periodic)
        self.frame = MovingFrame(spec) if moving_frame and spec.galilean else None
        self.register_buffer("static", static_fields(spec))
        self.derived = Derived(spec)
        self.views = Views(spec, self.static)

    def read(self, u_hat: Float[Tensor, "batch context channel *grid"]) -> Float[Tensor, "batch read *grid"]:
        """What a network reads of a step: the fields of every context frame, the static ones, the last frame's derived.

        The frames are as the moving frame sees them, where there is one.
        """
        seen, derived = self.with_static(u_hat.flatten(1, 2)), self.derived(u_hat[:, -1])
        return seen if derived is None else torch.cat([seen, derived], dim=1)

    def with_static(self, u_hat: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch more *grid"]:
        """The fields, and after them those that do not change."""
        if not len(self.static):
            return u_hat
        return torch.cat([u_hat, self.static.expand(len(u_hat), *self.static.shape)], dim=1)

    def advance_base(self, u_hat: Tensor, params: Tensor) -> Tensor:
        if self.base is None or not self.is_linear:
            return u_hat
        moved: Tensor = self.base(self.with_static(u_hat), params)
        return moved

    @torch.no_grad()
    def choose_base(self, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Takes the last frame as base where the fitted propagator leaves half of a step or more to be learned.

        Args:
            pairs: batches of normalised (u_t, u_{t+dt}, params), as the step meets them.
        """
        if self.base is None:
            return
        left = moved = 0.0
        for before, after, params in pairs:
            left += float((after - self.base(self.with_static(before), params)).square().sum(dtype=torch.float64))
            moved += float((after - before).square().sum(dtype=torch.float64))
        self.base_leaves = math.sqrt(left / moved) if moved > 0 else 1.0
        if self.chooses:
            self.is_linear = self.base_leaves < LINEAR_PAYS

    def get_extra_state(self) -> Tensor:
        """Which base it is, for `state_dict`."""
        return torch.tensor(self.is_linear)

    def set_extra_state(self, state: Tensor) -> None:
        """Takes over which base it is, from `state_dict`."""
        self.is_linear = bool(state)

    def seen_by_step(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """A pair of normalised frames a step apart (batch, channel, *grid), as base and rest meet them."""
        if self.frame is None:
            return before, after
        still, mean = self.frame.enter(before[:, None])
        return still[:, 0], self.frame.follow(after, mean)


def static_fields(spec: TaskSpec) -> Float[Tensor, " static *grid"]:
    """The forcing of a task's equation on its lattice, at unit root mean square; no channels where there is none."""
    forcing = get_equation(spec.name).forcing if spec.static else None
    if forcing is None:
        return torch.zeros(0, *spec.lattice)
    axes = tuple(
        origin + step * torch.arange(size, dtype=torch.float64)
        for origin, step, size in zip(spec.origin, spec.spacing, spec.lattice, strict=True)
    )
    fields = forcing(axes)
    return (fields / fields.square().mean().sqrt()).float()


class StepEmulator(Emulator):
    """An emulator whose step is base plus rest; subclasses say where the rest comes from.

    Args:
        base: `linear` (fitted propagator), `persistence` (the last frame), or `auto`: the first, if it leaves less than
            half of a step (root mean square).
        form: how the rest is read; None takes each equation's own.
        moving_frame: take the mean velocity out of the step where the equation is Galilean-invariant.
        symmetrize: views of the field that each step of a roll-out is the mean over (`views.py`), other ones at every
            step; 0 sees it as it is.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSpec],
        *,
        base: str,
        form: str | None = None,
        moving_frame: bool = False,
        symmetrize: int = 0,
    ) -> None:
        super().__init__(tasks)
        self._symmetrize = symmetrize
        self.physics: ModuleMap[Physics] = ModuleMap(
            {task: Physics(spec, base, form or spec.form, moving_frame) for task, spec in tasks.items()}
        )

    def rest(
        self, u_hat: Float[Tensor, "batch channel *grid"], features: Float[Tensor, "batch feature"], task: str
    ) -> Tensor | None:
        """The raw rest (batch, width, *grid), or None; from the channels that `Physics.read` gives."""
        raise NotImplementedError

    @property
    def symmetrize(self) -> int:
        """Views of the field that each step of a roll-out is the mean over."""
        return self._symmetrize

    def look(self, task: str, number: int | None, members: int = 1) -> tuple[Seen, int]:
        """How a roll-out's step after `number` others sees the fields, and of how many views of that it is the mean.

        None is a step of training, which sees them as they are: its augmentation has moved them. Members of an ensemble
        each see them in another view, a step ahead of the one before: so their mean is one over views, too.
        """
        if number is None or not self.symmetrize:
            return PLAIN, 1
        views = self.physics[task].views
        seen, counts = zip(*(views.of_step(number + ahead, self.symmetrize) for ahead in range(members)), strict=True)
        return seen if members > 1 else seen[0], counts[0]

    def advance_normalized(
        self,
        u_hat: Float[Tensor, "batch context channel *grid"],
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        count: int = 1,
    ) -> Float[Tensor, "batch channel *grid"]:
        """One step on the lattice, in normalised fields: the mean over the first `count` views of them."""
        if count == 1:
            return self._advance(u_hat, task, dt, params)
        views = self.physics[task].views
        chosen = [views.at(index) for index in range(count)]  # one after another: in the memory of one
        total = sum(views.back(self._advance(views.see(u_hat, view), task, dt, params), view) for view in chosen)
        return torch.as_tensor(total) / count

    def _advance(self, u_hat: Tensor, task: str, dt: Tensor, params: Tensor) -> Tensor:
        physics, normalizer = self.physics[task], self.normalizers[task]
        with full_precision(u_hat):
            if physics.frame is not None:
                u_hat, mean = physics.frame.enter(u_hat)
            base: Tensor = physics.advance_base(u_hat[:, -1], normalizer.params(params))
            features, seen = normalizer.features(dt, params), physics.read(u_hat)
        # The network alone runs under the caller's autocast.
        raw = self.rest(seen, features, task)
        with full_precision(u_hat):
            u_next = base if raw is None else base + physics.rest(raw.to(base.dtype))
            return u_next if physics.frame is None else physics.frame.leave(u_next, mean)

    def step(
        self,
        context: Float[Tensor, "batch context channel *grid"],
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
        number: int = 0,
    ) -> Float[Tensor, "batch channel *grid"]:
        normalizer, views = self.normalizers[task], self.physics[task].views
        view, count = self.look(task, number)
        seen = views.see(normalizer(context), view)
        found = self.advance_normalized(seen, task=task, dt=dt, params=params, count=count)
        frame: Tensor = normalizer.inverse(views.back(found, view))
        return frame

    @torch.no_grad()
    def left_over(
        self,
        task: str,
        before: Float[Tensor, "batch channel *grid"],
        after: Float[Tensor, "batch channel *grid"],
        params: Float[Tensor, "batch parameter"],
    ) -> Float[Tensor, " batch"]:
        """|u_{t+dt} - base(u_t)| / |u_{t+dt}| of physical frames a step apart: what of it has to be learned."""
        physics, normalizer = self.physics[task], self.normalizers[task]
        start, end = physics.seen_by_step(normalizer(before), normalizer(after))
        return self._share(end - physics.advance_base(start, normalizer.params(params)), normalizer(after))

    @torch.no_grad()
    def step_error(
        self,
        task: str,
        frames: Float[Tensor, "batch time channel *grid"],
        params: Float[Tensor, "batch parameter"],
    ) -> Float[Tensor, " batch"]:
        """|u_{t+dt} - prediction| / |u_{t+dt}| for the last of the physical frames, the others being its context."""
        u_hat, dt = self.normalizers[task](frames), params.new_full((len(frames),), self.tasks[task].dt)
        found = self.advance_normalized(u_hat[:, :-1], task=task, dt=dt, params=params)
        return self._share(found - u_hat[:, -1], u_hat[:, -1])

    @staticmethod
    def _share(error: Tensor, frame: Tensor) -> Float[Tensor, " batch"]:
        """|error| / |frame|; a field that has all but vanished counts as a hundredth of the usual size."""
        floor = 0.01 * math.sqrt(frame[0].numel())
        share: Tensor = error.flatten(1).norm(dim=1) / frame.flatten(1).norm(dim=1).clamp_min(floor)
        return share

    @torch.no_grad()
    def fit(self, task: str, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Fits what has a closed form to training frames: the linear base and the scale of the rest.

        Args:
            pairs: batches of (u_t, u_{t+dt}, params), physical: (batch, channel, *grid) twice, (batch, parameter). They
                are read once for each thing that is fitted, and only one batch at a time is held.
        """
        if isinstance(pairs, Iterator):
            raise ValueError("pairs are read more than once: give a list or another iterable that starts anew")
        physics, normalizer = self.physics[task], self.normalizers[task]

        def hats() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for before, after, params in pairs:
                yield (*physics.seen_by_step(normalizer(before), normalizer(after)), normalizer.params(params))

        if physics.base is not None:
            if physics.base.blend.varying:
                physics.base.choose_knots(torch.cat([normalizer.params(params) for _, _, params in pairs]))
                physics.base.measure_drift(hats())
            physics.base.fit((physics.with_static(before), after, params) for before, after, params in hats())
            physics.choose_base(hats())
        physics.rest.fit(after - physics.advance_base(before, params) for before, after, params in hats())
        physics.derived.fit(before for before, _, _ in hats())
