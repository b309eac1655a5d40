"""Initial fields of a wrong shape are refused in the terms of who gave them."""

from __future__ import annotations

import pytest
import torch
from tests.models.helpers import make_spec

from ups.errors import UpsError
from ups.models.baselines import make_baseline
from ups.models.surrogate import Surrogate


def make(**changes: object) -> Surrogate:
    return Surrogate(make_baseline("persistence", {"task": make_spec(**changes)}), torch.device("cpu"))


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((2, 1, 64), "interpolate the input onto 32 points, or train on data of its grid"),
        ((2, 3, 32), "give the field u, in this order"),
        ((32,), "the batch comes first, then the field u, then the grid"),
        ((), "the batch comes first"),
        ((2, 1, 32, 32, 32), "the batch comes first"),
    ],
)
def test_the_shape_that_was_given_and_the_one_wanted_are_named(shape: tuple[int, ...], advice: str) -> None:
    with pytest.raises(UpsError) as refused:
        make().rollout(torch.zeros(shape), steps=1)
    said = str(refused.value)
    assert f"(u0) have shape {shape}, but the model was trained on (batch, field, *grid) = (any, 1, 32); " in said
    assert advice in said


def test_frames_of_context_are_named_where_the_model_takes_them_or_they_were_given() -> None:
    with pytest.raises(UpsError, match=r"shape \(2, 1, 32\).* \(batch, context, field, \*grid\) = \(any, 2, 1, 32\)"):
        make(context=2).rollout(torch.zeros(2, 1, 32), steps=1)
    with pytest.raises(UpsError, match=r"shape \(2, 3, 1, 32\).* = \(any, 1, 1, 32\); give 1 frame of context"):
        make().rollout(torch.zeros(2, 3, 1, 32), steps=1)
