"""The corrector: what a residual diffusion adds to a step of the operator, between its prediction and the next state.

It works on the codec's lattice, in normalised fields, and in the moving frame of the step where there is one: for a
codec that loses nothing this is the latent space, turned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.errors import UpsError
from ups.models.diffusion import (
    EVALUATIONS,
    SAMPLERS,
    Condition,
    Denoiser,
    DiffusionArchitecture,
    angle,
    even_times,
    on_circle,
    spread,
)
from ups.models.emulator import TaskSpec
from ups.models.layers import ModuleMap, full_precision
from ups.models.noise import MEMORY, NoiseSeries
from ups.models.step import Physics
from ups.models.views import PLAIN, Seen


class ResidualScale(nn.Module):
    """The sizes that make one task's residual and change per step unit-variance, and how far samples spread.

    `residual` and `change` are root mean squares per field, in normalised units; `widen` multiplies how far a sample is
    from the mean: 1 as trained, another value where validation roll-outs say so, as with `contract`, by which members
    are moved towards their mean in the end (`contraction`). `memory` are the correlations of errors, in units of their
    spread, that are one step apart, two, and so on.
    """

    residual: Tensor
    change: Tensor
    widen: Tensor
    contract: Tensor
    memory: Tensor

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        shape = (len(spec.fields), *[1] * spec.axes)
        self.register_buffer("residual", torch.ones(shape))
        self.register_buffer("change", torch.ones(shape))
        self.register_buffer("widen", torch.ones(()))
        self.register_buffer("contract", torch.ones(()))
        self.register_buffer("memory", torch.zeros(MEMORY))


class Corrector(nn.Module):
    """Draws u_{t+dt} given u_t and the operator's prediction of it.

    Args:
        tasks: what is known of each task.
        coarsen: of the networks, as the operator's.
        forms: how the step of each task is read: one in flux form keeps integrals, and so must what is added to it.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSpec],
        architecture: DiffusionArchitecture,
        coarsen: Sequence[int],
        forms: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.denoiser = Denoiser(tasks, architecture, coarsen)
        self.student: nn.Module | None = None
        self.scales: ModuleMap[ResidualScale] = ModuleMap({task: ResidualScale(spec) for task, spec in tasks.items()})
        self.kept = {
            task: [channel for channel, kept in enumerate(spec.conserved) if kept and forms[task] == "flux"]
            for task, spec in tasks.items()
        }

    def add_student(self) -> nn.Module:
        """A student of the flow that starts as its teacher; the one there is, if there is one."""
        if self.student is None:
            self.student = copy.deepcopy(self.denoiser.flow)
            for taught, teacher in zip(self.student.parameters(), self.denoiser.flow.parameters(), strict=True):
                taught.__dict__.update(teacher.__dict__)  # marks for the optimizer, which a copy leaves behind
        return self.student

    def widen(self, factor: float, task: str | None = None) -> None:
        """Makes samples of a task, or of all, spread `factor` times as far from their mean as they were trained to."""
        for name in self.scales if task is None else (task,):
            self.scales[name].get_buffer("widen").fill_(factor)

    def contract(self, factor: float, task: str | None = None) -> None:
        """Makes very many members of a task, or of all, end `factor` times as far from their mean (`contraction`)."""
        for name in self.scales if task is None else (task,):
            self.scales[name].get_buffer("contract").fill_(factor)

    def towards_mean(
        self, members: Float[Tensor, "member sample time ..."], task: str
    ) -> Float[Tensor, "member sample time ..."]:
        """Members of ensembles, those that are finite moved to where a calibration says, frame by frame.

        Each becomes a mean of members, itself most, so that it keeps what they all keep (member-by-member
        post-processing, Van Schaeybroeck and Vannitsem 2015).
        """
        limit = self.scales[task].contract
        if bool(limit == 1):
            return members
        finite = members.isfinite().flatten(3).all(-1)
        finite = finite.reshape(*finite.shape, *[1] * (members.ndim - 3))
        num = finite.sum(0).clamp_min(1)
        mean = torch.where(finite, members, 0.0).sum(0) / num
        return torch.where(finite, mean + contraction(limit, num) * (members - mean), members)

    @contextmanager
    def sampling(self, evaluations: int) -> Iterator[None]:
        """Inside, the teacher calls its network at most so often for a sample.

        Where it would more often, Euler's method replaces its own: of so few calls it makes more than Heun's, whose
        samples spread up to a seventh less than those of many steps.
        """
        architecture = self.architecture
        if architecture.sampler_steps * EVALUATIONS[architecture.sampler] > evaluations:
            self.architecture = replace(architecture, sampler="euler", sampler_steps=evaluations)
        try:
            yield
        finally:
            self.architecture = architecture

    def see(
        self,
        task: str,
        physics: Physics,
        u_hat: Float[Tensor, "batch context channel *grid"],
        u_next: Float[Tensor, "batch channel *grid"],
    ) -> tuple[Float[Tensor, "batch given *grid"], Tensor | None]:
        """What the networks read of a step, and the mean velocity that was taken out of it (None without a frame)."""
        mean = None
        if physics.frame is not None:
            u_hat, mean = physics.frame.enter(u_hat)
            u_next = physics.frame.follow(u_next, mean)
        change = (u_next - u_hat[:, -1]) / self.scales[task].change
        return torch.cat([physics.read(u_hat), change], dim=1), mean

    def residual(self, task: str, physics: Physics, truth: Tensor, u_next: Tensor, mean: Tensor | None) -> Tensor:
        """r = (truth - prediction) / sigma of normalised frames, seen from the moving frame."""
        if physics.frame is not None and mean is not None:
            truth, u_next = physics.frame.follow(truth, mean), physics.frame.follow(u_next, mean)
        found: Tensor = (truth - u_next) / self.scales[task].residual
        return found

    def noise(self, task: str, rng: torch.Generator | None, every: int = 1) -> NoiseSeries:
        """The noise of a roll-out in which every so-many-th step is corrected, correlated in time as errors are."""
        return NoiseSeries(rng, self.scales[task].memory.tolist(), every)

    def draw(
        self, condition: Condition, noise: NoiseSeries, *, steps: int | None = None, student: bool = True
    ) -> Float[Tensor, "batch channel *grid"]:
        """Samples of r, by the student where there is one and `student` asks for it; the mean where none spread.

        Args:
            steps: of the sampler; None takes the architecture's.
        """
        widen = self.scales[condition.task].widen
        if not bool(widen):
            return condition.mean
        if student and self.student is not None:
            xi = self._jump(condition, noise, steps or self.architecture.student_steps)
        else:
            times = even_times(steps or self.architecture.sampler_steps)
            xi = self.teach(condition, noise.draw(condition.mean), times)[-1]
        return condition.mean + widen * condition.spread * xi

    def teach(self, condition: Condition, noise: Tensor, times: list[float]) -> list[Tensor]:
        """The diffusion's own path from noise at the first of `times` to the last: w at each."""
        sampler = SAMPLERS[self.architecture.sampler]
        return sampler(lambda w, tau: self.denoiser.turn(w, tau, condition), noise, times)

    def land(self, w: Tensor, tau: Tensor | float, condition: Condition) -> Tensor:
        """Where the student's one step from tau ends: xi = sin(theta) w + cos(theta) F, as on a circle."""
        turn = self.denoiser.turn(w, tau, condition, self.student)
        times = torch.as_tensor(tau, dtype=w.dtype, device=w.device).expand(len(w))
        theta = spread(angle(times), w)
        return theta.sin() * w + theta.cos() * turn

    def _jump(self, condition: Condition, noise: NoiseSeries, steps: int) -> Tensor:
        """Multi-step consistency sampling: land, go back to the next tau with further noise, land again."""
        w = noise.draw(condition.mean)
        for start, stop in pairwise(even_times(steps)):
            w = self.land(w, start, condition)
            if stop < 1:
                w = on_circle(noise.draw(w), w, w.new_full((len(w),), stop))
        return w

    def correct(
        self,
        task: str,
        physics: Physics,
        u_hat: Float[Tensor, "batch context channel *grid"],
        u_next: Float[Tensor, "batch channel *grid"],
        features: Float[Tensor, "batch feature"],
        noise: NoiseSeries,
        *,
        student: bool = True,
        view: Seen = PLAIN,
    ) -> Float[Tensor, "batch channel *grid"]:
        """The operator's normalised prediction with a sample of its error added; one step of the noise's series.

        Args:
            view: that the fields are seen in, as the networks were trained to see them; noise is like that of before
                in the same places of the fields as they are.
        """
        with full_precision(u_next):
            given, mean = self.see(task, physics, u_hat, u_next)
            noise.move(partial(physics.views.see, view=view, change=True))
            sample = self.draw(self.denoiser.condition(given, features, task), noise, student=student)
            noise.end_step(carry_by(physics, mean))
            noise.move(partial(physics.views.back, view=view, change=True))
            if physics.frame is not None and mean is not None:
                return physics.frame.leave(physics.frame.follow(u_next, mean) + self._scaled(sample, task), mean)
            return u_next + self._scaled(sample, task)

    def _scaled(self, sample: Tensor, task: str) -> Tensor:
        """sigma r, without what would change the integral of a field that the step keeps."""
        change: Tensor = sample * self.scales[task].residual
        kept = self.kept[task]
        if kept:
            integral = change.mean(dim=tuple(range(2, change.ndim)), keepdim=True)
            mask = torch.zeros(change.shape[1], *[1] * (change.ndim - 2), device=change.device)
            mask[kept] = 1.0
            change = change - mask * integral
        return change

    @torch.no_grad()
    def fit(self, task: str, physics: Physics, steps: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Sets the scales from steps of the operator: batches of normalised (context, prediction, truth), read once.

        Raises:
            UpsError: there are none, or the operator makes no error that could be learned.
        """
        scale = self.scales[task]
        scale.residual.fill_(1.0)
        scale.change.fill_(1.0)
        channels = len(scale.residual)
        sums, batches = torch.zeros(2, channels, device=scale.residual.device), 0
        for u_hat, u_next, truth in steps:
            given, mean = self.see(task, physics, u_hat, u_next)
            over = [0, *range(2, given.ndim)]
            residual = self.residual(task, physics, truth, u_next, mean)
            sums += torch.stack([residual.square().mean(over), given[:, -channels:].square().mean(over)])
            batches += 1
        if batches == 0 or not bool((sums[0] > 0).all()):
            raise UpsError(f"{task}: the operator makes no error on its training frames: there is nothing to correct")
        sizes = (sums / batches).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        scale.residual.copy_(sizes[0].reshape(scale.residual.shape))
        scale.change.copy_(sizes[1].reshape(scale.change.shape))


def contraction(limit: Tensor, num: Tensor) -> Tensor:
    """How far some members are moved towards their mean where very many would be moved to `limit` of their distance.

    Members of deviation s about a centre from which the truth deviates by limit s: the mean of M of them is s / sqrt(M)
    off the centre. It fits their spread, (M + 1) / M c^2 s^2 = (limit^2 + 1 / M) s^2, at this c.
    """
    return ((num * limit.square() + 1) / (num + 1)).sqrt()


def limit_of(factor: float, num: int) -> float:
    """The `limit` at which `contraction` of so many members is this factor; 0 where it is less than for any limit."""
    return math.sqrt(max(0.0, (num + 1) * factor**2 - 1) / num)


def carry_by(physics: Physics, mean: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """Where a step brings what moves with its frame, of the mean velocity taken out; None where nothing moves."""
    return None if physics.frame is None or mean is None else partial(physics.frame.carry, mean=mean)
