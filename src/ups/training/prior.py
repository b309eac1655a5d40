"""The objective of the stage `steady_prior`: every refinement step supervised, later ones more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ups.data.augment import Augment
from ups.data.fields import Batch
from ups.models.baselines import SteadyNetwork
from ups.models.layers import full_precision
from ups.models.prior import SteadyPrior
from ups.models.steady import SteadyEmulator
from ups.training.losses import relative_l2

SPREAD_WEIGHT = (
    0.1  # of the loss of the expected error: its gradient, which is its own, shall not fill the clipped norm
)
LEVELS = 61  # of the ensemble's spread that calibration tries


class SteadyPriorObjective:
    """L = sum_k w_k relL2(u_k, u) + the CRPS of the expected errors, which trains these alone; w_k ~ k², of sum 1.

    Given fields, solution and distances to the walls of a sample are transformed alike by the equation's symmetries: a
    lattice need not be symmetric in the domain.

    Args:
        prior: its codec is not trained.
        augments: the random symmetries of each task.
    """

    def __init__(self, prior: SteadyPrior, augments: Mapping[str, Augment]) -> None:
        self.module = prior
        self.prior, self.augments = prior, augments

    def plan(self, epoch: int, fraction: float) -> int:
        """A sample has its one solution, always."""
        return 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        task, scale = batch.task, self.prior.scales[batch.task]
        given, sought, geometry = transformed(self.prior, self.augments, batch, rng)
        a_hat, truth = scale.enter(given, "given"), scale.enter(sought, "sought")
        features = self.prior.normalizers[task].params(batch.params)
        iterates = self.prior.refine(a_hat, geometry, features, task)
        with full_precision(truth):
            losses = torch.stack([relative_l2(u, truth) for u in iterates])
            weights = torch.arange(1, len(losses) + 1, device=losses.device).square().to(losses)
            refinement = (weights / weights.sum() * losses).sum()
            size = self.prior.expected_error(iterates, a_hat, geometry, task)
            error = iterates[-1].detach() - truth
            spread = gaussian_crps(error, size).flatten(1).mean(1) / truth.flatten(1).square().mean(1).sqrt()
            if self.prior.training:
                shares = self.prior.shares(task, tuple(truth.shape[2:]))
                self.prior.errors[task].observe(error / size.clamp(min=1e-3 * size.detach().mean()), shares)
        loss = refinement + SPREAD_WEIGHT * spread.mean()
        first, last = losses.detach()[[0, -1]]
        return loss, {"first": first, "relative": last, "spread": spread.detach().mean()}


class SteadyNetworkObjective:
    """Relative L2 of a steady network's solution, under the symmetries that the prior is trained with.

    Args:
        network: what is trained.
        augments: the random symmetries of each task.
    """

    def __init__(self, network: SteadyNetwork, augments: Mapping[str, Augment]) -> None:
        self.module = network
        self.network, self.augments = network, augments

    def plan(self, epoch: int, fraction: float) -> int:
        """A sample has its one solution, always."""
        return 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        task, scale = batch.task, self.network.scales[batch.task]
        given, sought, geometry = transformed(self.network, self.augments, batch, rng)
        features = self.network.normalizers[task].params(batch.params)
        found = self.network.solve(scale.enter(given, "given"), geometry, features, task)
        with full_precision(sought):
            loss = relative_l2(found, scale.enter(sought, "sought"))
        return loss, {"relative": loss.detach()}


def transformed(
    emulator: SteadyEmulator, augments: Mapping[str, Augment], batch: Batch, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """What is given, what is sought, and the geometry, each (batch, channel, *grid), after the same symmetries."""
    shares = emulator.shares(batch.task, tuple(batch.frames.shape[3:]))
    geometry = emulator.geometry(shares).to(batch.frames)  # (2, *grid): goes along as two more frames
    more = geometry[None, :, None].expand(len(batch), -1, *batch.frames.shape[2:])
    frames = augments[batch.task](replace(batch, frames=torch.cat([batch.frames, more], dim=1)), rng).frames
    # An odd field's sign is not the geometry's, which is never negative.
    return frames[:, 0], frames[:, 1], frames[:, 2:, 0].abs()


def gaussian_crps(error: Tensor, size: Tensor) -> Tensor:
    """CRPS of a normal distribution about a prediction: s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = error / s.

    Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation".
    """
    size = size.clamp(min=1e-8)
    z = error / size
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return size * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


@torch.no_grad()
def calibrate(prior: SteadyPrior, batches: Iterable[Batch]) -> dict[str, float]:
    """Sets the level of every task's spread to the one of least CRPS on validation data, and returns it.

    Errors on the training data, which the expected ones are learned from, are smaller than on others.

    Args:
        prior: in evaluation mode; its `errors[task].level` is set.
        batches: of validation samples.
    """
    levels = torch.logspace(-1, 1, LEVELS)
    totals: dict[str, Tensor] = {}
    for batch in batches:
        scale, params = prior.scales[batch.task], batch.params
        u, size = prior.solve(batch.frames[:, 0], batch.task, params)
        error = u - scale.enter(batch.frames[:, 1], "sought")
        scores = torch.stack([gaussian_crps(error, level * size).sum() for level in levels.to(u)]).cpu()
        totals[batch.task] = totals.get(batch.task, torch.zeros(LEVELS)) + scores
    found = {task: float(levels[total.argmin()]) for task, total in totals.items()}
    for task, level in found.items():
        prior.errors[task].level.fill_(level)
    return found
