"""The leaderboard: one champion for each set of tasks and protocol, every row kept, and a page that nothing breaks."""

from __future__ import annotations

import csv
import shutil
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.helpers import Elements

from ups.config.gates import GateSettings
from ups.errors import UpsError, UsageError
from ups.evaluation.board import Board
from ups.evaluation.gates import Judgement, Scored, judge
from ups.evaluation.leaderboard import Entry, Leaderboard, Standing

SETTINGS = GateSettings.model_validate({"first_champion": True})
UNDEFINED = {"bc_violation": "periodic", "conservation_gap": "none"}
HOSTILE = "<script>alert('owned')"


def entry(name: str, *errors: float | None, protocol: str = "protocol", model: str = "", folder: str = "") -> Entry:
    tasks = {f"task{n}": {"nrmse": error, "wall_clock": 0.1} for n, error in enumerate(errors)}
    scored = Scored(name, model or f"model of {name}", protocol, tasks, {}, False, {"device": "cpu"})
    return Entry(scored, folder or name, f"evaluation of {name}")


def submit(board: Leaderboard, one: Entry) -> bool:
    def against(champion: Entry | None) -> Judgement:
        return judge(one.scored, champion and champion.scored, SETTINGS, dict.fromkeys(one.scored.tasks, UNDEFINED))

    return board.submit(one, against)[0].passed


def champions(path: Path) -> dict[tuple[str, str], str]:
    """As the file has it: the champion of each group."""
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT champions.tasks, champions.protocol, folder FROM champions JOIN runs ON runs.id = run "
            "WHERE until IS NULL"
        ).fetchall()
    db.close()
    assert len({row[:2] for row in rows}) == len(rows)
    return {(tasks, protocol): folder for tasks, protocol, folder in rows}


@pytest.fixture
def board(tmp_path: Path) -> Leaderboard:
    return Leaderboard(tmp_path / "runs" / "leaderboard.sqlite")


def test_a_better_run_takes_the_place_and_every_row_stays(board: Leaderboard) -> None:
    assert [submit(board, entry(f"run{n}", error)) for n, error in enumerate((0.3, 0.4, 0.2, None, 0.1))] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert list(champions(board.path).values()) == ["run4"]
    assert [one.folder for one in board.entries()] == [f"run{n}" for n in range(5)]
    assert [one.champion for one in board.entries()] == [False, False, False, False, True]
    reigns = board.reigns()
    assert [reign.run for reign in reigns] == ["run0", "run2", "run4"]
    assert [reign.until for reign in reigns] == [reigns[1].since, reigns[2].since, None]
    found = board.champion(entry("", 0.1).group)
    assert found is not None
    assert found.scored == entry("run4", 0.1).scored


