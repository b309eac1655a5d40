"""What the objectives of codec, operator and baselines are made of, and the gradients that they give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tests.models.helpers import make_spec

from ups.data.augment import Augment
from ups.data.fields import Batch, Grid
from ups.models.architecture import Architecture
from ups.models.simulator import Simulator
from ups.physics.description import Field
from ups.physics.equations import get_equation
from ups.training.objectives import CodecObjective, EmulatorObjective, OperatorObjective, OperatorTerms
from ups.training.physics import PhysicsPriors, TaskPriors

NOTHING = OperatorTerms(forward=0.0, relative=0.0)
AUGMENTS = {"task": Augment(get_equation("burgers1d"), enabled=False)}
PRIORS = ("divergence", "conservation", "boundary", "positivity", "residual", "latent_norm", "latent_diversity")
LAWFUL = replace(
    get_equation("burgers1d"),
    fields=(Field("u", conserved=True, lower=0.0),),
    solenoidal=("u",),
    rhs=lambda u, params, spacing: -u,
)
"""An equation that has something for every prior."""


def make_simulator(latent_dim: int = 2, **changes: object) -> Simulator:
    """A simulator whose codec loses something (2 of 4 values per token), so that no term is zero by construction."""
    torch.manual_seed(0)
    simulator = Simulator(
        {"task": make_spec(**changes)},  # type: ignore[arg-type]
        Architecture(latent_dim=latent_dim, patch=4, hidden_dim=16, heads=2, depths=(1,), stem_width=8),
    )
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    if latent_dim < 4:  # away from the orthonormal start, where encoder and decoder are each other's best answer
        for p in simulator.codecs.parameters():
            p.data += 0.1 * torch.randn(p.shape)
    return simulator


def make_batch(horizon: int = 1, context: int = 1) -> Batch:
    """Four windows of noise on 32 cells, the same at every call."""
    grid = Grid(axes=((np.arange(32) + 0.5) / 32,), periodic=(True,))
    frames = torch.randn(4, context + horizon, 1, 32, generator=torch.Generator().manual_seed(1))
    return Batch(
        task="task", frames=frames, dt=torch.full((4,), 0.1), params=torch.zeros(4, 0), grid=grid, context=context
    )


def make_priors(*names: str, frequency: int = 1) -> PhysicsPriors:
    """These priors, of weight 1 each, for a task with the laws of `LAWFUL`."""
    weights = dict.fromkeys(names, 1.0)
    return PhysicsPriors({"task": TaskPriors(LAWFUL, (1 / 32,), **weights, bc_type="neumann")}, frequency)


def gradients(objective: OperatorObjective | CodecObjective | EmulatorObjective, batch: Batch) -> dict[str, float]:
    """Root-sum-square gradient of the operator's, the encoder's and the decoder's parameters."""
    module = objective.module
    module.zero_grad()
    loss, _ = objective(batch, torch.Generator().manual_seed(0))
    loss.backward()
    found = {"operator": 0.0, "encoder": 0.0, "decoder": 0.0}
    for name, p in module.named_parameters():
        part = next((part for part in ("encoder", "decoder") if name.endswith(part)), "operator")
        found[part] += 0.0 if p.grad is None else p.grad.norm().item()
    return found
