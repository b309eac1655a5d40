"""The plot: nrmse against seconds of training, one panel per task that has several budgets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from accuracy_bench.summary import OURS, UNTRAINED, Cells, Spread

COLOURS = {
    OURS: "#c1272d",
    "fno": "#1f5fa8",
    "unet": "#2e8b57",
    "ups_stack": "#e08a1e",
    "ups_unet": "#a0642c",
    "fno+": "#6fa8dc",
    "unet+": "#8fd19e",
    "neuralop_fno": "#7a5fb5",
    "neuralop_uno": "#b07cc6",
    "pdetransformer": "#444444",
}


OFF_SCALE = 10.0  # no level or point above this is drawn: the axis is the others'

Budgets = dict[float, Spread]


def draw_plot(cells: Cells, path: Path) -> None:
    """Writes the picture: medians as lines, the range of seeds as bars; untrained models as level lines.

    A cross marks a median of which some seed diverged. Nothing is written before a task has two budgets of ours.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = by_task(cells)
    tasks = [task for task, models in points.items() if len(models.get(OURS, {})) > 1]
    if not tasks:
        return
    columns = min(2, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns + 1.4, 3.7 * rows), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for model in (*COLOURS, *UNTRAINED):
            draw_model(axis, model, points[task].get(model, {}))
        budgets = sorted({seconds for model in COLOURS for seconds in points[task].get(model, {})})
        axis.set(title=task, xlabel="CPU seconds of training, one thread", ylabel="nrmse", xscale="log", yscale="log")
        axis.set_xticks(budgets, [f"{seconds:g}" for seconds in budgets])
        axis.xaxis.set_tick_params(which="minor", bottom=False, labelbottom=False)
        axis.grid(alpha=0.3, which="major")
    labels = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels.keys(), loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.4 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def by_task(cells: Cells) -> dict[str, dict[str, Budgets]]:
    """Spreads over seeds by task, model and seconds, of the cells with all trajectories on a CPU."""
    found: dict[str, dict[str, dict[float, list[float | None]]]] = {}
    for cell, line in cells.items():
        if cell.device == "cpu" and cell.train is None:
            of_model = found.setdefault(cell.task, {}).setdefault(cell.model, {})
            of_model.setdefault(cell.seconds, []).append(line["nrmse"])
    return {
        task: {
            model: {seconds: Spread.of(values, len(values)) for seconds, values in sorted(budgets.items())}
            for model, budgets in models.items()
        }
        for task, models in found.items()
    }


def draw_model(axis: Any, model: str, budgets: Budgets) -> None:
    """One model's line in one panel."""
    shown = {seconds: spread for seconds, spread in budgets.items() if (spread.median or 0.0) < OFF_SCALE}
    if not shown:
        return
    middle = [spread.median or 0.0 for spread in shown.values()]
    if model in UNTRAINED:
        axis.axhline(middle[0], color="#888888", linestyle=":" if model == "linear" else "--", linewidth=1, label=model)
        return
    low = [value - spread.values[0] for value, spread in zip(middle, shown.values(), strict=True)]
    ends = [max(value for value in spread.values if value < OFF_SCALE) for spread in shown.values()]
    high = [end - value for value, end in zip(middle, ends, strict=True)]
    axis.errorbar(
        list(shown), middle, [low, high], marker="o", markersize=4, capsize=3, label=model,
        color=COLOURS[model], linewidth=2.4 if model == OURS else 1.3,
    )  # fmt: skip
    for seconds, spread in shown.items():
        if spread.values[-1] >= OFF_SCALE:
            axis.plot([seconds], [spread.median], "x", color=COLOURS[model], markersize=10)
