from __future__ import annotations

import pytest
import torch
from tests.training.toy_training import CELLS, CPU, GRID, ToyObjective

from ups.data.fields import Batch
from ups.training.flops import FlopMeter, peak_flops


def batch_of(num: int, horizon: int = 1) -> Batch:
    frames = torch.zeros(num, 1 + horizon, 1, CELLS)
    return Batch("toy", frames, torch.ones(num), torch.empty(num, 0), GRID, context=1)


@pytest.mark.parametrize(
    ("name", "amp", "tf32", "teraflops"),
    [
        ("NVIDIA H200", torch.bfloat16, False, 989.4),
        ("NVIDIA H100 80GB HBM3", None, True, 494.7),
        ("NVIDIA H100 PCIe", torch.float16, False, 756.5),
        ("NVIDIA A100-SXM4-80GB", None, False, 19.5),
        ("NVIDIA L40S", None, False, 91.6),
        ("NVIDIA L4", None, False, 30.3),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, True, 165.2),
        ("NVIDIA A1000", None, False, None),
        ("Imaginary X1", None, False, None),
    ],
)
def test_peaks_are_known_by_name_and_precision(
    name: str, amp: torch.dtype | None, tf32: bool, teraflops: float | None
) -> None:
    assert peak_flops(name, amp, tf32=tf32) == (None if teraflops is None else pytest.approx(1e12 * teraflops))


def test_a_batch_counts_as_its_matrix_products_forward_and_backward() -> None:
    objective, meter = ToyObjective(), FlopMeter(1e9)
    for num, horizon in ((8, 1), (8, 2), (5, 1), (8, 1)):
        batch = batch_of(num, horizon)
        with meter.counting(batch):
            objective(batch, torch.Generator())[0].backward()
    products = 2 * CELLS * 16  # of a layer and sample; backward two more, but for the input of the first layer
    assert meter.flops(batch_of(8)) == 8 * (3 * 2 * products - products)
    assert meter.flops(batch_of(5)) == 5 * (3 * 2 * products - products)
    assert meter.flops(batch_of(8, 2)) > 2 * meter.flops(batch_of(8))
    assert meter.utilisation(5 * 10**8, 2.0) == 0.25


def test_on_a_cpu_there_is_no_peak_and_nothing_is_counted() -> None:
    meter = FlopMeter.of(CPU, None)
    with meter.counting(batch_of(8)):
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert (meter.flops(batch_of(8)), meter.utilisation(10, 1.0)) == (0, None)
