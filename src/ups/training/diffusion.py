"""The objectives of the corrector: flow matching of the operator's residual, and its distillation into a few steps.

The operator is a frozen teacher here: its weights are the averaged ones of its own stage, in evaluation mode, and no
gradient reaches it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ups.data.augment import Augment
from ups.data.fields import Batch
from ups.errors import UpsError
from ups.models.corrector import carry_by
from ups.models.diffusion import Condition, angle, even_times, on_circle, spread
from ups.models.layers import full_precision
from ups.models.noise import MEMORY, standard_noise
from ups.models.simulator import Simulator
from ups.models.views import Seen
from ups.training.losses import least_norm, relative_l2, spectral_loss
from ups.training.objectives import Metrics, Scalar

Draw = Callable[[int, torch.Generator], Float[Tensor, " batch"]]
"""(how many, generator) -> tau in (0, 1)."""


def tau_distribution(text: str) -> Draw:
    """How tau is drawn: `uniform`, `logit_normal` (Esser et al. 2024) or `beta(a,b)`.

    Raises:
        UpsError: the text names none of them.
    """
    if text == "uniform":
        return lambda num, rng: torch.rand(num, generator=rng, device=rng.device)
    if text == "logit_normal":
        return lambda num, rng: torch.randn(num, generator=rng, device=rng.device).sigmoid()
    found = re.fullmatch(r"beta\(\s*([0-9.]+)\s*,\s*([0-9.]+)\s*\)", text)
    if found is None or min(map(float, found.groups())) <= 0:
        raise UpsError(
            f"diffusion.tau_distribution is '{text}'; it must be uniform, logit_normal or beta(a,b), a, b > 0"
        )
    shapes = torch.tensor([float(value) for value in found.groups()])

    def draw(num: int, rng: torch.Generator) -> Tensor:
        gamma = torch._standard_gamma(shapes.to(rng.device).expand(num, 2).contiguous(), generator=rng)
        return gamma[:, 0] / gamma.sum(1)

    return draw


class ResidualSteps:
    """Steps of a frozen operator on batches of windows: (condition, residual) of each, and what led to it.

    Args:
        simulator: its corrector is what is trained; everything else is put in evaluation mode and frozen.
    """

    def __init__(self, simulator: Simulator, augments: Mapping[str, Augment]) -> None:
        if simulator.corrector is None:
            raise UpsError("there is no corrector to train; add one to the simulator first")
        simulator.requires_grad_(False).eval()
        self.simulator, self.augments, self.corrector = simulator, augments, simulator.corrector

    @torch.no_grad()
    def predict(self, batch: Batch, number: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised context, prediction and truth, and a step's features, as that of a roll-out sees them.

        Args:
            number: of steps before it in the roll-out, whose first step sees the fields as they are.
        """
        simulator, task = self.simulator, batch.task
        normalizer, seen = simulator.normalizers[task], list[tuple[Tensor, Tensor]]()
        view, _ = simulator.look(task, number)

        def note(u_hat: Tensor, u_next: Tensor, _: Seen) -> Tensor:
            seen.append((u_hat, u_next))
            return u_next

        codec = simulator.codecs[task]
        with full_precision(batch.frames):  # roll-outs know no other
            z = simulator.encode(batch.frames[:, : batch.context + 1], task=task)
            given = z[:, : batch.context]
            simulator.advance(given, task=task, dt=batch.dt, params=batch.params, correct=note, number=number)
            # What a lossy codec cannot hold is not the corrector's to add.
            truth = normalizer(batch.targets[:, 0]) if codec.lossless else codec.decode(z[:, batch.context])
            truth = simulator.physics[task].views.see(truth, view)
            features = normalizer.features(batch.dt, batch.params)
        return *seen[0], truth, features

    def of(self, batch: Batch, rng: torch.Generator) -> tuple[Condition, Tensor, Tensor]:
        """Condition and residual r of an augmented batch, and sigma r = 0 as a field: the operator's prediction."""
        batch = self.augments[batch.task](batch, rng)
        context, u_next, truth, features = self.predict(batch)
        task, physics = batch.task, self.simulator.physics[batch.task]
        with torch.no_grad(), full_precision(u_next):
            given, mean = self.corrector.see(task, physics, context, u_next)
            residual = self.corrector.residual(task, physics, truth, u_next, mean)
            seen = u_next if physics.frame is None or mean is None else physics.frame.follow(u_next, mean)
        return self.corrector.denoiser.condition(given, features, task), residual, seen


