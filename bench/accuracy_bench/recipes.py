"""How each peer is built and trained, by dimension: the winners of the searches, best by validation.

`bench/accuracy.py search` measures the candidates of `SEARCHES`, round by round, each round from the winner of those
before; its lines stand in `results/accuracy/search.jsonl`. A peer is searched on one task per dimension, and uses that
recipe on all tasks of the dimension, but for those of `TASK_RECIPES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ups.config.learning import OptimizerSettings


@dataclass(frozen=True)
class Recipe:
    """Sizes and training of one peer.

    Args:
        sizes: keyword arguments of its network.
        lr, weight_decay: of AdamW, with a cosine to one percent.
        batch_size: windows per batch; None is the stack's own choice for the dimension.
    """

    sizes: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 4e-3
    weight_decay: float = 1e-4
    batch_size: int | None = None

    @property
    def optimizer(self) -> OptimizerSettings:
        """The optimizer's settings."""
        return OptimizerSettings(name="adamw", lr=self.lr, weight_decay=self.weight_decay)

    def changed(self, **changes: Any) -> Recipe:
        """With other values; those that are no argument of a recipe are sizes."""
        own = {key: value for key, value in changes.items() if key in ("lr", "weight_decay", "batch_size")}
        sizes = {key: value for key, value in changes.items() if key not in own}
        return replace(self, **own, sizes={**self.sizes, **sizes})

    def to_json(self) -> dict[str, Any]:
        """For a line."""
        return {**asdict(self), "sizes": dict(self.sizes)}


STARTS: dict[tuple[str, int], Recipe] = {
    ("fno", 1): Recipe({"width": 32, "modes": 32, "position": False}, lr=4e-3, batch_size=32),
    ("fno", 2): Recipe({"width": 20, "modes": 12, "position": False}, lr=4e-3),
    ("unet", 1): Recipe({"width": 16, "levels": 4}, lr=2e-3, batch_size=32),
    ("unet", 2): Recipe({"width": 16, "levels": 3}, lr=2e-3),
    ("neuralop_fno", 1): Recipe({"width": 32, "modes": 32}, lr=4e-3, batch_size=32),
    ("neuralop_fno", 2): Recipe({"width": 20, "modes": 12}, lr=4e-3),
    ("neuralop_uno", 1): Recipe({"width": 32, "modes": 16}, lr=2e-3, batch_size=32),
    ("neuralop_uno", 2): Recipe({"width": 16, "modes": 12}, lr=2e-3),
    ("pdetransformer", 2): Recipe({"width": 24, "blocks": 1, "levels": 2, "patch": 4}, lr=1e-3),
}
"""Where each search starts, by architecture and dimension."""

RECIPES: dict[tuple[str, int], Recipe] = {
    **STARTS,
    ("fno", 1): Recipe(
        {"width": 32, "modes": 32, "position": True, "layers": 3}, lr=8e-3, weight_decay=0.0, batch_size=32
    ),
    ("fno", 2): Recipe(
        {"width": 12, "modes": 16, "position": False, "padding": 0.125, "layers": 3}, lr=8e-3, batch_size=8
    ),
    ("unet", 1): Recipe({"width": 16, "levels": 3, "residual": True}, lr=8e-3, batch_size=16),
    ("unet", 2): Recipe({"width": 16, "levels": 3, "residual": True}, lr=4e-3, batch_size=4),
    ("neuralop_fno", 1): Recipe({"width": 32, "modes": 32}, lr=8e-3, batch_size=32),
    ("neuralop_fno", 2): Recipe({"width": 20, "modes": 12, "padding": 0.125}, lr=8e-3),
    ("neuralop_uno", 1): Recipe({"width": 32, "modes": 32}, lr=8e-3, batch_size=32),
    ("neuralop_uno", 2): Recipe({"width": 16, "modes": 12}, lr=8e-3),
    ("pdetransformer", 2): Recipe({"width": 24, "blocks": 1, "levels": 1, "patch": 2}, lr=4e-3),
}
"""What `run` uses: the winner of each search that was made, else its start."""

