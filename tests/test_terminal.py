"""Progress and tables as they are shown."""

from __future__ import annotations

import io

import pytest

from ups.terminal import LineProgress, RichProgress, grouped, problem_lines, table, tree


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows its only entry."""
    now = [0.0]
    monkeypatch.setattr("ups.terminal.time.monotonic", lambda: now[0])
    return now


def test_lines_are_sparse_and_the_last_tells_the_time(clock: list[float]) -> None:
    lines: list[str] = []
    progress = LineProgress(lines.append, every=10)
    progress.start("operator", 100, "steps")
    for step in range(1, 101):
        clock[0] += 0.25
        progress.update(step, f"loss {step}")
    progress.finish("loss 0.1")
    progress.say("kept")
    assert lines == [
        "operator: 40 of 100 steps loss 40",
        "operator: 80 of 100 steps loss 80",
        "operator: done in 25.0 s loss 0.1",
        "kept",
    ]


def test_work_without_an_end_is_told_without_one(clock: list[float]) -> None:
    lines: list[str] = []
    progress = LineProgress(lines.append, every=1)
    progress.start("search")
    clock[0] = 2
    progress.update(3)
    assert lines == ["search: 3"]


def test_the_bar_leaves_a_line_and_markup_is_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RichProgress()
    progress.start("[red]codec", 10, "steps")
    progress.update(5, "loss [bold]1")
    progress.say("[green]said")
    progress.finish("loss [bold]2")
    progress.update(6)
    progress.start("operator", None, "steps")
    progress.start("baseline", 3)
    progress.close()
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert "[green]said" in lines
    assert any(line.startswith("[red]codec: done in") and line.endswith("loss [bold]2") for line in lines)


def without_rules(lines: list[str]) -> list[str]:
    """The lines of a table that say something."""
    return [line for line in lines if any(character.isalnum() for character in line)]


def test_a_table_is_aligned_and_may_have_gaps() -> None:
    rows = [{"name": "a", "nrmse": "0.25", "note": "[red]x"}, {"name": "bcd", "nrmse": "10.125"}]
    heading, first, second = without_rules(table(rows))
    assert heading.split() == ["name", "nrmse", "note"]
    assert first.split() == ["a", "0.25", "[red]x"]
    assert second.split() == ["bcd", "10.125"]
    assert first.index("a") == second.index("bcd") == heading.index("name")
    assert first.index("[red]x") == heading.index("note")
    assert table([]) == []


def test_a_row_in_a_pipe_is_one_line() -> None:
    assert len(without_rules(table([{"what": "long " * 200}]))) == 2


def test_a_tree_shows_nested_values() -> None:
    values = {"path": "a.h5", "shapes": {"u": "2 x 3"}, "problems": ["one", "two"]}
    assert tree(values) == ["path: a.h5", "shapes:", "  u: 2 x 3", "problems:", "  one", "  two"]


def test_what_is_alike_in_one_file_is_counted() -> None:
    alike = [("a", f"{n}.5 values (trajectory {n})", f"remedy {n}") for n in range(9)]
    other = [("b", "1 values", "b"), ("a", "no values", "other")]
    counted = ("a", "... and 7 more like it", "remedy 0")
    assert grouped([*alike, *other], most=2) == [*alike[:2], counted, *other]
    assert grouped(alike, most=9) == alike


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_problems_are_a_table_on_a_terminal_and_whole_words_and_paths_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    path = f"{'folder/' * 20}a-b.h5"
    problems = [("a.h5", "word " * 30, "[red] mend it"), (path, "short", "mend it too")]
    shown = problem_lines(problems, Terminal())
    assert max(map(len, shown)) <= 60
    assert " ".join(shown).count("word") == 30
    assert "[red]" in " ".join(shown), "what a file says is no markup"
    piped = problem_lines(problems, io.StringIO())
    assert piped[0].startswith("a.h5: word word")
    assert piped[-4:] == ["  [red] mend it", f"{path}:", "  short", "  mend it too"]
    assert max(len(line) for line in piped[:-3]) <= 100
    assert " ".join(piped).count("word") == 30
    assert problem_lines([], io.StringIO()) == problem_lines([], Terminal()) == []
