"""Physics priors: terms of the operator's loss that hold its decoded prediction to what is known of the equation.

All but those of the latents act on fields in physical units, in float32, and are dimensionless. Data is discrete: even
the true frames have a small divergence, a slope at the walls and a residual on their grid. A prior asks of a
prediction no more than the data keeps, so that the truth has no loss:

* divergence, conservation, boundary, positivity count by how much the prediction breaks a law more than the truth does;
* residual is the difference of the prediction's and the truth's, as its sign matters.

A boundary condition that differs from the equation's own (`bc_type`) is the user's word against the data's: it counts
in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ups.config.physics import PhysicsPriorSettings
from ups.errors import UpsError
from ups.models.simulator import Simulator
from ups.physics.description import Boundary, Equation
from ups.physics.equations import get_equation
from ups.physics.operators import WALL_CELLS, divergence, jacobian, wall_mismatch
from ups.training.losses import TINY

Scalar = Float[Tensor, ""]
Terms = dict[str, tuple[float, Callable[[], Tensor]]]
"""Weight and value of each term by its name."""
STILL = 0.01
"""Share of a field's size per time step: no right-hand side counts as smaller than that."""


@dataclass(frozen=True)
class Prediction:
    """A roll-out and its truth, in physical units, from the same frame on: the last that was given.

    Args:
        frames, truth: first the given frame, then those predicted.
        latents: of the predicted frames.
        params: coefficients of each sample.
        dt: time between frames of each sample.
    """

    frames: Float[Tensor, "batch frame channel *grid"]
    truth: Float[Tensor, "batch frame channel *grid"]
    latents: Float[Tensor, "batch step latent *tokens"]
    params: Float[Tensor, "batch parameter"]
    dt: Float[Tensor, " batch"]


@dataclass(frozen=True)
class TaskPriors:
    """The priors of one task.

    Args:
        equation: what the prediction is held to.
        spacing: distance of the cell centres along each axis.
        divergence, conservation, boundary, positivity, residual, latent_norm, latent_diversity: weights of the terms.
        bc_type: the condition asked for at the ends of every axis; None is the equation's own.
        bc_value: at Dirichlet walls; None is the equation's own.
    """

    equation: Equation
    spacing: tuple[float, ...]
    divergence: float = 0.0
    conservation: float = 0.0
    boundary: float = 0.0
    positivity: float = 0.0
    residual: float = 0.0
    latent_norm: float = 0.0
    latent_diversity: float = 0.0
    bc_type: Boundary | None = None
    bc_value: float | None = None

    def terms(self, found: Prediction) -> Terms:
        """Every term with its weight, not yet computed."""
        equation, spacing = self.equation, self.spacing
        return {
            "divergence": (self.divergence, lambda: divergence_loss(found, equation, spacing)),
            "conservation": (self.conservation, lambda: conservation_loss(found, equation, spacing)),
            "boundary": (self.boundary, lambda: boundary_loss(found, equation, self.bc_type, self.bc_value)),
            "positivity": (self.positivity, lambda: positivity_loss(found, equation)),
            "residual": (self.residual, lambda: residual_loss(found, equation, spacing)),
            "latent_norm": (self.latent_norm, lambda: latent_norm_loss(found.latents)),
            "latent_diversity": (self.latent_diversity, lambda: latent_diversity_loss(found.latents)),
        }


@dataclass(frozen=True)
class PhysicsPriors:
    """The priors of every task; `PhysicsPriors.none` has no terms.

    Args:
        tasks: priors by the task's name.
        frequency: they are computed for every so many batches.
    """

    none: ClassVar[PhysicsPriors]
    tasks: Mapping[str, TaskPriors]
    frequency: int = 1

    def due(self, batches: int) -> bool:
        """Whether there are terms to compute after so many batches."""
        return bool(self.tasks) and batches % self.frequency == 0

    def terms(self, task: str, found: Prediction) -> Terms:
        """The terms of a task's prediction."""
        return self.tasks[task].terms(found)


PhysicsPriors.none = PhysicsPriors({})


def divergence_loss(found: Prediction, equation: Equation, spacing: tuple[float, ...]) -> Scalar:
    """mean |div u| of the predicted solenoidal vector, beyond the truth's, over the truth's rms |grad u|."""
    channels, periodic = list(equation.solenoidal_channels), equation.periodic
    predicted, truth = (u[:, 1:, channels].flatten(0, 1) for u in (found.frames, found.truth))
    scale = jacobian(truth, spacing, periodic).square().flatten(3).mean(3).sum((1, 2)).sqrt().clamp_min(TINY)
    broken, allowed = (divergence(u, spacing, periodic).abs().flatten(1).mean(1) for u in (predicted, truth))
    return ((broken - allowed).relu() / scale).mean()