@dataclass(frozen=True)
class DiffusionTerms:
    """Weights of the optional terms, on the field that one step of the flow from x_tau lands at."""

    spectral: float = 0.0
    relative: float = 0.0


class DiffusionObjective:
    """Conditional flow matching of the normalised residual (see `ups.models.diffusion`).

    L = mean (mu - r)^2 + mean [(r - mu)^2 / (2 s^2) + log s] + mean (F - (cos(theta) xi - sin(theta) eps))^2
        + lambda_spectral spectral(u^, u) + lambda_relative relL2(u^, u),    u^ = G(u_t) + sigma (mu + s xi^),

    xi^ = sin(theta) w + cos(theta) F. Up to a factor of tau alone, the third term is mean (v - (xi - eps))^2.

    The second term trains s alone (mu is held), the third the flow alone (mu and s are held).
    """

    def __init__(
        self,
        simulator: Simulator,
        augments: Mapping[str, Augment],
        taus: Draw,
        terms: DiffusionTerms | None = None,
    ) -> None:
        self.steps, self.taus, self.terms = ResidualSteps(simulator, augments), taus, terms or DiffusionTerms()
        self.corrector = self.steps.corrector
        self.module = self.corrector
        self.corrector.requires_grad_(True)
        if self.corrector.student is not None:
            self.corrector.student.requires_grad_(False)

    def plan(self, epoch: int, fraction: float) -> int:
        return 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Scalar, Metrics]:
        condition, residual, seen = self.steps.of(batch, rng)
        denoiser = self.corrector.denoiser
        off = residual - condition.mean
        held = Condition(
            condition.task, condition.given, condition.features, condition.mean.detach(), condition.spread.detach()
        )
        xi = (residual - held.mean) / held.spread
        tau = self.taus(len(residual), rng).to(residual.device)
        noise, theta = standard_noise(residual, rng), spread(angle(tau), residual)
        w = on_circle(noise, xi, tau)
        turn = denoiser.turn(w, tau, held)
        losses = {
            "mean": off.square().mean(),
            "spread": ((off.detach() / condition.spread).square() / 2 + condition.spread.log()).mean(),
            "flow": (turn - (theta.cos() * xi - theta.sin() * noise)).square().mean(),
        }
        if self.terms.spectral or self.terms.relative:
            sigma = self.corrector.scales[batch.task].residual
            landed = seen + sigma * (held.mean + held.spread * (theta.sin() * w + theta.cos() * turn))
            truth = seen + sigma * residual
            if self.terms.spectral:
                losses["spectral"] = self.terms.spectral * spectral_loss(landed, truth)
            if self.terms.relative:
                losses["relative"] = self.terms.relative * relative_l2(landed, truth, least_norm(truth))
        return torch.stack(list(losses.values())).sum(), {name: value.detach() for name, value in losses.items()}


@dataclass(frozen=True)
class DistillTerms:
    """How the student is taught.

    Args:
        num_taus: places on the teacher's path from which the student lands, per epoch where there are several: the
            last one holds for all further epochs.
        micro_batch: windows whose graphs are held at once.
        teacher_steps: of the teacher's path.
    """

    num_taus: tuple[int, ...] = (3,)
    micro_batch: int = 8
    teacher_steps: int = 8


