"""What is said of ensembles that make roll-outs worse."""

from __future__ import annotations

import pytest

from ups.pipeline.judge import poor_ensembles


@pytest.mark.parametrize(
    ("nrmse", "ensemble", "said"),
    [("0.0014", "0.0023", True), ("0.0023", "0.0014", False), ("0.0014", "-", False), ("-", "0.1", False)],
)
def test_an_ensemble_whose_mean_is_worse_than_the_operator_is_named(nrmse: str, ensemble: str, said: bool) -> None:
    messages = poor_ensembles([{"task": "burgers1d", "model": "ups", "nrmse": nrmse, "ensemble": ensemble}])
    assert bool(messages) is said
    if said:
        assert "burgers1d" in messages[0]
        assert nrmse.rstrip("0") in messages[0]


def test_a_table_without_ensembles_says_nothing() -> None:
    assert poor_ensembles([{"task": "burgers1d", "model": "fno", "nrmse": "0.1"}]) == ()
