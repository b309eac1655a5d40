from __future__ import annotations

import pytest
import torch

from ups.training.memory import OutOfMemory, explaining_memory

SIZES = {"batch_size": 32, "tokens": 64, "remedies": ["training.batch_size=16", "operator.pdet.coarsen=16"]}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_the_error_names_batch_tokens_and_settings(error: Exception) -> None:
    with pytest.raises(OutOfMemory) as told, explaining_memory("operator", **SIZES):
        raise error
    text = str(told.value)
    assert "stage operator ran out of memory with 32 windows a batch of 64 tokens a frame, 2048 in all" in text
    assert text.endswith("\n  training.batch_size=16\n  operator.pdet.coarsen=16")
    assert told.value.__cause__ is error
    assert told.value.exit_code == 1


def test_an_allocation_that_really_fails_on_the_host() -> None:
    with pytest.raises(OutOfMemory), explaining_memory("codec", batch_size=1, tokens=None, remedies=[]):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explaining_memory("codec", **SIZES):
        raise RuntimeError("shapes differ")
