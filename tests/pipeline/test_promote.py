"""From an evaluated run to a champion: the chain of hashes, and what is repeated, refused and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.toy_run import DATA, decide_run, write_run

from ups.config.gates import GateSettings
from ups.errors import UpsError
from ups.evaluation.gates import FIRST
from ups.evaluation.leaderboard import Leaderboard
from ups.pipeline.promote import promote
from ups.pipeline.records import StepRecords


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def board_of(runs: Path) -> Leaderboard:
    return Leaderboard(runs / "leaderboard.sqlite")


def gates_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "gates.json").read_text())
    return found


def test_a_better_run_is_promoted_and_a_worse_one_is_not(runs: Path) -> None:
    first, worse, better = (
        decide_run(write_run(runs, *one, nrmse=e)) for one, e in ((["a"], 0.1), (["b"], 0.2), (["c"], 0.05))
    )
    assert [first.promoted, worse.promoted, better.promoted] == [True, False, True]
    assert [first.champion, worse.champion, better.champion] == [None, "a", "a"]
    assert better.messages == ("promoted: c became the champion after a",)
    assert worse.messages == ("not promoted: nrmse burgers1d: 0.2 does not beat the champion's 0.1",)
    written = gates_of(runs / "c")
    assert written["passed"] is written["promoted"] is True
    assert set(written["hashes"]) == {"data", "config", "model", "small evaluation", "evaluation"}
    assert [entry.folder for entry in board_of(runs).entries()] == ["a", "b", "c"]
    assert [reign.run for reign in board_of(runs).reigns()] == ["a", "c"]


def test_without_a_champion_the_run_is_told_what_to_do(runs: Path) -> None:
    run = write_run(runs, "a")
    decision = decide_run(run, GateSettings())
    assert decision.messages == (f"not promoted: {FIRST}",)
    assert not decision.promoted
    assert [entry.champion for entry in board_of(runs).entries()] == [False], "its row is kept"
    assert decide_run(run).promoted, "other gates judge again"


def test_what_was_decided_is_repeated_and_nothing_is_written(runs: Path) -> None:
    for name, nrmse in (("a", 0.1), ("b", 0.2)):
        run = write_run(runs, name, nrmse=nrmse)
        decision = decide_run(run)
        files = [run / "gates.json", run / "steps.json", runs / "leaderboard.sqlite"]
        before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
        assert decide_run(run) == decision
        assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before
    StepRecords(runs / "b").forget("gates")
    decide_run(runs / "b")
    assert len(board_of(runs).entries()) == 2, "judged again, the same row"


def test_a_verdict_is_made_again_when_the_champion_is_another(runs: Path) -> None:
    """Refused as there was none; beaten; and the champion itself, which is not judged against itself."""
    refused, first = write_run(runs, "a", nrmse=0.1), write_run(runs, "b", nrmse=0.5)
    assert not decide_run(refused, GateSettings()).promoted
    assert decide_run(first).promoted
    better = decide_run(refused, GateSettings())
    assert (better.promoted, better.champion) == (True, "b")
    assert decide_run(refused, GateSettings()) == better, "judged against the one before"
    beaten = decide_run(first)
    assert beaten.messages == ("not promoted: nrmse burgers1d: 0.5 does not beat the champion's 0.1",)
    assert gates_of(first)["promoted"] is False
    assert decide_run(first) == beaten
    assert [reign.run for reign in board_of(runs).reigns()] == ["b", "a"]


def test_a_verdict_is_made_again_on_a_new_leaderboard(runs: Path) -> None:
    promoted, other = write_run(runs, "a", nrmse=0.1), write_run(runs, "b", nrmse=0.05)
    first = decide_run(promoted)
    board_of(runs).path.unlink()
    assert decide_run(promoted).messages == first.messages
    assert [entry.champion for entry in board_of(runs).entries()] == [True]
    board_of(runs).path.unlink()
    assert decide_run(other).promoted
    assert not decide_run(promoted).promoted
    assert [entry.folder for entry in board_of(runs).entries()] == ["b", "a"]
    board_of(runs).path.unlink()
    assert not decide_run(promoted, GateSettings()).promoted
    board_of(runs).path.unlink()
    decide_run(promoted, GateSettings())
    assert [entry.folder for entry in board_of(runs).entries()] == ["a"], "a row, though no champion either time"


def test_one_promoted_meanwhile_is_noticed_by_the_next_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run takes the place after the transaction of this one, and before it has noted how it ended."""
    run, other = write_run(runs, "a", nrmse=0.1), write_run(runs, "b", nrmse=0.05)
    submit, seen = Leaderboard.submit, []

    def meanwhile(board: Leaderboard, *arguments: Any) -> Any:
        found = submit(board, *arguments)
        seen.append(found)
        if len(seen) == 1:
            assert decide_run(other).promoted
        return found

    monkeypatch.setattr(Leaderboard, "submit", meanwhile)
    assert decide_run(run).promoted
    assert not decide_run(run).promoted
    assert decide_run(other).promoted
    assert len(seen) == 3, "the champion is not judged again"


def test_a_verdict_of_another_version_is_made_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(runs, "a")
    with monkeypatch.context() as older:
        older.setattr("ups.pipeline.promote.FORMAT", 1)
        decide_run(run)
    change("gates.json", lambda content: content.pop("standing"))(run)
    assert decide_run(run).promoted


