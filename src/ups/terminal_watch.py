"""A training as it is shown while it runs: one frame of text, drawn from the records of its log."""

from __future__ import annotations

import io
import itertools
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ups.health import Finding, Record, by_stage, judge, score_of, series, validations

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 48  # columns of a sparkline, at most
LATELY = 10  # records that the time left is taken from
COLOURS = {"bad": "bold red", "warning": "yellow", "good": "green"}
SIGNS = {"bad": "✗", "warning": "!", "good": "✓"}


def sparkline(values: Sequence[float], width: int = CURVE) -> str:
    """A curve in one line of block characters, logarithmic where all values are above 0.

    Args:
        values: finite; more of them than `width` are averaged.
    """
    if not values:
        return ""
    if min(values) > 0:
        values = [math.log(value) for value in values]
    columns = min(width, len(values))
    cuts = [i * len(values) // columns for i in range(columns + 1)]
    means = [math.fsum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        return BLOCKS[0] * columns
    return "".join(BLOCKS[min(7, int(8 * (mean - low) / (high - low)))] for mean in means)


def seconds_left(records: Sequence[Record]) -> float | None:
    """Seconds of training until a stage's budget is done, at the pace of its last records; None where not known."""
    places = [(float(r["elapsed"]), float(r["progress"])) for r in records if series([r], "progress")]
    if len(places) < 2:
        return None
    (before, had), (now, done) = places[-min(len(places), LATELY)], places[-1]
    return (1 - done) * (now - before) / (done - had) if done > had else None


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def frame(name: str, records: Sequence[Record], age: float, *, state: str = "") -> RenderableType:
    """One frame: stages that are done in a line each, the last one in full, and what its log says of its health.

    Args:
        name: of the run.
        age: seconds since the last record.
        state: what else there is to say of it, in the heading.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    stages = by_stage(records)
    heading = Text(", ".join([_plain(name), f"last record {duration(age)} ago", *filter(None, [state])]), style="bold")
    if not stages:
        return Panel(Text("no record yet"), title=heading, title_align="left")
    *earlier, current = stages
    parts: list[RenderableType] = [Text(_summary(stage, stages[stage]), style="dim") for stage in earlier]
    parts += [Text(_plain(current), style="bold cyan"), _figures(stages[current])]
    for finding in judge(stages[current]):
        parts.append(_line(finding))
    return Panel(Group(*parts), title=heading, title_align="left")


def _summary(stage: str, records: Sequence[Record]) -> str:
    scores = [score for _, score in validations(records)]
    elapsed = series(records, "elapsed")
    parts = [f"{_plain(stage)}: {max(int(r['step']) for r in records)} steps"]
    parts += [duration(elapsed[-1])] if elapsed else []
    parts += [f"best validation {score_of(stage)} {min(scores):.4g}"] if scores else []
    parts += [str(f.what) for f in judge(records) if f.severity == "bad" or f.kind == "ensemble"]
    return ", ".join(parts)


def _figures(records: Sequence[Record]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))

    def last(name: str, form: str, scale: float = 1.0) -> str | None:
        values = series(records, name)
        return form.format(scale * values[-1]) if values else None

    def row(label: str, *cells: str | None) -> None:
        found = [cell for cell in cells if cell]
        if found:
            grid.add_row(Text(label), Text("   ".join(found)))

    done, left = series(records, "progress"), seconds_left(records)
    if done:
        filled = round(done[-1] * CURVE)
        row("progress", "█" * filled + "░" * (CURVE - filled), f"{100 * done[-1]:.0f} %")
    row(
        "",
        f"step {records[-1]['step']}",
        last("epoch", "epoch {:.2f}"),
        None if left is None or (done and done[-1] >= 1) else f"{duration(left)} left",
    )
    for label, values in (("loss", series(records, "loss")), ("gradient", series(records, "grad_norm"))):
        row(label, sparkline(values), f"{values[-1]:.4g}" if values else None)
    scores = [score for _, score in validations(records)]
    if scores:
        label = f"validation {score_of(str(records[-1]['stage']))}"
        row(label, sparkline(scores), f"{scores[-1]:.4g}", f"best {min(scores):.4g}")
    row(
        "speed",
        last("samples_per_second", "{:.4g} samples/s"),
        last("points_per_second", "{:.3g} points/s"),
        last("epoch_seconds", "{:.3g} s an epoch"),
        last("mfu", "MFU {:.1f} %", 100),
    )
    row(
        "machine",
        last("data_wait", "{:.0f} % waiting for data", 100),
        last("memory_peak_mb", "{:.0f} MiB at most"),
        last("lr", "rate {:.3g}"),
    )
    return grid


def _line(finding: Finding) -> RenderableType:
    from rich.text import Text

    return Text(f"{SIGNS[finding.severity]} {_plain(str(finding))}", style=COLOURS[finding.severity])


def _plain(text: str) -> str:
    """One line without control characters, whatever a file says."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)


def as_text(drawn: RenderableType, width: int = 100) -> str:
    """A frame as plain text, for pipes and files."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as shown:
        console.print(drawn)
    return shown.get().rstrip("\n")


def show_live(draw: Callable[[], RenderableType], *, every: float, console: Console | None = None) -> None:
    """Draws again and again in place, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    with Live(draw(), console=console or Console(), auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(draw(), refresh=True)
