"""A step in the form the physics has: a linear base plus a learned rest, read as fluxes, sources or increments.

    u_{t+dt} = B u_t + rest,      rest_i = sum_axes (F_{i-1/2} - F_{i+1/2}) [+ S_i]      or      rest_i = dU_i,

with the linear propagator B, and fluxes F, sources S or increments dU written by a network. A flux leaves the integral
of a conserved field unchanged at any weights, trained or not; exactly so in latent space too, as long as the codec
loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.derived import Derived
from ups.models.emulator import Emulator, TaskSpec
from ups.models.frame import MovingFrame
from ups.models.layers import ModuleMap, full_precision
from ups.models.modes import ModeTransform
from ups.models.propagator import LinearPropagator
from ups.physics.equations import get_equation

REST_PER_FIELD = {"flux": (1, 0), "flux_open": (1, 1), "flux_source": (1, 1), "increment": (0, 1)}
"""Fluxes per axis and sources of each form."""

LINEAR_PAYS = 0.5
"""Share of a step up to which the linear propagator is worth its noise and its time (bench/results/ablations.md)."""


class Rest(nn.Module):
    """Reads the operator's raw output as fluxes, sources or increments, scaled to what the base leaves over.

    Args:
        channels: number of fields.
        form: `flux`, `flux_open`, `flux_source` or `increment`. Where walls are open, what passes them is a source in
            the cells beside them, and there alone.
        periodic: per axis; the flux through a wall is zero.
    """

    flux_scale: Tensor
    source_scale: Tensor

    def __init__(self, channels: int, form: str, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.channels, self.periodic, self.axes = channels, tuple(periodic), len(periodic)
        self.open = form == "flux_open"
        fluxes, sources = REST_PER_FIELD[form]
        self.fluxes, self.sources = fluxes * self.axes * channels, sources * channels
        ones = torch.ones(channels, *[1] * self.axes)
        self.register_buffer("flux_scale", ones.clone())
        self.register_buffer("source_scale", ones.clone())

    @property
    def width(self) -> int:
        """Channels the operator has to write."""
        return self.fluxes + self.sources

    def forward(self, raw: Float[Tensor, "batch width *grid"]) -> Float[Tensor, "batch channel *grid"]:
        out = raw[:, self.fluxes :] * self.source_scale if self.sources else None
        if out is not None and self.open:
            out = out * beside_walls(raw.shape[2:], self.periodic, raw.device)
        for axis in range(self.axes if self.fluxes else 0):
            flux = raw[:, axis * self.channels : (axis + 1) * self.channels] * self.flux_scale
            change = self._difference(flux, 2 + axis, self.periodic[axis])
            out = change if out is None else out + change
        assert out is not None
        return out

    @staticmethod
    def _difference(flux: Tensor, axis: int, periodic: bool) -> Tensor:
        """F_{i-1/2} - F_{i+1/2}, where entry i holds the flux through the lower face of cell i."""
        if periodic:
            return flux - flux.roll(-1, axis)
        inner = flux.narrow(axis, 1, flux.shape[axis] - 1)  # faces between cells; none passes through the walls
        wall = torch.zeros_like(flux.narrow(axis, 0, 1))
        return torch.cat([wall, inner], axis) - torch.cat([inner, wall], axis)

    @torch.no_grad()
    def fit(self, left_over: Iterable[Float[Tensor, "sample channel *grid"]]) -> None:
        """Scales the output so that raw values of unit size make changes of the size of `left_over` (u_{t+dt} - base).

        Args:
            left_over: batches, read once and one at a time; only sums over them are kept.

        The flux needed for a change r is the gradient of a potential, |F_k| = |r_k| / |D_k| per Fourier mode, with D
        the difference operator; its root mean square over samples is the scale.
        """
        samples, squares, spectrum, transform = 0, torch.zeros(()), torch.zeros(()), None
        for batch in left_over:
            transform = transform or ModeTransform(batch.shape[2:], [True] * self.axes)
            samples += len(batch)
            squares = squares + batch.square().sum([0, *range(2, batch.ndim)], dtype=torch.float64)
            spectrum = spectrum + transform(batch).abs().square().sum(0, dtype=torch.float64)
        if transform is None:
            raise ValueError("the scale of the rest needs at least one pair of frames")
        values = samples * math.prod(transform.shape)
        symbol = torch.zeros(transform.mode_shape)
        for axis, size in enumerate(transform.shape):
            frequency = torch.fft.rfftfreq(size) if axis == self.axes - 1 else torch.fft.fftfreq(size)
            symbol = symbol + (2 * torch.sin(torch.pi * frequency)).square().reshape(
                [-1 if other == axis else 1 for other in range(self.axes)]
            )
        needed = torch.where(symbol > 0, spectrum / symbol.clamp_min(1e-12), torch.zeros(()))
        needed = (needed * transform.multiplicity()).flatten(1).sum(-1)
        sources, fluxes = (squares / values).sqrt(), (needed / values).sqrt()
        tiny = torch.finfo(torch.float32).tiny
        self.source_scale.copy_(sources.clamp_min(tiny).reshape(self.source_scale.shape))
        self.flux_scale.copy_(fluxes.clamp_min(tiny).reshape(self.flux_scale.shape))


def beside_walls(shape: Sequence[int], periodic: Sequence[bool], device: torch.device) -> Tensor:
    """1 in the cells beside a wall, 0 in all others; of `shape`."""
    mask = torch.zeros(*shape, device=device)
    for axis, wraps in enumerate(periodic):
        if not wraps:
            mask.select(axis, 0).fill_(1.0)
            mask.select(axis, -1).fill_(1.0)
    return mask


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


def static_fields(spec: TaskSpec) -> Float[Tensor, "static *grid"]:
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
    """

    def __init__(
        self, tasks: Mapping[str, TaskSpec], *, base: str, form: str | None = None, moving_frame: bool = False
    ) -> None:
        super().__init__(tasks)
        self.physics: ModuleMap[Physics] = ModuleMap(
            {task: Physics(spec, base, form or spec.form, moving_frame) for task, spec in tasks.items()}
        )

    def rest(
        self, u_hat: Float[Tensor, "batch channel *grid"], features: Float[Tensor, "batch feature"], task: str
    ) -> Tensor | None:
        """The raw rest (batch, width, *grid), or None; from the channels that `Physics.read` gives."""
        raise NotImplementedError

    def advance_normalized(
        self,
        u_hat: Float[Tensor, "batch context channel *grid"],
        *,
        task: str,
        dt: Float[Tensor, " batch"],
        params: Float[Tensor, "batch parameter"],
    ) -> Float[Tensor, "batch channel *grid"]:
        """One step on the lattice, in normalised fields."""
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
    ) -> Float[Tensor, "batch channel *grid"]:
        normalizer = self.normalizers[task]
        frame: Tensor = normalizer.inverse(
            self.advance_normalized(normalizer(context), task=task, dt=dt, params=params)
        )
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
