"""What a log says of a training's health: each rule on a log that has the illness, and on one that has not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ups.errors import UpsError
from ups.health import Finding, judge, read_log


def log(num: int = 40, *, valid: bool = True, **changes: Any) -> list[dict[str, Any]]:
    """A healthy log: loss and validation fall by a tenth per record; `changes` are values or functions of it."""
    records = []
    for i in range(num):
        usual = {"loss": 0.9**i, "grad_norm": 0.1, "clipped": 0.0, "skipped_steps": 0, "data_wait": 0.01}
        given = {name: value(i) if callable(value) else value for name, value in changes.items()}
        place = {"stage": "operator", "step": 20 * (i + 1), "elapsed": float(i), "progress": (i + 1) / (2 * num)}
        scored = {"valid_nrmse": given.pop("valid_nrmse", 0.9**i)} if valid else {}
        records += [{**place, **usual, **given}, *([{**place, **scored}] if scored else [])]
    return records


def found(records: list[dict[str, Any]], kind: str) -> Finding | None:
    return next((finding for finding in judge(records) if finding.kind == kind), None)


def test_a_healthy_log_has_nothing_to_mend() -> None:
    (finding,) = judge(log())
    assert (finding.severity, finding.what, finding.remedy) == ("good", "gradients are healthy (norm 0.1)", "")


@pytest.mark.parametrize(
    ("norm", "clipped", "severity", "said"),
    [
        (0.0009, 0.0, "warning", "vanish"),
        (0.0011, 0.0, "good", "healthy"),
        (0.99, 0.0, "good", "healthy"),
        (2.0, 0.1, "good", "large"),
        (2.0, 0.9, "warning", "clipped in 90 %"),
        (10.1, 1.0, "bad", "explode"),
    ],
)
def test_gradient_norms(norm: float, clipped: float, severity: str, said: str) -> None:
    finding = found(log(grad_norm=norm, clipped=clipped), "gradients")
    assert finding is not None
    assert (finding.severity, said in finding.what, bool(finding.remedy)) == (severity, True, severity != "good")


def test_gradients_are_judged_by_the_last_records() -> None:
    assert "healthy" in found(log(60, grad_norm=lambda i: 100.0 if i < 30 else 0.1), "gradients").what


def test_a_loss_that_jumps_and_whether_it_came_back() -> None:
    once = found(log(loss=lambda i: 5.0 if i == 25 else 0.9**i), "spikes")
    assert once.severity == "warning"
    assert "in 1 place, last at step 520, and fell again" in once.what
    assert found(log(loss=lambda i: 5.0 if i >= 25 else 0.9**i), "spikes").severity == "bad"
    noisy = log(loss=lambda i: 1.0 + 0.5 * math.sin(7.0 * i))
    assert found(noisy, "spikes") is None


def test_a_term_that_joins_the_loss_is_no_jump() -> None:
    records = log()
    for record in records[50:]:
        if "loss" in record:
            record |= {"loss": 5.0, "rollout": 4.0}
    assert found(records, "spikes") is None


def test_a_plateau_counts_while_there_is_budget_left() -> None:
    def flat(i: int) -> float:
        return max(0.5, 0.9**i)

    assert "no better for 6 validations (best 0.5)" in found(log(valid_nrmse=flat), "plateau").what
    assert found([{**r, "progress": 0.95} for r in log(valid_nrmse=flat)], "plateau") is None
    assert found(log(8, valid_nrmse=0.5), "plateau") is None


def test_over_fitting_is_a_train_loss_that_falls_while_the_validation_rises() -> None:
    def rising(i: int) -> float:
        return 0.5 + 0.02 * abs(i - 20)

    finding = found(log(valid_nrmse=rising), "overfitting")
    assert "since step 420" in finding.what
    assert found(log(valid_nrmse=rising, loss=lambda i: max(0.9**i, 0.9**15)), "overfitting") is None  # both stopped
    assert found(log(valid_nrmse=lambda i: 0.5 + 0.001 * abs(i - 20)), "overfitting") is None


@pytest.mark.parametrize(
    ("scores", "risen"),
    [
        # A short training of an FNO: flat, then up by a tenth in the last two of 18 validations.
        ((1.28, 1.02, 0.359, 0.322, 0.527, 0.444, 0.365, 0.315, 0.318, 0.322, 0.316, 0.313, 0.327, 0.337, 0.343, 0.344,
          0.347, 0.348), False),
        # A noisy one whose best was luck, and whose last three were not.
        ((0.868, 0.424, 0.177, 0.125, 0.145, 0.236, 0.13, 0.12, 0.0982, 0.103, 0.0914, 0.0913, 0.108, 0.0823, 0.0901,
          0.0869, 0.0866, 0.09, 0.0956, 0.101), False),
        # One dip far below all others, early.
        ((0.6, 0.55, 0.2, 0.52, 0.5, 0.5, 0.49, 0.5, 0.5, 0.5, 0.5), False),
        # Up by a third from a best that was no chance, and there to stay.
        ((0.448, 0.495, 0.427, 0.388, 0.445, 0.468, 0.442, 0.519, 0.516, 0.536, 0.571, 0.546, 0.531, 0.531, 0.537,
          0.534), True),
    ],
)  # fmt: skip
def test_validations_have_to_have_risen_for_long_to_be_over_fitting(scores: tuple[float, ...], risen: bool) -> None:
    records = log(len(scores), valid_nrmse=lambda i: scores[i])
    assert (found(records, "overfitting") is not None) == risen


def test_skipped_steps_are_counted_and_a_roll_back_is_told_with_its_diagnosis() -> None:
    few = found(log(skipped_steps=lambda i: int(i == 3)), "not finite")
    assert (few.severity, few.what) == ("warning", "1 step skipped: loss or gradient not finite")
    rolled = [*log(), {"stage": "operator", "step": 9, "skipped_steps": 5, "rollbacks": 1, "diagnosis": "step 4: nan"}]
    finding = found(rolled, "not finite")
    assert (finding.severity, finding.remedy) == ("bad", "the last: step 4: nan")
    assert judge(rolled)[0] is not None
    assert judge(rolled)[0].kind == "not finite"


def test_waiting_for_data() -> None:
    assert "40 % of the time" in found(log(data_wait=0.4), "data").what


def test_stages_are_judged_apart() -> None:
    other = [{**record, "stage": "codec"} for record in log(grad_norm=100.0)]
    assert [(f.stage, f.severity) for f in judge([*other, *log()])] == [("codec", "bad"), ("operator", "good")]


def test_values_that_are_missing_or_null_judge_nothing() -> None:
    assert judge([{"stage": "codec", "step": 1, "loss": None, "grad_norm": None, "valid_nrmse": None}]) == []
    assert judge([]) == []


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    whole = json.dumps({"stage": "codec", "step": 1})
    path.write_text(f'{whole}\n{{"stage": "co{whole}\n{whole}\n{whole[:-4]}')
    assert read_log(path) == [{"stage": "codec", "step": 1}] * 2
    path.write_bytes(whole.encode() + b"\n\xff\xfe")
    assert len(read_log(path)) == 1
    with pytest.raises(UpsError, match="cannot be read: No such file"):
        read_log(tmp_path / "none.jsonl")


def drawn(*scores: float | None, alone: float) -> list[dict[str, Any]]:
    """The validations of a residual diffusion beside an operator; None is what the log has for no number."""
    records = log(len(scores), valid=False, stage="diff_residual")
    for record, score in zip(records, scores, strict=True):
        record |= {"valid_crps": score, "operator_crps": alone}
    return records


def test_ensembles_that_are_no_better_than_the_operator_alone_are_told() -> None:
    assert found(drawn(0.5, 0.2, alone=0.21), "ensemble") is None
    finding = found(drawn(0.5, None, 0.2, None, alone=0.2), "ensemble")
    assert finding is not None
    assert finding.severity == "warning"
    assert "crps 0.2" in finding.what
    assert "2 of 4 diverged" in finding.what
    assert "stages.diff_residual more seconds" in finding.remedy


def test_ensembles_that_all_diverged_are_told() -> None:
    finding = found(drawn(None, None, alone=0.2), "ensemble")
    assert finding is not None
    assert finding.what == "every validation ensemble diverged"