def conservation_loss(found: Prediction, equation: Equation, spacing: tuple[float, ...]) -> Scalar:
    """mean |I(p_k) - I(u_0)| / I(|u_0|) of every invariant I and predicted frame, beyond the truth's own loss."""
    given, steps = found.truth[:, 0], found.truth.shape[1] - 1
    start, scale = (equation.invariants(u, found.params, spacing) for u in (given, given.abs()))
    repeated = found.params.repeat_interleave(steps, dim=0)
    predicted, truth = (
        equation.invariants(u[:, 1:].flatten(0, 1), repeated, spacing) for u in (found.frames, found.truth)
    )
    terms = []
    for name in start:
        broken, allowed = (
            (values[name].unflatten(0, (-1, steps)) - start[name][:, None]).abs() for values in (predicted, truth)
        )
        terms.append(((broken - allowed).relu() / scale[name].abs().clamp_min(TINY)[:, None]).mean())
    return torch.stack(terms).mean()


def boundary_loss(found: Prediction, equation: Equation, bc_type: Boundary | None, bc_value: float | None) -> Scalar:
    """rms mismatch of the boundary condition over the rms of the true field, mean over channels; see `wall_mismatch`.

    Beyond the truth's mismatch where the condition is the equation's own; in full where it is another.
    """
    condition = bc_type or equation.boundary
    value = equation.boundary_value if bc_value is None else bc_value
    own = condition == equation.boundary and (condition != "dirichlet" or value == equation.boundary_value)
    predicted, truth = (u[:, 1:].flatten(0, 1) for u in (found.frames, found.truth))
    broken, allowed = (
        torch.cat([wall_mismatch(u, axis, condition, value) for axis in range(equation.dim)], dim=2)
        for u in (predicted, truth)
    )
    excess = (_rms(broken) - own * _rms(allowed)).relu()
    return (excess / _rms(truth.flatten(2)).clamp_min(TINY)).mean()


def positivity_loss(found: Prediction, equation: Equation) -> Scalar:
    """mean (relu(lower - u) + relu(u - upper)) of the bounded fields, beyond the truth's, over the rms of the truth."""
    terms = []
    for channel, field in enumerate(equation.fields):
        predicted, truth = (u[:, 1:, channel].flatten(0, 1).flatten(1) for u in (found.frames, found.truth))
        if field.lower is None and field.upper is None:
            continue
        broken, allowed = ((u - u.clamp(field.lower, field.upper)).abs().mean(1) for u in (predicted, truth))
        terms.append(((broken - allowed).relu() / _rms(truth).clamp_min(TINY)).mean())
    return torch.stack(terms).mean()


def residual_loss(found: Prediction, equation: Equation, spacing: tuple[float, ...]) -> Scalar:
    """mean |R(p) - R(u)|² / (|f(u)|² + (0.01 |u| / dt)²) over samples and channels, with the trapezoidal residual

        R(u) = (u_{k+1} - u_k) / dt - (f(u_k) + f(u_{k+1})) / 2

    and the equation's right-hand side f by central differences. A step of the data is often many times what the
    trapezoidal rule can follow: R(u) itself is then as large as f(u), and to bring R(p) to zero would train the
    operator away from the solution. The difference vanishes for the truth at any dt; it weighs an error e by
    e / dt - f'(u) e / 2, which is to say fine scales more than coarse ones where there is diffusion.
    """
    if equation.rhs is None:
        raise ValueError(f"{equation.name} has no right-hand side")
    frames = found.frames.shape[1]
    params = found.params.repeat_interleave(frames, dim=0)
    dt = found.dt.reshape(-1, *[1] * (found.frames.ndim - 1))
    residuals, rates = [], []
    for u in (found.frames, found.truth):
        rate = equation.rhs(u.flatten(0, 1), params, spacing).unflatten(0, (-1, frames))
        residuals.append(u.diff(dim=1) / dt - 0.5 * (rate[:, 1:] + rate[:, :-1]))
        rates.append(rate)
    size = [0.5 * (square[:, 1:] + square[:, :-1]) for square in (_mean_square(rates[1]), _mean_square(found.truth))]
    scale = size[0] + size[1] * (STILL / found.dt[:, None, None]).square()
    return (_mean_square(residuals[0] - residuals[1]) / scale.clamp_min(TINY**2)).mean()


