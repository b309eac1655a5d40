"""What the accuracy bench's table makes of its lines: spreads, ratios, what is missing, and stability."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.bench.made_lines import cells_of, make_line

from accuracy_bench import summary, table
from accuracy_bench.results import Cell, append


def test_geometric_mean_and_ratio_of_medians() -> None:
    peers = ("fno", "unet")
    cells = cells_of(
        {
            ("burgers", "ups"): [0.1, 0.3, 0.2],
            ("burgers", "fno"): [0.9, 0.8, 0.1],
            ("burgers", "unet"): [None, 1.0, None],  # two of three are not finite: worse than any number
            ("ks", "ups"): [0.2, 0.2, 0.2],
            ("ks", "fno"): [0.1, 0.1, 0.1],
        }
    )
    burgers, ks = (summary.ratio(cells, task, peers) for task in ("burgers", "ks"))
    assert (burgers.peer, burgers.complete, ks.peer, ks.complete) == ("fno", True, "fno", False)
    assert burgers.value == pytest.approx(0.25)
    assert summary.geometric_mean([0.25, ks.value or 0.0]) == pytest.approx(math.sqrt(0.5))
    assert summary.geometric_mean([]) is None
    assert summary.ratio(cells, "advection", peers).value is None


def test_missing_cells_are_named_and_never_guessed() -> None:
    cells = cells_of({("burgers", "ups"): [0.1, 0.3], ("burgers", "fno"): [0.2, 0.2, 0.4]})
    report = table.Report(cells)
    text = report.text()
    row = next(line for line in text.splitlines() if line.startswith("| burgers |"))
    assert "| 0.2 [0.1 - 0.3, n = 2] |" in row
    assert "| 0.2 [0.2 - 0.4] |" in row
    assert row.count("missing") == 5  # persistence, linear, unet, ups_stack, ups_unet
    gone = text.split("## Missing cells")[1]
    assert "- burgers, ups, 200 s: seed 2\n" in gone
    assert "burgers, fno, 200 s:" not in gone
    assert "- advection, ups, 200 s: seed 0, 1, 2\n" in gone
    assert "- burgers, ups, 200 s, 20 trajectories: seed 0, 1, 2\n" in gone
    assert r"| 1\* (fno) |" in row  # a ratio of which cells are missing says so


def test_experiments_have_rows_of_their_own_and_change_no_other() -> None:
    cells = dict(cells_of({("burgers", "ups"): [0.2, 0.2, 0.2], ("burgers", "fno"): [0.4, 0.4, 0.4]}))
    before = table.Report(cells).main()
    trial = Cell("burgers", "ups-small", 200.0, 0)
    cells[trial] = make_line(trial, 0.001, recipe={"settings": ["operator.pdet.hidden_dim=32"]})
    report = table.Report(cells)
    assert report.main() == before
    wanted = "| burgers | ups-small | 200 | all | 0.001 [0.001 - 0.001, n = 1] | operator.pdet.hidden_dim=32 |"
    assert wanted in report.text()


def test_diverged_seed_is_said_and_counts_as_worst() -> None:
    spread = summary.Spread.of([None, 0.2, 0.1], 3)
    assert str(spread) == "0.2 [0.1 - diverged]"
    assert summary.Spread.of([None, None, 0.1], 3).median == math.inf


def test_stability_is_against_the_largest_persistence_so_far() -> None:
    line = {"curve": [0.1, 0.4, 0.6, 0.9], "persistence": [0.5, 1.0, 0.2, 0.1]}  # the wave comes back to its start
    assert summary.stability(line, 2) == pytest.approx(0.4)
    assert summary.stability(line) == pytest.approx(0.9)
    assert summary.stability({**line, "curve": [0.1, None, None, None]}) is None


def test_stability_is_judged_over_all_frames_and_seeds() -> None:
    held, beyond = Cell("burgers", "ups", 200.0, 0), Cell("burgers", "ups", 200.0, 1)
    cells = {held: make_line(held, 0.1)}
    assert "Holds on 1 of 1" in table.Report(cells).stability()
    cells[beyond] = make_line(beyond, 0.1, curve=[0.1, 1.1])  # worse than persistence after the horizon
    text = table.Report(cells).stability()
    assert "Holds on 0 of 1" in text
    assert "| 1.1 | twice the horizon | 2 | **fails** |" in text
    cells[beyond] = make_line(beyond, 0.1, curve=[0.1, None])
    assert "diverged" in table.Report(cells).stability()


def test_solver_is_held_at_the_coarsest_grid_that_is_as_accurate() -> None:
    trials = [
        {"resolution": points, "nrmse": error, "seconds_per_trajectory": seconds}
        for points, error, seconds in ((16, None, 1.0), (32, 0.2, 2.0), (48, 0.1, 3.0), (64, 0.01, 4.0))
    ]
    line = {"task": "burgers", "ups_seconds": 1.5, "solver": trials, "samples": [0, 2]}

    def told(*each: float) -> str:
        ours = Cell("burgers", "ups", 200.0, 0)
        return table.Report({ours: make_line(ours, 9.0, each=each)}, {"burgers": line}).at_equal_error()

    assert "| burgers | 0.1 | 1.5 | 48 | 0.1 | 3 | 2 |" in told(
        0.05, 7.0, 0.15
    )  # the trajectories that it was timed on
    assert "| burgers | 0.001 | 1.5 | none | 0.01 at best | - | - |" in told(0.001, 7.0, 0.001)


def test_lines_read_back_draw_the_same_table(tmp_path: Path) -> None:
    cells = cells_of({("ks", "ups"): [0.1, 0.2, 0.3], ("ks", "linear"): [1.0]})
    for line in cells.values():
        append(line, tmp_path / "accuracy" / "ks.jsonl")
    table.draw(lambda line: None, tmp_path / "accuracy")
    assert (tmp_path / "accuracy.md").read_text() == table.Report(cells).text()
