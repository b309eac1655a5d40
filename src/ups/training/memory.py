"""What training takes in memory, and running out of it, told so that it can be mended."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ups.errors import UpsError

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory")  # of the allocators that raise RuntimeError


class OutOfMemory(UpsError):
    """A step did not fit in memory; the message names its sizes and the settings that reduce them."""


@contextmanager
def explaining_memory(stage: str, *, batch_size: int, tokens: int | None, remedies: Sequence[str]) -> Iterator[None]:
    """Inside, memory that runs out is an `OutOfMemory`: no batch is skipped or made smaller in silence.

    Args:
        stage: name of what is trained.
        batch_size: windows per batch.
        tokens: of one frame of one window at most; None where the model has none.
        remedies: settings that would reduce what is needed, the first one first.

    Raises:
        OutOfMemory: an allocation failed, on the host or on the device.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        short = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (short or any(sign in str(error) for sign in _SIGNS)):
            raise
        size = f"{batch_size} window{'s' if batch_size > 1 else ''} a batch"
        if tokens is not None:
            size += f" of {tokens} tokens a frame, {batch_size * tokens} in all"
        first = (str(error).strip() or "no memory left").splitlines()[0]
        raise OutOfMemory(
            f"stage {stage} ran out of memory with {size} ({first}). No batch was skipped, and what was saved before "
            "is intact. Any of these needs less; a run with other settings begins anew:"
            + "".join(f"\n  {remedy}" for remedy in remedies)
        ) from error


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocations at their highest, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
