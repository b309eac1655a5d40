"""The generative model of what the operator leaves over: conditional flow matching on its normalised residual.

    r = (u_{t+dt} - G(u_t)) / sigma,    xi = (r - mu) / s,    x_tau = (1 - tau) eps + tau xi,    v = xi - eps

with eps ~ N(0, I) and sigma the residual's root mean square per field over the train split. Two networks share the
work: one gives mean and spread of r at every point, mu and s, from (u_t, G(u_t), dt, params), so that quiet regions
stay quiet; the other learns the flow of what is left, correlations in space and the shape of the distribution. The
spread is a softplus: as small as it likes, but where a field is more violent than any seen in training, it grows no
faster than what the network reads.

The flow is learned and integrated on the circle on which x_tau has unit variance,

    w = x_tau / sqrt(tau^2 + (1 - tau)^2) = cos(theta) eps + sin(theta) xi,    theta = atan2(tau, 1 - tau),
    dw / dtheta = cos(theta) xi - sin(theta) eps,  which is  F(w, tau, ...),

so that F = 0 samples N(mu, s^2) exactly in any number of steps, and input and target of F have unit variance at every
tau. Path, sampler and denoiser are three small things.

References:
    Lipman et al. 2023, Flow Matching for Generative Modeling. Liu et al. 2023, Flow Straight and Fast.
    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models (preconditioning). Albergo and
    Vanden-Eijnden 2023, Building Normalizing Flows with Stochastic Interpolants (the circle).
    Mardani et al. 2025, Residual corrective diffusion modeling (a regressed mean, and a diffusion of what is left).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.emulator import TaskSpec
from ups.models.layers import BoundaryConv, Conditioner, Film
from ups.models.operator import LatentOperator

WAVES = 8  # cosines by which a network is told tau
UNIT = math.log(math.e - 1)  # softplus(UNIT) = 1: what s is before training
LEAST_SPREAD = -10.0  # of what s is the softplus of

Turn = Callable[[Float[Tensor, "batch channel *grid"], float], Tensor]
"""(w, tau) -> dw / dtheta."""


# --- path ------------------------------------------------------------------------------------------------------------


def angle(tau: Tensor | float) -> Tensor:
    """theta = atan2(tau, 1 - tau): 0 at noise, pi / 2 at data."""
    tau = torch.as_tensor(tau)
    return torch.atan2(tau, 1 - tau)


def on_circle(noise: Tensor, data: Tensor, tau: Float[Tensor, " batch"]) -> Tensor:
    """w = cos(theta) noise + sin(theta) data."""
    theta = spread(angle(tau), data)
    return theta.cos() * noise + theta.sin() * data


def spread(values: Float[Tensor, " batch"], like: Tensor) -> Tensor:
    """One value per sample, shaped to multiply a field."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


# --- sampler ---------------------------------------------------------------------------------------------------------


def heun(turn: Turn, w: Tensor, times: Sequence[float]) -> list[Tensor]:
    """States at `times` of dw / dtheta = turn(w, tau), second order; two evaluations per step.

    Args:
        w: state at the first time.
        times: values of tau, increasing, within [0, 1].
    """
    states = [w]
    for start, stop in pairwise(times):
        step = float(angle(stop) - angle(start))
        slope = turn(w, start)
        w = w + 0.5 * step * (slope + turn(w + step * slope, stop))
        states.append(w)
    return states


def euler(turn: Turn, w: Tensor, times: Sequence[float]) -> list[Tensor]:
    """As `heun`, first order; one evaluation per step."""
    states = [w]
    for start, stop in pairwise(times):
        w = w + float(angle(stop) - angle(start)) * turn(w, start)
        states.append(w)
    return states


SAMPLERS: dict[str, Callable[[Turn, Tensor, Sequence[float]], list[Tensor]]] = {"heun": heun, "euler": euler}
EVALUATIONS = {"heun": 2, "euler": 1}
"""How often a sampler's step calls the network."""


def even_times(steps: int) -> list[float]:
    """0 = tau_0 < ... < tau_steps = 1, evenly spaced."""
    return [step / steps for step in range(steps + 1)]


# --- denoiser --------------------------------------------------------------------------------------------------------


class PointMlp(nn.Module):
    """A network of every cell on its own, without mixing: what token mixing is compared with.

    Same calling convention as `LatentOperator`.
    """

    def __init__(
        self, axes: int, channels: Mapping[str, tuple[int, int]], parameters: Mapping[str, int], width: int, depth: int
    ) -> None:
        super().__init__()
        self.conditioner = Conditioner(dict(parameters), width)
        self.inlets = nn.ModuleDict({task: BoundaryConv(axes, read, width, 1) for task, (read, _) in channels.items()})
        self.layers = nn.ModuleList([BoundaryConv(axes, width, width, 1) for _ in range(depth)])
        self.films = nn.ModuleList([Film(width, width) for _ in range(depth)])
        self.outlets = nn.ModuleDict(
            {task: BoundaryConv(axes, width, write, 1, gain=0.0) for task, (_, write) in channels.items()}
        )
        for end in (*self.inlets.values(), *self.outlets.values()):
            end.weight.no_muon = True  # type: ignore[union-attr]  # a few physical channels are no matrix to orthogonalise

    def forward(
        self,
        u: Float[Tensor, "batch channel *grid"],
        features: Float[Tensor, "batch feature"],
        task: str,
        periodic: Sequence[bool],
    ) -> Float[Tensor, "batch written *grid"]:
        condition = self.conditioner(task, features)
        x = self.inlets[task](u, periodic)
        for layer, film in zip(self.layers, self.films, strict=True):
            x = x + nn.functional.gelu(film(layer(x, periodic), condition))
        out: Tensor = self.outlets[task](x, periodic)
        return out