def latent_norm_loss(z: Float[Tensor, "batch step latent *tokens"]) -> Scalar:
    """mean (|z| - 1)² over tokens, with |z| the root mean square of a token's values."""
    loss: Tensor = (_rms(z.flatten(3).mT) - 1).square().mean()
    return loss


def latent_diversity_loss(z: Float[Tensor, "batch step latent *tokens"]) -> Scalar:
    """mean |cos(z_i, z_j)| over the pairs i != j of a frame's tokens."""
    tokens = z.flatten(0, 1).flatten(2)
    tokens = tokens / tokens.norm(dim=1, keepdim=True).clamp_min(TINY)
    num = tokens.shape[2]
    cosine = tokens.mT @ tokens
    others = 1 - torch.eye(num, device=z.device, dtype=z.dtype)
    loss: Tensor = (cosine.abs() * others).sum(dim=(1, 2)).mean() / (num * (num - 1))
    return loss


def _rms(values: Float[Tensor, "*lead point"]) -> Float[Tensor, "*lead"]:
    """Root mean square over the last dim; its gradient at zero is zero."""
    norm: Tensor = values.norm(dim=-1)
    return norm / math.sqrt(values.shape[-1])


def _mean_square(u: Float[Tensor, "batch frame channel *grid"]) -> Float[Tensor, "batch frame channel"]:
    return u.square().flatten(3).mean(3)


def build_priors(settings: PhysicsPriorSettings, simulator: Simulator) -> PhysicsPriors:
    """The priors of the simulator's tasks, as the settings ask for them.

    Args:
        simulator: whether its codecs are trained must be said by `requires_grad` already.

    Raises:
        UpsError: a term is asked for that says nothing about a task, or is zero whatever the operator does.
    """
    if not settings.enabled:
        return PhysicsPriors.none
    tasks = {}
    for task, spec in simulator.tasks.items():
        equation = get_equation(spec.name)
        for key in settings.weighted:
            reason = _nothing_for(key, settings.bc_type, equation, simulator, task)
            if reason is not None:
                raise UpsError(
                    f"training.physics_priors.{key} is {getattr(settings, key):g}, but {task} has nothing for it: "
                    f"{reason}; give {key} 0"
                )
        tasks[task] = TaskPriors(
            equation,
            spec.spacing,
            divergence=settings.lambda_divergence,
            conservation=settings.lambda_conservation,
            boundary=settings.lambda_boundary,
            positivity=settings.lambda_positivity,
            residual=settings.lambda_residual,
            latent_norm=settings.lambda_latent_norm,
            latent_diversity=settings.lambda_latent_diversity,
            bc_type=settings.bc_type,
            bc_value=settings.bc_value,
        )
    return PhysicsPriors(tasks, settings.frequency)


def _nothing_for(key: str, bc_type: Boundary | None, equation: Equation, simulator: Simulator, task: str) -> str | None:
    """Why the term of a setting says nothing about a task; None where it does."""
    codec, lattice = simulator.codecs[task], simulator.tasks[task].lattice
    names = ", ".join(field.name for field in equation.fields)
    if key == "lambda_divergence" and not equation.solenoidal:
        return f"its fields ({names}) form no velocity that has to be free of divergence"
    if key == "lambda_conservation":
        if not any(field.conserved for field in equation.fields):
            return f"it conserves the integral of none of its fields ({names})"
        form = simulator.architecture.form or simulator.tasks[task].form
        if form == "flux" and codec.lossless and not any(p.requires_grad for p in codec.parameters()):
            return "its steps are fluxes and its codec loses nothing, so that the term is zero by construction"
    if key == "lambda_boundary":
        if equation.boundary == "periodic" and bc_type is None:
            return "its domain is periodic and has no walls (give bc_type to ask for a condition all the same)"
        if min(lattice) < WALL_CELLS:
            return f"the condition is read from {WALL_CELLS} cells, and its grid has fewer"
    if key == "lambda_positivity" and all(field.lower is None and field.upper is None for field in equation.fields):
        return f"none of its fields ({names}) has a bound"
    if key == "lambda_residual" and equation.rhs is None:
        return f"its fields ({names}) alone do not determine how they change (there is no right-hand side)"
    if key == "lambda_latent_diversity" and lattice == (simulator.architecture.patch,) * len(lattice):
        return "its frames are a single token each"
    return None
