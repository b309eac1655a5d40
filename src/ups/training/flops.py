"""How much of the device's arithmetic a training uses: model FLOPs utilisation (MFU), as Chowdhery et al. 2022 have it.

Multiplications and additions of matrix products, convolutions and attention are counted, forward and backward, as they
are run (so with what activation checkpointing computes again). FFTs and what works value by value are not. On a CPU,
and on a GPU that is not in the table, the peak is not known and MFU is null: a CPU's depends on its clock, which
changes under load, on its vector units and on what else runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ups.data.fields import Batch

PEAKS: dict[str, dict[str, float]] = {
    "B200": {"half": 2250.0, "tf32": 1125.0, "float32": 75.0},
    "H200": {"half": 989.4, "tf32": 494.7, "float32": 66.9},
    "H100 PCIe": {"half": 756.5, "tf32": 378.0, "float32": 51.2},
    "H100": {"half": 989.4, "tf32": 494.7, "float32": 66.9},
    "A100": {"half": 312.0, "tf32": 156.0, "float32": 19.5},
    "L40S": {"half": 362.0, "tf32": 183.0, "float32": 91.6},
    "L4": {"half": 121.0, "tf32": 60.0, "float32": 30.3},
    "A10": {"half": 125.0, "tf32": 62.5, "float32": 31.2},
    "RTX 4090": {"half": 165.2, "tf32": 82.6, "float32": 82.6},
    "RTX 3090": {"half": 71.0, "tf32": 35.6, "float32": 35.6},
}
"""Dense TFLOP/s by the maker's data sheets; of a device, those of the first name that its own contains."""


def peak_flops(name: str, amp: torch.dtype | None, *, tf32: bool) -> float | None:
    """FLOP/s at most of a GPU of this name, in the precision that its matrix products have; None if it is not known."""
    for known, rates in PEAKS.items():
        if re.search(rf"\b{known}\b", name):
            return 1e12 * rates["half" if amp is not None else "tf32" if tf32 else "float32"]
    return None


class FlopMeter:
    """Counts the FLOPs of the first batch of every kind; further ones of its kind have as many.

    Args:
        peak: of the device, FLOP/s; None counts nothing.
    """

    def __init__(self, peak: float | None) -> None:
        self.peak = peak
        self._known: dict[Any, int] = {}

    @classmethod
    def of(cls, device: torch.device, amp: torch.dtype | None) -> FlopMeter:
        """The meter of a device, which computes under automatic mixed precision in `amp`."""
        if device.type != "cuda":
            return cls(None)
        tf32 = torch.get_float32_matmul_precision() != "highest"
        return cls(peak_flops(torch.cuda.get_device_name(device), amp, tf32=tf32))

    @contextmanager
    def counting(self, batch: Batch) -> Iterator[None]:
        """Counts what is computed inside, forward and backward of this batch, unless its kind is known."""
        kind = _kind(batch)
        if self.peak is None or kind in self._known:
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            yield
        self._known[kind] = counter.get_total_flops()

    def flops(self, batch: Batch) -> int:
        """Of a batch whose kind was counted; 0 where nothing is."""
        return self._known.get(_kind(batch), 0)

    def utilisation(self, flops: int, seconds: float) -> float | None:
        """The part of the device's peak that so many operations in so many seconds are."""
        return None if self.peak is None else flops / seconds / self.peak


def _kind(batch: Batch) -> tuple[str, tuple[int, ...], int]:
    return batch.task, tuple(batch.frames.shape), batch.context