class DistillObjective:
    """One step of the student from a place on the frozen teacher's path must land where that path ends.

    L = mean over taus of |land(w_tau, tau) - xi|^2

    with w_tau the teacher's own states between noise and sample. Operator and teacher run once per batch and without a
    graph; the student's gradients are summed over micro-batches.

    (Luhman and Luhman 2021, Knowledge Distillation in Iterative Generative Models. Song et al. 2023, Consistency
    Models.)
    """

    def __init__(self, simulator: Simulator, augments: Mapping[str, Augment], terms: DistillTerms) -> None:
        self.steps, self.terms = ResidualSteps(simulator, augments), terms
        self.corrector = self.steps.corrector
        self.student = self.corrector.add_student().requires_grad_(True)
        self.module = self.student
        self.epoch = 0

    def plan(self, epoch: int, fraction: float) -> int:
        self.epoch = epoch
        return 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Scalar, Metrics]:
        total = self.distance(batch, rng, self._starts(rng))
        return total, {"distance": total.detach()}

    def distance(self, batch: Batch, rng: torch.Generator, starts: list[int]) -> Scalar:
        """L from these places on the teacher's path, by their number."""
        times = even_times(self.terms.teacher_steps)
        with torch.no_grad():
            condition, _, _ = self.steps.of(batch, rng)
            path = self.corrector.teach(condition, standard_noise(condition.mean, rng), times)
        total = torch.zeros((), device=path[-1].device)
        size, step = len(path[-1]), self.terms.micro_batch
        for low in range(0, size, step):
            rows = slice(low, low + step)
            targets = [(path[place][rows], times[place], path[-1][rows]) for place in starts]
            part = condition.part(rows)
            # Of all micro-batches, only one's graph is held at a time: it is made again when its gradient is taken.
            held = size > step and torch.is_grad_enabled()
            loss = checkpoint(self._miss, targets, part, use_reentrant=False) if held else self._miss(targets, part)
            total = total + loss * (len(part.spread) / size)
        return total

    def own_places(self) -> list[int]:
        """Places on the path, by their number, that the student samples from; the nearest there are, noise first."""
        last, taus = self.terms.teacher_steps, even_times(self.corrector.architecture.student_steps)[:-1]
        return sorted({min(round(tau * last), last - 1) for tau in taus})

    def _starts(self, rng: torch.Generator) -> list[int]:
        """Places on the path to land from: noise, what else the student samples from, and others, in this order."""
        schedule = self.terms.num_taus
        num = min(schedule[min(self.epoch, len(schedule) - 1)], self.terms.teacher_steps)
        first, *own = self.own_places()
        others = [place for place in range(self.terms.teacher_steps) if place not in (first, *own)]
        return [first, *shuffled(own, rng), *shuffled(others, rng)][:num]

    def _miss(self, targets: list[tuple[Tensor, float, Tensor]], condition: Condition) -> Tensor:
        """Mean over (w, tau, xi) of how far from xi the student lands, squared."""
        far = [self.corrector.land(w, tau, condition) - end for w, tau, end in targets]
        return torch.stack([one.square().mean() for one in far]).mean()


def shuffled(places: list[int], rng: torch.Generator) -> list[int]:
    """The places in random order."""
    return [places[index] for index in torch.randperm(len(places), generator=rng, device=rng.device).tolist()]


def fit_scales(steps: ResidualSteps, task: str, batches: Iterable[Batch]) -> None:
    """Sets the corrector's scales of a task from the operator's steps on some of its train batches, read once.

    Raises:
        UpsError: there are none, or the operator makes no error that could be learned.
    """
    steps.corrector.fit(task, steps.simulator.physics[task], (steps.predict(batch)[:3] for batch in batches))


@torch.no_grad()
def fit_memory(steps: ResidualSteps, windows: Batch) -> None:
    """Sets how alike the residuals of neighbouring steps are, from true windows of several frames to predict.

    c_l is the correlation of xi = (r - mu) / s with what it was l steps before, carried along by the moving frame, at
    the windows' first `MEMORY` lags; those that they are too short for are 0. Every step sees the fields as that of a
    roll-out does, whose errors are less alike for it.
    """
    corrector, task, physics = steps.corrector, windows.task, steps.simulator.physics[windows.task]
    past: list[Tensor] = []  # newest first
    sums, counts = torch.zeros(2, MEMORY + 1, device=windows.frames.device)
    for first in range(windows.horizon):
        part = replace(windows, frames=windows.frames[:, first : first + windows.context + 1])
        context, u_next, truth, features = steps.predict(part, number=first)
        view, _ = steps.simulator.look(task, first)
        past = [physics.views.see(before, view, change=True) for before in past]
        given, mean = corrector.see(task, physics, context, u_next)
        residual = corrector.residual(task, physics, truth, u_next, mean)
        condition = corrector.denoiser.condition(given, features, task)
        past = [(residual - condition.mean) / condition.spread, *past[:MEMORY]]
        for lag, before in enumerate(past):
            sums[lag] += (past[0] * before).mean()
            counts[lag] += 1
        if (carry := carry_by(physics, mean)) is not None:
            past = [carry(before) for before in past]
        past = [physics.views.back(before, view, change=True) for before in past]
    means = sums / counts.clamp_min(1)
    found = means[1:] / means[0]
    corrector.scales[task].memory.copy_(torch.where(found.isfinite(), found, 0.0))
