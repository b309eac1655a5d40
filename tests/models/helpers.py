"""Small task descriptions for tests of models."""

from __future__ import annotations

from typing import Any

from ups.models.emulator import TaskSpec


def make_spec(axes: int = 1, size: int = 32, **changes: Any) -> TaskSpec:
    """A periodic, conserved task of one field `u` on `size` cells per axis of the unit box."""
    values: dict[str, Any] = {
        "name": "task",
        "fields": ("u",),
        "lattice": (size,) * axes,
        "spacing": (1 / size,) * axes,
        "origin": (0.5 / size,) * axes,
        "periodic": (True,) * axes,
        "form": "flux",
        "conserved": (True,),
        "context": 1,
        "dt": 0.1,
        "mean": (0.3,),
        "std": (1.7,),
    }
    return TaskSpec(**{**values, **changes})
