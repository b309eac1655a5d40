"""Ensembles as the report shows them: in words, in pictures that survive the disk, and said to be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.helpers import Draws, bumps, make_set, noisy_sines, shifted, travelling_sines

from ups.evaluation import readings, showcase
from ups.evaluation.evaluate import Protocol, evaluate
from ups.evaluation.report import write_report
from ups.evaluation.summary import Scores


def test_a_diverged_ensemble_is_reported(tmp_path: Path) -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    emulators = {"ups": Draws(sets, shifted, sigma=float("nan"))}
    evaluate(emulators, sets, protocol=Protocol()).save(tmp_path / "evaluation", "full")
    (tmp_path / "config.yaml").write_text("")
    html = write_report(tmp_path).read_text()
    assert "4 of 4 ensembles have members that diverged" in html
    assert 'id="uncertainty"' not in html


def test_showcases_of_ensembles_survive_the_disk(tmp_path: Path) -> None:
    """The band holds 80 % of Gaussian members, their deviation is the noise's; all are as they were after loading."""
    for task, trajectories in (("advection1d", noisy_sines(0.3, size=128)), ("reaction_diffusion2d", bumps(size=24))):
        sets = {task: make_set(task, trajectories)}
        emulators = {"ups": Draws(sets, lambda u: 0.9 * u, sigma=0.2)}
        kept = evaluate(emulators, sets, protocol=Protocol(members=64)).tasks[task].showcases
        showcase.save(tmp_path / "fields.npz", kept)
        for before, after in zip(kept, showcase.load(tmp_path / "fields.npz"), strict=True):
            assert set(after.ensemble) == {"mean", "spread"} | ({"low", "high"} if task == "advection1d" else set())
            for name, values in before.ensemble.items():
                assert values.shape == before.truth.shape
                np.testing.assert_allclose(after.ensemble[name], values, rtol=2e-3, atol=5e-3)
            assert before.ensemble["spread"][0].max() < 1e-9  # the given frame
            assert before.ensemble["spread"][1:].mean() == pytest.approx(0.2, rel=0.02)
            np.testing.assert_allclose(before.ensemble["mean"], before.predictions["ups"], atol=0.2)
            if "low" in before.ensemble:
                width = before.ensemble["high"] - before.ensemble["low"]
                assert width[1:].mean() == pytest.approx(2 * 1.2816 * 0.2, rel=0.05)


@pytest.mark.parametrize(
    ("scores", "kinds", "says"),
    [
        ({"crps": 0.07, "spread_skill": 1.0, "ece": 0.01}, "good unknown good good good", "30 % smaller than the mean"),
        ({"crps": 0.1, "spread_skill": 0.5, "ece": 0.05}, "even unknown bad even good", "error is 2.00 times what"),
        ({"crps": 0.2, "spread_skill": 2.0, "ece": 0.2}, "bad unknown bad bad good", "2.00 times the mean absolute"),
        ({"crps": 0.2, "spread_skill": 0.0, "ece": 0.2}, "bad unknown bad bad good", "no spread at all"),
        ({"crps": None, "spread_skill": None, "ece": None}, "unknown unknown unknown unknown good", "One is right"),
    ],
)
def test_ensembles_in_words(scores: dict[str, float | None], kinds: str, says: str) -> None:
    others = {"mae": 0.1, "nrmse": 0.2, "ensemble_nrmse": 0.1, "wall_clock": 1.0, "ensemble_wall_clock": 8.0}
    found = readings.read({**others, **scores})
    assert [one.kind for one in found] == [*kinds.split(), "unknown"]
    assert says in " ".join(one.text for one in found)
    assert "8.0 times that of the single prediction" in found[-1].text


def test_the_best_spread_is_the_one_nearest_to_the_error() -> None:
    def table(*ratios: float | None) -> list[bool]:
        baselines = {name: {"t": {"spread_skill": value}} for name, value in zip("ab", ratios[1:], strict=True)}
        content = {"tasks": {"t": {"spread_skill": ratios[0]}}, "baselines": baselines}
        return [cell.best for _, rows in Scores(content).table("t") for row in rows for cell in row.cells]

    assert table(0.2, 1.3, 2.0) == [False, True, False]
    assert table(0.0, 3.0, None) == [False, True, False]
    assert table(0.9, 0.5, None) == [True, False, False]