@dataclass(frozen=True)
class DiffusionArchitecture:
    """Plain sizes of a residual diffusion, and how it is sampled.

    Args:
        architecture: `transformer` (networks of the operator's own kind) or `mlp` (every cell on its own).
        hidden_dim: token width.
        depth: blocks.
        sampler: `heun` or `euler`.
        sampler_steps: from noise to sample.
        student_steps: of the distilled network, where there is one.
        stem_width: channels at full resolution.
    """

    architecture: Literal["transformer", "mlp"] = "transformer"
    hidden_dim: int = 64
    depth: int = 3
    sampler: Literal["heun", "euler"] = "heun"
    sampler_steps: int = 16
    student_steps: int = 2
    stem_width: int = 32


@dataclass(frozen=True)
class Condition:
    """What samples of one batch are conditioned on, and the moments that follow from it.

    Args:
        given: fields that the networks read: context, static and derived ones, the operator's change.
        features: dt and parameters as the networks read them.
        mean, spread: mu and s of the residual in units of sigma.
    """

    task: str
    given: Float[Tensor, "batch given *grid"]
    features: Float[Tensor, "batch feature"]
    mean: Float[Tensor, "batch channel *grid"]
    spread: Float[Tensor, "batch channel *grid"]

    def part(self, rows: slice) -> Condition:
        """Some samples of the batch."""
        return Condition(self.task, self.given[rows], self.features[rows], self.mean[rows], self.spread[rows])


class Denoiser(nn.Module):
    """Moments and flow of normalised residuals, for tasks of the same number of dimensions.

    Args:
        tasks: what is known of each task.
        coarsen: how a transformer's tokens are made of the lattice, as the operator's are.
    """

    def __init__(
        self, tasks: Mapping[str, TaskSpec], architecture: DiffusionArchitecture, coarsen: Sequence[int]
    ) -> None:
        super().__init__()
        self.architecture, self.coarsen = architecture, tuple(coarsen)
        self.fields = {task: len(spec.fields) for task, spec in tasks.items()}
        self.periodic = {task: spec.periodic for task, spec in tasks.items()}
        given = {task: spec.channels_read + self.fields[task] for task, spec in tasks.items()}
        counts = {task: len(spec.param_names) for task, spec in tasks.items()}
        self.moments = self._network({t: (given[t], 2 * c) for t, c in self.fields.items()}, counts)
        self.flow = self._network(
            {t: (given[t] + 2 * c, c) for t, c in self.fields.items()}, {t: n + WAVES for t, n in counts.items()}
        )

    def _network(self, channels: dict[str, tuple[int, int]], parameters: dict[str, int]) -> nn.Module:
        a, axes = self.architecture, max(map(len, self.periodic.values()))
        if a.architecture == "mlp":
            return PointMlp(axes, channels, parameters, a.hidden_dim, a.depth)
        return LatentOperator(
            axes, channels, parameters, coarsen=self.coarsen, hidden_dim=a.hidden_dim, depths=(a.depth,),
            stem_width=a.stem_width,
        )  # fmt: skip

    def condition(
        self, given: Float[Tensor, "batch given *grid"], features: Float[Tensor, "batch feature"], task: str
    ) -> Condition:
        """The moments of the residual, with what they were computed from."""
        found = self.moments(given, features, task, self.periodic[task]).float()
        mean, raw = found.split(self.fields[task], dim=1)
        return Condition(task, given, features, mean, nn.functional.softplus(raw.clamp_min(LEAST_SPREAD) + UNIT))

    def turn(
        self,
        w: Float[Tensor, "batch channel *grid"],
        tau: Float[Tensor, " batch"] | float,
        condition: Condition,
        flow: nn.Module | None = None,
    ) -> Float[Tensor, "batch channel *grid"]:
        """dw / dtheta = F at tau, by `flow` where it is given instead of the denoiser's own network."""
        times = torch.as_tensor(tau, dtype=w.dtype, device=w.device).expand(len(w))
        network = self.flow if flow is None else flow
        found: Tensor = network(
            torch.cat([condition.given, w, condition.spread.log()], dim=1),
            torch.cat([condition.features, waves(times)], dim=1),
            condition.task,
            self.periodic[condition.task],
        )
        return found.to(w.dtype)


def waves(tau: Float[Tensor, " batch"]) -> Float[Tensor, "batch wave"]:
    """cos(pi k tau), k = 1 ... WAVES."""
    return torch.cos(math.pi * tau[:, None] * torch.arange(1, WAVES + 1, device=tau.device))
