"""How the networks that a simulator is compared with are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ups.config.learning import OptimizerSettings
from ups.data.augment import Augment
from ups.models.baselines import SteadyNetwork
from ups.models.emulator import Emulator
from ups.models.step import StepEmulator
from ups.training.objectives import EmulatorObjective
from ups.training.prior import SteadyNetworkObjective


@dataclass(frozen=True)
class BaselineTraining:
    """AdamW with a cosine to one percent.

    Args:
        lr: its greatest rate.
        batch_size: windows per batch, where the settings leave it to the program.
    """

    lr: float
    batch_size: int
    weight_decay: float = 1e-4

    @property
    def optimizer(self) -> OptimizerSettings:
        """The optimizer's settings."""
        return OptimizerSettings(name="adamw", lr=self.lr, weight_decay=self.weight_decay)


TRAININGS: dict[tuple[str, int], BaselineTraining] = {
    ("fno", 1): BaselineTraining(8e-3, 32, weight_decay=0.0),
    ("fno", 2): BaselineTraining(8e-3, 4),
    ("fno", 3): BaselineTraining(8e-3, 2),
    ("unet", 1): BaselineTraining(8e-3, 16),
    ("unet", 2): BaselineTraining(4e-3, 4),
    ("unet", 3): BaselineTraining(1e-3, 2),
}
"""By architecture and dimension. Those of the networks that `ups.models.baselines.SIZES` has are the best by validation
of the searches of `bench/accuracy.py` (bench/results/accuracy/search.jsonl); of the FNO in two dimensions the rate is,
with another size and batch; nothing was searched in three."""

STEADY = {"fno": BaselineTraining(8e-3, 4), "unet": BaselineTraining(1e-3, 4)}
"""Of problems without time; not searched."""


def baseline_training(emulator: Emulator) -> BaselineTraining:
    """How a network of this name is trained on these tasks."""
    if isinstance(emulator, SteadyNetwork):
        return STEADY[emulator.name]
    return TRAININGS[emulator.name, max(spec.axes for spec in emulator.tasks.values())]


def baseline_objective(
    emulator: Emulator, augments: Mapping[str, Augment]
) -> EmulatorObjective | SteadyNetworkObjective:
    """What a network other than the simulator is trained by: a step in time, or the solution where there is none."""
    if isinstance(emulator, SteadyNetwork):
        return SteadyNetworkObjective(emulator, augments)
    if isinstance(emulator, StepEmulator):
        return EmulatorObjective(emulator, augments)
    raise TypeError(f"'{emulator.name}' has nothing to train")