def test_a_run_that_fails_its_small_evaluation_is_not_entered(runs: Path) -> None:
    run = write_run(runs, "a", small=1.0)
    decision = decide_run(run)
    assert [one.gate for one in decision.judgement.failures] == ["small"]
    assert "does not beat persistence" in decision.messages[0]
    assert board_of(runs).champion(('["burgers1d"]', "p" * 64)) is None
    assert decide_run(run) == decision
    with pytest.raises(UpsError, match="no leaderboard"):
        board_of(runs).entries()


def change(name: str, edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(run: Path) -> None:
        content = json.loads((run / name).read_text())
        edit(content)
        (run / name).write_text(json.dumps(content))

    return changed


def flip(name: str) -> Callable[[Path], None]:
    def changed(run: Path) -> None:
        content = bytearray((run / name).read_bytes())
        content[-1] ^= 1
        (run / name).write_bytes(content)

    return changed


def better(content: dict[str, Any]) -> None:
    content["tasks"]["burgers1d"]["nrmse"] = 1e-9


def another_seed(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 17", "seed: 18", 1))


CHANGES = {
    "evaluation": change("evaluation/full.json", better),
    "small evaluation": change("evaluation/small.json", better),
    "model": flip("model/weights.safetensors"),
    "model's description": change("model/config.json", lambda content: content.update(corrector={})),
    "config": another_seed,
    "model is gone": lambda run: (run / "model" / "weights.safetensors").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_after_the_evaluation_is_refused(runs: Path, what: str) -> None:
    decide_run(write_run(runs, "champion"))
    run = write_run(runs, "a", nrmse=0.01)
    CHANGES[what](run)
    decision = decide_run(run)
    assert not decision.promoted
    assert {one.gate for one in decision.judgement.failures} == {"hashes"}
    assert what.split("'")[0].split(" is")[0] in decision.messages[0]
    assert [entry.folder for entry in board_of(runs).entries()] == ["champion"], "no row for scores of nothing"
    assert decide_run(run) == decision


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_after_the_promotion_is_noticed(runs: Path, what: str) -> None:
    run = write_run(runs, "a")
    assert decide_run(run).promoted
    CHANGES[what](run)
    assert not decide_run(run).promoted


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_between_gates_and_promotion_is_refused(
    runs: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the process had been killed in between, and the files been changed before it was started again."""
    run = write_run(runs, "a")
    monkeypatch.setattr("ups.pipeline.promote.promote", lambda *_: None)
    decide_run(run)
    monkeypatch.undo()
    assert gates_of(run)["passed"] is True
    assert gates_of(run)["promoted"] is False
    CHANGES[what](run)
    with pytest.raises(UpsError, match="hashes do not match"):
        promote(run, StepRecords(run), DATA, GateSettings(first_champion=True), board_of(runs))
    assert not (runs / "leaderboard.sqlite").exists()


def test_other_data_is_refused(runs: Path) -> None:
    run = write_run(runs, "a")
    decide_run(run)
    with pytest.raises(UpsError, match="data changed"):
        promote(run, StepRecords(run), "other data", GateSettings(first_champion=True), board_of(runs))
    with pytest.raises(UpsError, match="gates changed"):
        promote(run, StepRecords(run), DATA, GateSettings(), board_of(runs))


def reseal(content: dict[str, Any]) -> None:
    from ups.pipeline.records import digest

    content["promoted"] = True
    del content["seal"]
    content["seal"] = digest(content)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(passed=True, promoted=True),
        lambda content: [one.update(passed=True) for one in content["verdicts"]],
        lambda content: content["hashes"].update(model="0" * 64),
        lambda content: content.pop("seal"),
        reseal,
    ],
)
def test_an_edited_verdict_is_refused(runs: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    decide_run(write_run(runs, "champion"))
    run = write_run(runs, "a", nrmse=0.5)
    assert not decide_run(run).promoted
    change("gates.json", edit)(run)
    with pytest.raises(UpsError, match=r"gates\.json .*--force gates"):
        decide_run(run)
    assert [entry.champion for entry in board_of(runs).entries()] == [True, False]
    StepRecords(run).forget("gates")  # what --force gates does
    assert not decide_run(run).promoted


def test_a_damaged_evaluation_is_an_error_with_a_remedy(runs: Path) -> None:
    run = write_run(runs, "a")
    (run / "evaluation" / "full.json").write_text('{"tasks": {}}')
    records = StepRecords(run)
    from ups.pipeline.promote import current_hashes

    records.finish("evaluate", "key", 0.0, hashes=current_hashes(run, DATA))
    with pytest.raises(UpsError, match="--force evaluate"):
        decide_run(run)


def test_a_kill_after_the_promotion_is_made_good(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leaderboard knows, `gates.json` not yet: the run is found to be the champion."""
    run = write_run(runs, "a")
    written: list[object] = []

    def stop(*arguments: object) -> None:
        written.append(arguments)
        if len(written) == 2:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    from ups.pipeline import promote as module

    real = module._write
    monkeypatch.setattr(module, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        decide_run(run)
    monkeypatch.undo()
    assert gates_of(run)["promoted"] is False
    assert [entry.champion for entry in board_of(runs).entries()] == [True]
    assert decide_run(run).promoted
    assert gates_of(run)["promoted"] is True
    assert len(board_of(runs).reigns()) == len(board_of(runs).entries()) == 1


def test_a_folder_elsewhere_is_kept_whole(runs: Path, tmp_path: Path) -> None:
    board = Leaderboard(tmp_path / "elsewhere" / "board.sqlite")
    decide_run(write_run(runs, "a"), board=board)
    assert [entry.folder for entry in board.entries()] == [str((runs / "a").resolve())]
