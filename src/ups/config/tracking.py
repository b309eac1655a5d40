"""Settings of where a run's log goes besides `log.jsonl`, which is always written."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ups.config.kinds import Group, Word, as_tuple


class WandbSettings(Group):
    """Weights & Biases, one run per pipeline run. The key is read from the environment by its own package, never here.

    `offline` writes the run's folder alone; `wandb sync` sends it later.
    """

    mode: Literal["disabled", "offline", "online"] = "disabled"
    """Whether, and when, records are sent."""
    project: Word = "ups"
    """Name of the project there."""
    entity: Word | None = None
    """The user or team that the project belongs to; null is the key's own."""
    group: Word | None = None
    """Name by which runs are grouped there; null groups none."""
    tags: Annotated[tuple[Word, ...], BeforeValidator(as_tuple)] = ()
    """Labels of the run there."""


class LoggingSettings(Group):
    """Sinks beside `log.jsonl`."""

    wandb: WandbSettings = WandbSettings()
    """Weights & Biases."""
    tensorboard: bool = False
    """Write `tensorboard/` in the run's folder."""

    def missing(self) -> dict[str, str]:
        """What is asked for and not installed: the setting, and what to do."""
        wanted = {
            "logging.wandb.mode": ("wandb", self.wandb.mode != "disabled", "disabled"),
            "logging.tensorboard": ("tensorboard", self.tensorboard, "false"),
        }
        return {
            setting: f"the package {package} is not installed; install it with "
            f"`pip install -c constraints.txt 'ups[{package}]'`, or make {setting} {off}"
            for setting, (package, asked, off) in wanted.items()
            if asked and importlib.util.find_spec(package) is None
        }
