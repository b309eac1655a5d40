"""The plot: nrmse against seconds of training, one panel per task that has several budgets."""

from __future__ import annotations

import math
from pathlib import Path

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


def draw_plot(cells: Cells, path: Path) -> None:
    """Writes the picture: medians as lines, the range of seeds as bars; untrained models as level lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points: dict[str, dict[str, dict[float, list[float | None]]]] = {}
    for cell, line in cells.items():
        if cell.device == "cpu" and cell.train is None:
            of_model = points.setdefault(cell.task, {}).setdefault(cell.model, {})
            of_model.setdefault(cell.seconds, []).append(line["nrmse"])
    tasks = [task for task, models in points.items() if len(models.get(OURS, {})) > 1]
    if not tasks:
        return
    columns = min(2, len(tasks))
    figure, axes = plt.subplots(
        math.ceil(len(tasks) / columns), columns, figsize=(5.2 * columns, 3.9 * math.ceil(len(tasks) / columns)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for model in (*COLOURS, *UNTRAINED):
            budgets = points[task].get(model, {})
            spreads = {seconds: Spread.of(values, len(values)) for seconds, values in sorted(budgets.items())}
            finite = {seconds: spread for seconds, spread in spreads.items() if math.isfinite(spread.values[-1])}
            if not finite:
                continue
            if model in UNTRAINED:
                level = next(iter(finite.values())).values[0]
                axis.axhline(
                    level, color="#888888", linestyle=":" if model == "linear" else "--", linewidth=1, label=model
                )
                continue
            middle = [spread.median or 0.0 for spread in finite.values()]
            low = [value - spread.values[0] for value, spread in zip(middle, finite.values(), strict=True)]
            high = [spread.values[-1] - value for value, spread in zip(middle, finite.values(), strict=True)]
            axis.errorbar(
                list(finite), middle, [low, high], marker="o", markersize=4, capsize=3, label=model,
                color=COLOURS[model], linewidth=2.4 if model == OURS else 1.3,
            )  # fmt: skip
        budgets_here = sorted({seconds for model in COLOURS for seconds in points[task].get(model, {})})
        axis.set(title=task, xlabel="CPU seconds of training, one thread", ylabel="nrmse", xscale="log", yscale="log")
        axis.set_xticks(budgets_here, [f"{seconds:g}" for seconds in budgets_here])
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
