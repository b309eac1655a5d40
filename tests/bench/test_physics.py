"""The bench of physics: what its table says of its lines."""

from __future__ import annotations

from typing import Any

import pytest

import physics


def line(prior: str | None, seed: int) -> dict[str, Any]:
    case = {"what": "prior", "task": "burgers1d", "form": "auto", "prior": prior, "weight": float(prior is not None)}
    values = {"nrmse": 0.1 if prior is None else 0.2, "violations": {"residual": 0.3}}
    return {**case, "seed": seed, "steps": 120, **values}


@pytest.mark.parametrize(("seeds", "said"), [([0], "One seed: what another would change"), ([0, 1], "Medians of the")])
def test_the_table_of_priors_says_where_there_is_one_seed(seeds: list[int], said: str) -> None:
    rows = physics.prior_rows([line(prior, seed) for seed in seeds for prior in (None, "residual")])
    assert said in rows[1]
    assert rows[-1].startswith("| burgers1d | auto | residual | 1 | 0.1 | 0.2 | 2.00 |")