def test_somebody_elses_file_is_read_as_it_is(board: Leaderboard, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(board, entry("run0", 0.3))
    before = sorted(path.name for path in board.path.parent.iterdir()), board.path.read_bytes()
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(Leaderboard, "_prepare", lambda *_: pytest.fail("it would be written to"))
    assert [one.folder for one in board.entries()] == ["run0"]
    assert [reign.run for reign in board.reigns()] == ["run0"]
    assert board.shows(Standing(entry("run0", 0.3).group, entry("run0", 0.3).row, entry("run0", 0.3).row))
    assert (sorted(path.name for path in board.path.parent.iterdir()), board.path.read_bytes()) == before


def test_every_set_of_tasks_and_every_protocol_has_its_own_champion(board: Leaderboard) -> None:
    for one in (entry("a", 0.3), entry("b", 0.9, 0.9), entry("c", 0.9, protocol="other")):
        assert submit(board, one)
    assert sorted(champions(board.path).values()) == ["a", "b", "c"]


def test_the_file_refuses_a_second_champion(board: Leaderboard) -> None:
    submit(board, entry("a", 0.3))
    with sqlite3.connect(board.path) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO champions (tasks, protocol, run, since) SELECT tasks, protocol, run, '' FROM champions")
    db.close()


def test_the_same_run_again_is_the_same_row(board: Leaderboard) -> None:
    first = entry("a", 0.3)
    assert submit(board, first)
    assert submit(board, first), "the champion stays the champion"
    assert submit(board, entry("b", 0.2))
    assert not submit(board, first)
    assert [(one.folder, one.judgement.passed) for one in board.entries()] == [("a", False), ("b", True)]
    assert len(board.reigns()) == 2
    evaluated_again = replace(entry("b", 0.25), evaluation="another")
    assert submit(board, evaluated_again), "the champion's own model, scored again"
    assert not submit(board, entry("b", 0.25, model="another")), "another model under the champion's name"
    assert [one.champion for one in board.entries()] == [False, False, True, False]


def test_an_error_within_a_promotion_leaves_nothing(board: Leaderboard) -> None:
    submit(board, entry("a", 0.3))

    def broken(_: Entry | None) -> Judgement:
        raise UpsError("within")

    with pytest.raises(UpsError, match="within"):
        board.submit(entry("b", 0.2), broken)
    assert [one.folder for one in board.entries()] == ["a"]
    assert submit(board, entry("c", 0.2)), "the file is not locked"


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", "\x1b[31mred", "half\udc80"])
def test_a_name_that_breaks_a_line_is_refused(board: Leaderboard, name: str) -> None:
    with pytest.raises(UpsError, match="rename"):
        submit(board, entry(name, 0.3))
    assert not board.path.exists()


def test_a_file_that_cannot_be_used_is_said(board: Leaderboard, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no leaderboard at"):
        board.entries()
    assert not board.path.exists(), "looking makes nothing"
    board.path.parent.mkdir()
    board.path.write_text("this is no leaderboard, and long enough to be looked at as a whole page" * 100)
    with pytest.raises(UpsError, match="cannot be used"):
        submit(board, entry("a", 0.3))
    later = Leaderboard(tmp_path / "later.sqlite")
    submit(later, entry("a", 0.3))
    with sqlite3.connect(later.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UpsError, match="version 99"):
        later.entries()
    locked = Leaderboard(tmp_path / "locked.sqlite", timeout=0.1)
    submit(locked, entry("a", 0.3))
    with sqlite3.connect(locked.path, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(UpsError, match="locked"):
            submit(locked, entry("b", 0.2))
        db.execute("ROLLBACK")
    db.close()


def test_a_new_file_waits_for_another_process_that_makes_it(tmp_path: Path) -> None:
    """SQLite does not wait by itself where a file that has no write-ahead log yet is being written."""
    board = Leaderboard(tmp_path / "new.sqlite", timeout=30.0)
    other = sqlite3.connect(board.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    release.start()
    assert submit(board, entry("a", 0.3))
    release.join()
    other.close()


def test_a_damaged_row_is_named(board: Leaderboard) -> None:
    submit(board, entry("a", 0.3))
    with sqlite3.connect(board.path) as db:
        db.execute("UPDATE runs SET scored = '{'")
    db.close()
    with pytest.raises(UpsError, match=r"row 1 .* damaged"):
        board.entries()


# --- for people ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(board: Leaderboard) -> Board:
    """Two groups of runs, some with names that mean ill."""
    for one in (entry("a", 0.3), entry("b", 0.2), entry(HOSTILE, 0.5), entry("=1+1", 0.25), entry("c", 0.4, 0.5)):
        submit(board, one)
    return Board.read(board.path)


def test_the_table_has_a_line_per_run_and_task_the_best_first(shown: Board) -> None:
    rows = shown.rows()
    assert [row["run"] for row in rows] == ["b", "=1+1", "a", HOSTILE, "c", "c"]
    assert [row["standing"] for row in rows[:4]] == ["champion", "not promoted", "was champion", "not promoted"]
    assert [row["nrmse"] for row in rows] == ["0.2", "0.25", "0.3", "0.5", "0.4", "0.5"]
    assert {row["protocol"] for row in rows} == {"protocol"}
    assert "crps" not in rows[0], "a column that no run has a value of"


def test_csv_has_every_score_and_nothing_that_a_spreadsheet_computes(shown: Board, tmp_path: Path) -> None:
    shown.write_csv(tmp_path / "board.csv")
    with (tmp_path / "board.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["nrmse"]) for row in rows] == [0.2, 0.25, 0.3, 0.5, 0.4, 0.5]
    assert [row["run"] for row in rows][:2] == ["b", "'=1+1"]
    assert rows[0]["standing"] == "champion"
    assert rows[0]["crps"] == ""
    assert rows[-1]["tasks"] == "task0+task1"


def test_the_page_is_whole_and_names_cannot_become_markup(shown: Board, tmp_path: Path) -> None:
    shown.write_html(tmp_path / "board.html")
    html = (tmp_path / "board.html").read_text()
    elements = Elements(html)
    assert elements.open == []
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in elements.found}
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in elements.found)
    assert "&lt;script&gt;" in html
    assert html.count('<tr class="champion">') == 1 + 2  # of one task, and of two
    assert "prefers-color-scheme: dark" in html
    assert "does not beat the champion" in html
    Board([], []).write_html(tmp_path / "empty.html")
    assert "No run has been judged yet" in (tmp_path / "empty.html").read_text()


def test_two_runs_side_by_side(shown: Board) -> None:
    rows, notes = shown.compare("runs/a", "b")
    errors = next(row for row in rows if row["metric"] == "nrmse")
    assert (errors["a"], errors["b"], errors["second / first"]) == ("0.3", "0.2", "0.667")
    assert notes == []
    assert [row["metric"] for row in rows] == ["nrmse", "wall_clock"]
    with pytest.raises(UsageError, match="no run called"):
        shown.compare("../../x", "b")
    with pytest.raises(UsageError, match=r"no run called nothing\\nhere"):
        shown.compare("nothing\nhere", "b")


def test_runs_of_other_protocols_are_compared_with_a_warning(board: Leaderboard) -> None:
    for one in (entry("a", 0.3), entry("b", 0.2, protocol="other"), entry("b", 0.25)):
        submit(board, one)
    both = Board.read(board.path)
    rows, notes = both.compare("a", "b")
    assert (rows[0]["b"], notes) == ("0.25", [])
    submit(board, entry("c", 0.2, protocol="third"))
    assert "do not compare" in Board.read(board.path).compare("a", "c")[1][0]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here")
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light")])
def test_the_page_fits_a_phone(shown: Board, tmp_path: Path, width: int, scheme: Any) -> None:
    from playwright.sync_api import sync_playwright

    shown.write_html(tmp_path / "board.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.goto(f"file://{tmp_path / 'board.html'}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
        browser.close()
    assert dark is (scheme == "dark")
    assert errors == []
