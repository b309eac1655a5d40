"""Device, seeds, determinism, rank and the run's name."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ups.errors import SettingsError
from ups.runtime import (
    Progress,
    SilentProgress,
    World,
    choose_device,
    prepare_process,
    run_id,
    seed_everything,
    world,
)
from ups.terminal import LineProgress, RichProgress


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What PyTorch keeps per process is put back."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def test_the_same_seed_gives_the_same_numbers_everywhere() -> None:
    def draw(seed: int) -> list[object]:
        generator = seed_everything(seed)
        return [
            random.random(),
            float(np.random.random()),  # noqa: NPY002
            torch.rand(3).tolist(),
            torch.rand(3, generator=generator).tolist(),
        ]

    assert draw(17) == draw(17)
    assert all(one != other for one, other in zip(draw(17), draw(18), strict=True))
    assert draw(2**40) == draw(2**40)


def test_the_process_is_set_as_asked() -> None:
    prepare_process(threads=1, deterministic=True, benchmark=True)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark, "timing algorithms would choose them by chance"
    assert not torch.backends.cudnn.allow_tf32, "float32 has 24 bits on every device"
    prepare_process(threads=None, deterministic=False, benchmark=True)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_device_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="set device=cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 3)
    assert choose_device("cpu") == torch.device("cpu")


def test_rank_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world() == World(0, 1)
    assert world().is_first
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world() == World(2, 4)
    assert not world().is_first


@pytest.mark.parametrize(
    ("name", "tasks", "expected"),
    [
        ("demo", ("burgers1d",), "demo-burgers1d-01234567"),
        (None, ("a", "b", "c"), "a+b+c-01234567"),
        (None, ("a", "b", "c", "d"), "4tasks-01234567"),
    ],
)
def test_a_run_is_named_by_name_task_and_hash(name: str | None, tasks: tuple[str, ...], expected: str) -> None:
    assert run_id(name, tasks, "0123456789abcdef") == expected


@pytest.mark.parametrize("kind", [SilentProgress, RichProgress, lambda: LineProgress(lambda line: None)])
def test_every_way_of_telling_progress_follows_the_protocol(kind: type[Progress]) -> None:
    progress: Progress = kind()
    assert isinstance(progress, Progress)
    progress.start("work", 3, "steps")
    progress.update(1, "note")
    progress.finish()
    progress.say("line")
