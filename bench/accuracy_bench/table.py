"""Draws the tables, from the lines alone. What is missing is named, never guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from accuracy_bench import summary
from accuracy_bench.plot import draw_plot
from accuracy_bench.results import Cell, Line, read_cells, read_lines, source_hash, stale
from accuracy_bench.solvers import LINES, at_equal_error
from accuracy_bench.summary import OURS, Cells, gather, nrmse, number, ratio, wanted
from accuracy_bench.tasks import TASKS
from ups.physics.equations import get_equation

NOTES = """\
nrmse of autoregressive roll-outs from one true frame to the end of the file, physical units, test trajectories: median
[least - greatest] of up to three seeds (n, where it is fewer). Every model has the same train, validation and test
trajectories; what is trained has the same normalisation, augmentation, residual prediction and cosine schedule, and is
the best checkpoint by validation. Seconds are CPU seconds of one thread, of fitting and training. In some hours one of
them bought more than three times as many steps as in others, and cells of one row are not all of the same hours: the
same network made up to twice as many steps in some of them (`steps` below and in the lines). Cells are of the code of
their day (`commit` in the lines; `bench/accuracy.py stale` names those of other code than today's, most of them).

Peers' recipes were searched on validation trajectories of `burgers` (1D) and `diffusion_reaction2d` (2D), by 30 to 90
seconds a candidate; the candidates that were measured stand in `accuracy/search.jsonl`, what is used in
`bench/accuracy_bench/recipes.py`, with two recipes of a single task that are no candidates of a search (FNO on
Kolmogorov flow, U-Net on shallow water). `ups_stack`, and `ups_unet`, the same blocks as a U, have our own recipe, Muon
and windows drawn by error included, without our structure. The other peers have neither; `+` has all but Muon.

`burgers`, `advection` (200 trajectories x 41 frames x 256 points) and `diffusion_reaction2d`, `shallow_water` (60 x 21
x 64 x 64) are files of PDEBench's generators, thinned in time, in 1D also in space; of shallow water's 60 trajectories
20 are distinct: 12 train, 3 choose, 5 judge. The others are made by our solvers: 164 train, 16 choose, 20 judge in 1D
(180, 20 and 36 of `burgers_multi`), 60, 8 and 12 of `kolmogorov`. Drawn by `bench/accuracy.py` from `accuracy/*.jsonl`.
"""


PARTS_NOTES = """\
`+`: base, equation's form, moving frame, velocity of a vorticity, windows drawn by error, and views that change from
step to step (`operator.symmetrize`). The base is the linear one on `advection`, `reaction_diffusion1d` and
`diffusion_reaction2d`, elsewhere the last frame.

"""

STABILITY_NOTES = """\
The largest error of any frame over the largest of persistence's up to there; it holds up to 1.

"""

SOLVER_NOTES = """\
Our reference solver on the coarsest grid on which it is as accurate as ours after 200 seconds of training, wall seconds
per trajectory on one thread, both of the same eight test trajectories in one process (`bench/accuracy.py solvers`).
Where the solver made the test data it wins any contest of accuracy; published files were made by other schemes.

"""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the columns after the first are to the right."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


class Report:
    """The sections of the report, each from the cells; what a section asks for and does not find is collected."""

    def __init__(self, cells: Cells, solvers: Mapping[str, Line] | None = None) -> None:
        self.cells, self.solvers = cells, solvers or {}
        self.missing: dict[Cell, None] = {}

    def entry(
        self, task: str, model: str, seconds: float = summary.MAIN_SECONDS, train: int | None = None,
        read: Callable[[Line], float | None] = nrmse,
    ) -> str:  # fmt: skip
        """One entry of a table."""
        asked = wanted(task, model, seconds, train)
        self.missing |= dict.fromkeys(summary.missing(self.cells, asked))
        return str(gather(self.cells, asked, read))

    def main(self) -> str:
        """Tasks by models, and ours over the best peer's."""
        models, rows, ratios, partly = (OURS, *summary.PEERS), [], {}, False
        for task in summary.ALL_TASKS:
            found = ratio(self.cells, task, summary.peers_of(task))
            if found.value is not None:
                ratios[task] = found.value
                partly |= not found.complete
            star = "" if found.complete else "\\*"
            said = "missing" if found.value is None else f"{found.value:.3g}{star} ({found.peer})"
            rows.append([task, *(self.entry(task, model) for model in models), said])
        mean = summary.geometric_mean(list(ratios.values()))
        left = [task for task in summary.ALL_TASKS if task not in ratios]
        of = f"{len(ratios)} of {len(summary.ALL_TASKS)} tasks" + (f"; missing: {', '.join(left)}" if left else "")
        table = markdown(["task", *models, "ours / best peer"], rows)
        worst = f"; the largest: {max(ratios.values()):.3g}" if ratios else ""
        note = "\n\\* Some of the cells that this compares are missing.\n" if partly else ""
        return f"{table}\nGeometric mean of the ratios: **{number(mean)}** ({of}){worst}.\n{note}"

    def curve(self) -> str:
        """Budgets."""
        rows = [
            [task, model, *(self.entry(task, model, seconds) for seconds in summary.CURVE_SECONDS)]
            for task in summary.CURVE_TASKS
            for model in summary.CURVE_MODELS
        ]
        return markdown(["task", "model", *(f"{seconds:g} s" for seconds in summary.CURVE_SECONDS)], rows)

    def low_data(self) -> str:
        """Few trajectories."""
        rows = [
            [
                task,
                model,
                *(self.entry(task, model, train=count) for count in summary.LOW_DATA),
                f"{self.entry(task, model)} ({self.trajectories(task)})",
            ]
            for task in summary.LOW_DATA_TASKS
            for model in summary.LOW_DATA_MODELS
        ]
        return markdown(["task", "model", *(f"{count} trajectories" for count in summary.LOW_DATA), "all"], rows)

    def trajectories(self, task: str) -> str:
        """How many trajectories training has when it is not cut."""
        counts = {
            line["trajectories"]["train"] for cell, line in self.cells.items() if cell.task == task and not cell.train
        }
        return "/".join(map(str, sorted(counts))) or "?"

    def structural(self) -> str:
        """Peers with our structural parts."""
        models = ("fno", "fno+", "unet", "unet+", "ups_stack", OURS)
        rows = [[task, *(self.entry(task, model) for model in models)] for task in summary.ALL_TASKS]
        return markdown(["task", *models], rows)

    def external(self) -> str:
        """Peers of other packages beside our own FNO and U-Net."""
        models = ("fno", "unet", *summary.EXTERNAL)
        rows = [
            [
                task,
                *(
                    "-"
                    if model in summary.EXTERNAL and model not in summary.peers_of(task)
                    else self.entry(task, model)
                    for model in models
                ),
            ]
            for task in summary.EXTERNAL_TASKS
        ]
        return markdown(["task", *models], rows)

    def others(self, wanted: Callable[[Cell], bool]) -> str:
        """Cells that are in no other table, by task, model, budget and number of trajectories."""
        groups: dict[Cell, list[Line]] = {}
        for cell, line in self.cells.items():
            if wanted(cell):
                groups.setdefault(replace(cell, seed=0), []).append(line)
        rows = []
        for cell, lines in sorted(groups.items(), key=lambda item: item[0].slug):
            settings = ", ".join(lines[-1]["recipe"].get("settings", ())) or "-"
            cut = "all" if cell.train is None else str(cell.train)
            spread = summary.Spread.of(map(nrmse, lines), len(summary.SEEDS))
            code = ", ".join(sorted({line.get("commit", "?") for line in lines}))
            rows.append([cell.task, cell.model, f"{cell.seconds:g}", cut, str(spread), settings, code])
        head = ["task", "model", "seconds", "trajectories", "nrmse", "settings", "commit"]
        return markdown(head, rows) if rows else "None.\n"

    def details(self) -> str:
        """Of ours and every peer at the main budget: one step, codec, stability, size, speed."""
        rows = []
        for task in summary.ALL_TASKS:
            for model in (OURS, *summary.PEERS, *summary.STRUCTURAL, *summary.EXTERNAL):
                lines = [self.cells[cell] for cell in wanted(task, model) if cell in self.cells]
                if lines:
                    rows.append(detail(task, model, lines))
        head = ["task", "model", "one step", "codec", "codec's share", "error / persistence", "to twice the horizon"]
        return markdown([*head, "parameters", "steps", "s / roll-out"], rows)

    def stability(self) -> str:
        """Whether ours stays below persistence at every frame in every seed, to twice the horizon where known."""
        rows, held = [], []
        for task in summary.ALL_TASKS:
            lines = [self.cells[cell] for cell in wanted(task, OURS) if cell in self.cells]
            if not lines:
                continue
            errors = [summary.stability(line) for line in lines]
            far = len(lines[0]["curve"]) > lines[0]["scored_frames"]
            ok = all(error is not None and error <= 1 for error in errors)
            held.append(ok)
            worst = max(math.inf if error is None else error for error in errors)
            until = "twice the horizon" if far else "the end of the file (no solver)"
            rows.append([task, number(worst), until, f"{len(lines)}", "holds" if ok else "**fails**"])
        table = markdown(["task", "error / persistence, worst frame and seed", "judged to", "seeds", "verdict"], rows)
        return f"{table}\nHolds on {sum(held)} of {len(held)} tasks measured.\n"

    def at_equal_error(self) -> str:
        """The reference solver on the coarsest grid that is as accurate as ours, and how much longer it takes."""
        rows = []
        for task, line in self.solvers.items():
            error = gather(self.cells, wanted(task, OURS), partial(mean_of, samples=line["samples"])).median
            found = None if error is None else at_equal_error(line, error)
            if found is None:
                best = min((one["nrmse"] for one in line["solver"] if one["nrmse"] is not None), default=None)
                told = ["none", f"{number(best)} at best", "-", "-"]
            else:
                speed = found["seconds_per_trajectory"] / line["ups_seconds"]
                told = [str(found["resolution"]), number(found["nrmse"]), number(found["seconds_per_trajectory"])]
                told = [*told, f"{speed:.2g}"]
            rows.append([task, number(error), number(line["ups_seconds"]), *told])
        for task in (task for task in summary.ALL_TASKS if task not in self.solvers):
            there = get_equation(TASKS[task].equation).has_solver
            rows.append([task, *["not measured" if there else "no solver"] * 6])
        head = ["task", "ups", "s / roll-out", "solver: points per axis", "its nrmse", "its s", "speed-up of ups"]
        return markdown(head, rows)

    def parameters(self) -> str:
        """Values of Nu that training saw, and those that it did not."""
        rows = [
            [
                model,
                self.entry("burgers_multi", model, read=lambda line: line.get("seen_nrmse")),
                self.entry("burgers_multi", model, read=lambda line: line.get("unseen_nrmse")),
            ]
            for model in (OURS, *summary.PEERS)
        ]
        return markdown(["model", "ten seen values of Nu", "two unseen values"], rows)

    def text(self, plot: str | None = None) -> str:
        """The whole report, with a link to the plot where there is one."""
        picture = f"\n![nrmse against seconds]({plot})\n" if plot else ""
        sections = {
            "At 200 seconds": self.main(),
            "By seconds of training": self.curve() + picture,
            "With few trajectories": self.low_data(),
            "Peers with our parts": PARTS_NOTES + self.structural(),
            "External peers": self.external(),
            "Several parameters in one model": self.parameters(),
            "Stability": STABILITY_NOTES + self.stability(),
            "A classical solver at equal error": SOLVER_NOTES + self.at_equal_error(),
            "On a GPU": self.others(lambda cell: cell.device == "cuda"),
            "Experiments": self.others(lambda cell: cell.device == "cpu" and cell.model not in summary.KNOWN),
            "Details (medians)": self.details(),
        }
        body = "\n".join(f"## {title}\n\n{section}" for title, section in sections.items())
        groups: dict[str, list[str]] = {}
        for cell in self.missing:
            cut = "" if cell.train is None else f", {cell.train} trajectories"
            groups.setdefault(f"{cell.task}, {cell.model}, {cell.seconds:g} s{cut}", []).append(str(cell.seed))
        gone = "\n".join(f"- {entry}: seed {', '.join(seeds)}" for entry, seeds in groups.items()) or "None."
        return f"# Accuracy\n\n{NOTES}\n{body}\n## Missing cells\n\n{gone}\n"


def detail(task: str, model: str, lines: Sequence[Line]) -> list[str]:
    """One row of the details, medians over seeds."""

    def middle(read: Callable[[Line], float | None]) -> float | None:
        return gather_lines(lines, read)

    error, codec = middle(nrmse), None if lines[0].get("codec_nrmse") is None else middle(lambda x: x["codec_nrmse"])
    share = "-" if codec is None or not error else f"{100 * codec / error:.2g} %"
    far = len(lines[0].get("curve", ())) > lines[0].get("scored_frames", 0)
    return [
        task,
        model,
        number(middle(lambda x: x.get("one_step_nrmse"))),
        "-" if codec is None else number(codec),
        share,
        number(middle(lambda x: summary.stability(x, x.get("scored_frames")))),
        number(middle(summary.stability)) if far else "no solver",
        f"{lines[0].get('parameters', 0):,}",
        f"{int(middle(lambda x: float(x.get('steps', 0))) or 0):,}",
        number(middle(lambda x: x.get("seconds_per_rollout"))),
    ]


def mean_of(line: Line, samples: Sequence[int]) -> float | None:
    """The mean nrmse of some of the test trajectories."""
    errors = [line["each"][sample] for sample in samples] if "each" in line else [None]
    return None if None in errors else math.fsum(errors) / len(errors)


def gather_lines(lines: Sequence[Line], read: Callable[[Line], float | None]) -> float | None:
    """The median over seeds."""
    return summary.Spread.of((read(line) for line in lines), len(lines)).median


def draw(say: Callable[[str], None], results: Path) -> None:
    """Writes the report and the plot beside the folder of the lines."""
    cells = read_cells(results)
    report = Report(cells, {line["task"]: line for line in read_lines(results / LINES)})
    out, plot = results.with_suffix(".md"), results.with_suffix(".png")
    draw_plot(cells, plot)
    out.write_text(report.text(plot.name if plot.exists() else None))
    old = stale(cells, source_hash())
    say(f"{out}: {len(cells)} cells, {len(report.missing)} missing, {len(old)} by other code than the present one")