TASK_RECIPES: dict[tuple[str, str], Recipe] = {
    ("fno", "kolmogorov"): Recipe({"width": 20, "modes": 12, "position": False}, lr=4e-3, batch_size=8),
    ("unet", "shallow_water"): Recipe({"width": 16, "levels": 3}, lr=16e-3, batch_size=4),
}
"""Peers that do far better on a task with another recipe than the one searched for its dimension, by validation."""

Changes = tuple[dict[str, Any], ...]

SEARCHES: dict[tuple[str, int], tuple[Changes, ...]] = {
    ("fno", 1): (
        ({"lr": 2e-3}, {"lr": 8e-3}),
        ({"position": True},),
        ({"width": 20}, {"width": 48}, {"modes": 12}, {"width": 20, "modes": 12}),
        ({"layers": 3}, {"layers": 6}),
        ({"batch_size": 16}, {"batch_size": 64}, {"weight_decay": 0.0}),
        ({"lr": 16e-3}, {"modes": 64}, {"layers": 2}),
    ),
    ("fno", 2): (
        ({"padding": 0.125}, {"padding": 0.5}, {"position": True}),
        ({"lr": 2e-3}, {"lr": 8e-3}),
        ({"width": 12}, {"width": 32}, {"modes": 8}, {"modes": 16}),
        ({"layers": 3}, {"layers": 6}),
        ({"batch_size": 4}, {"batch_size": 16}, {"weight_decay": 0.0}),
        ({"modes": 24}, {"width": 12}),
    ),
    ("unet", 1): (
        ({"lr": 1e-3}, {"lr": 4e-3}, {"lr": 8e-3}, {"lr": 16e-3}),
        ({"width": 8}, {"width": 32}, {"levels": 3}, {"width": 8, "levels": 3}),
        ({"batch_size": 16}, {"batch_size": 64}, {"weight_decay": 0.0}),
        ({"residual": True}, {"residual": True, "lr": 2e-3}),
        ({"width": 32}, {"levels": 2}, {"lr": 4e-3}),
    ),
    ("unet", 2): (
        ({"lr": 1e-3}, {"lr": 4e-3}, {"lr": 8e-3}, {"lr": 16e-3}),
        ({"width": 8}, {"width": 32}, {"levels": 4}, {"width": 8, "levels": 4}),
        ({"batch_size": 4}, {"batch_size": 16}, {"weight_decay": 0.0}),
        ({"residual": True}, {"residual": True, "lr": 4e-3}),
        ({"width": 32}, {"levels": 2}, {"lr": 2e-3}),
    ),
    ("neuralop_fno", 1): (({"lr": 2e-3}, {"lr": 8e-3}), ({"position": True}, {"width": 20, "modes": 16})),
    ("neuralop_fno", 2): (
        ({"lr": 2e-3}, {"lr": 8e-3}),
        ({"position": True}, {"padding": 0.125}, {"width": 12}),
        ({"batch_size": 4}, {"batch_size": 8}),
    ),
    ("neuralop_uno", 1): (({"lr": 4e-3}, {"lr": 8e-3}), ({"position": True}, {"width": 20}, {"modes": 32})),
    ("neuralop_uno", 2): (
        ({"lr": 4e-3}, {"lr": 8e-3}),
        ({"position": True}, {"padding": 0.125}, {"width": 10}),
        ({"batch_size": 4}, {"batch_size": 8}),
    ),
    ("pdetransformer", 2): (
        ({"lr": 2e-3}, {"lr": 4e-3}, {"lr": 8e-3}),
        ({"width": 48}, {"levels": 1}, {"patch": 8}, {"patch": 2}),
        ({"batch_size": 4}, {"batch_size": 8}, {"weight_decay": 0.0}),
        ({"lr": 16e-3}, {"levels": 1}, {"patch": 2}),
    ),
}
"""Rounds of changes to the recipe so far; a round keeps the change with the best validation nrmse, or none."""
