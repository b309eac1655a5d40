"""Every window once per epoch, in an order that resumes exactly, whatever the ranks, threads and storage."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.layouts import write_task

from ups.config.data import DataSettings
from ups.data.fields import Batch
from ups.data.split import load_files
from ups.data.trajectories import TrajectorySet
from ups.data.windows import WindowLoader
from ups.errors import DataError


def make_set(folder: Path, task: str = "burgers1d", *, lazy: bool = False, **layout: object) -> TrajectorySet:
    path = write_task(folder / f"{task}.h5", task, **layout)  # type: ignore[arg-type]
    data = DataSettings(task=(task,), memory_budget_gb=1e-6 if lazy else 1.0)
    return load_files([path], task, data)


def windows_of(trajectories: TrajectorySet, length: int) -> Counter[bytes]:
    """Every window of a set, by its bytes."""
    return Counter(
        frames[start : start + length].contiguous().numpy().tobytes()
        for frames in map(trajectories.trajectory, range(trajectories.num))
        for start in range(len(frames) - length + 1)
    )


def served(batches: list[Batch]) -> Counter[bytes]:
    return Counter(window.contiguous().numpy().tobytes() for batch in batches for window in batch.frames)


def epoch_of(loader: WindowLoader) -> list[Batch]:
    return list(islice(loader, loader.steps_per_epoch))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrajectorySet]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        "burgers1d": make_set(folder, num=7, frames=9, resolution=8),
        "shallow_water2d": make_set(folder, "shallow_water2d", num=5, frames=8, resolution=8, lengths=[8, 3, 5, 2, 7]),
    }


@given(batch_size=st.integers(1, 40), horizon=st.integers(1, 5), context=st.integers(1, 2), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_an_epoch_is_every_window_once(
    sets: dict[str, TrajectorySet], batch_size: int, horizon: int, context: int, seed: int
) -> None:
    """Trajectories that are too short give no window, those of other lengths as many as they have."""
    loader = WindowLoader(sets, batch_size, context, horizon, seed)
    expected = sum((windows_of(one, context + horizon) for one in sets.values()), Counter[bytes]())
    for epoch in range(2):
        assert loader.epoch == epoch
        batches = epoch_of(loader)
        assert served(batches) == expected
        sizes = {task: [len(batch) for batch in batches if batch.task == task] for task in sets}
        assert all(max(of_task) <= batch_size and max(of_task) - min(of_task) <= 1 for of_task in sizes.values())
    assert loader.num_windows == expected.total()


def test_a_batch_holds_one_task_with_its_dt_params_and_grid(sets: dict[str, TrajectorySet]) -> None:
    for batch in epoch_of(WindowLoader(sets, 4, 1, 2, seed=0)):
        one = sets[batch.task]
        assert batch.grid == one.grid
        assert batch.dt.tolist() == pytest.approx([one.dt] * len(batch))
        assert batch.params.shape == (len(batch), one.params.shape[1])
        assert (batch.context, batch.horizon) == (1, 2)


def test_params_are_those_of_the_trajectory(tmp_path: Path) -> None:
    viscosities = torch.linspace(0.1, 0.6, 6).numpy()
    trajectories = make_set(tmp_path, num=6, resolution=8, Nu=viscosities)
    home = {
        trajectories.trajectory(i)[start].numpy().tobytes(): trajectories.params[i]
        for i in range(6)
        for start in range(11)
    }
    for batch in epoch_of(WindowLoader({"burgers1d": trajectories}, 5, 1, 1, seed=0)):
        for window, params in zip(batch.frames, batch.params, strict=True):
            assert torch.equal(home[window[0].numpy().tobytes()], params)


def test_tasks_come_in_proportion_all_along(tmp_path: Path) -> None:
    """Over any quarter of an epoch the share of a task is near its share of the windows."""
    many = make_set(tmp_path, num=60, frames=21, resolution=8)
    few = make_set(tmp_path, "advection1d", num=20, frames=21, resolution=8)
    loader = WindowLoader({"burgers1d": many, "advection1d": few}, 4, 1, 1, seed=1)
    tasks = [batch.task for batch in epoch_of(loader)]
    assert tasks.count("burgers1d") == 3 * tasks.count("advection1d")
    for quarter in range(4):
        part = tasks[quarter * len(tasks) // 4 : (quarter + 1) * len(tasks) // 4]
        assert 0.6 < part.count("burgers1d") / len(part) < 0.9


def test_the_order_follows_seed_and_epoch(sets: dict[str, TrajectorySet]) -> None:
    def order(seed: int, epochs: int = 1) -> list[bytes]:
        loader = WindowLoader(sets, 4, 1, 1, seed=seed)
        return [batch.frames.numpy().tobytes() for _ in range(epochs) for batch in epoch_of(loader)]

    assert order(0) == order(0)
    assert order(0) != order(1)
    twice = order(0, epochs=2)
    assert twice[: len(twice) // 2] != twice[len(twice) // 2 :]


def test_without_shuffling_windows_come_in_order(sets: dict[str, TrajectorySet]) -> None:
    loader = WindowLoader({"burgers1d": sets["burgers1d"]}, 8, 1, 1, seed=0, shuffle=False)
    frames = torch.cat([batch.frames for batch in epoch_of(loader)])
    first = sets["burgers1d"].trajectory(0)
    assert torch.equal(frames[:8, 0], first[:8])
    assert torch.equal(frames[:8, 1], first[1:])


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_ranks_share_every_batch_of_one_process(
    sets: dict[str, TrajectorySet], world_size: int, batch_size: int
) -> None:
    ranks = [WindowLoader(sets, batch_size, 1, 1, 3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({loader.steps_per_epoch for loader in ranks}) == 1
    shares = [epoch_of(loader) for loader in ranks]
    expected = sum((windows_of(one, 2) for one in sets.values()), Counter[bytes]())
    assert sum((served(share) for share in shares), Counter[bytes]()) == expected
    for together in zip(*shares, strict=True):
        assert len({batch.task for batch in together}) == 1
        sizes = [len(batch) for batch in together]
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1
    if batch_size > 1:
        alone = epoch_of(WindowLoader(sets, batch_size * world_size, 1, 1, 3))
        assert [served([batch]) for batch in alone] == [
            served(list(together)) for together in zip(*shares, strict=True)
        ]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("consumed", [0, 3, 7, 8, 11])
def test_resumed_equals_uninterrupted(tmp_path: Path, lazy: bool, consumed: int) -> None:
    trajectories = make_set(tmp_path, lazy=lazy, num=6, frames=6, resolution=8)
    whole = WindowLoader({"burgers1d": trajectories}, 4, 1, 1, seed=5, workers=2, prefetch=3)
    expected = [batch.frames for batch in islice(whole, 20)]
    first = WindowLoader({"burgers1d": trajectories}, 4, 1, 1, seed=5, workers=1, prefetch=2)
    batches = iter(first)
    for _ in range(consumed):
        next(batches)
    second = WindowLoader({"burgers1d": trajectories}, 4, 1, 1, seed=5)
    next(iter(second))
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    for frames, batch in zip(expected[consumed:], second, strict=False):
        assert torch.equal(frames, batch.frames)
    for loader in (whole, first, second):
        loader.close()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_lazy_batches_equal_those_in_memory(tmp_path: Path, workers: int) -> None:
    held = make_set(tmp_path, "reaction_diffusion2d", num=5, frames=6, resolution=8)
    lazy = make_set(tmp_path, "reaction_diffusion2d", lazy=True, num=5, frames=6, resolution=8)
    loaders = [WindowLoader({"reaction_diffusion2d": one}, 4, 1, 2, seed=2, workers=workers) for one in (held, lazy)]
    for step, (mine, theirs) in enumerate(islice(zip(*loaders, strict=False), 15)):
        assert torch.equal(mine.frames, theirs.frames)
        if step == 5:  # what was read ahead is of the old horizon
            for loader in loaders:
                loader.set_horizon(3)
    assert theirs.horizon == 3
    loaders[1].close()


def test_a_changed_horizon_takes_effect_with_the_next_batch(sets: dict[str, TrajectorySet]) -> None:
    loader = WindowLoader(sets, 4, 1, 1, seed=0)
    for _ in range(loader.steps_per_epoch // 2):
        loader.next_batch()
    before = loader.state_dict()["position"] / loader.steps_per_epoch
    loader.set_horizon(3)
    assert loader.epoch == 0
    assert loader.state_dict()["position"] / loader.steps_per_epoch == pytest.approx(
        before, abs=1 / loader.steps_per_epoch
    )
    assert loader.next_batch().horizon == 3
    resumed = WindowLoader(sets, 4, 1, 1, seed=0)
    resumed.load_state_dict(loader.state_dict())
    assert torch.equal(resumed.next_batch().frames, loader.next_batch().frames)
    while loader.epoch == 0:
        loader.next_batch()
    assert served(epoch_of(loader)) == sum((windows_of(one, 4) for one in sets.values()), Counter[bytes]())


def test_epochs_count_on_when_the_horizon_changes(sets: dict[str, TrajectorySet]) -> None:
    """A change moves the place by less than a batch; a batch moves it by one part of the epoch, or ends the epoch."""
    loader = WindowLoader(sets, 4, 1, 1, seed=0)
    for step in range(60):
        before = loader.epochs
        loader.set_horizon((1, 1, 3, 5, 2)[step % 5])
        part = 1 / loader.steps_per_epoch
        assert abs(loader.epochs - before) < part
        begun, epoch = loader.epochs, loader.epoch
        loader.next_batch()
        assert loader.epochs == pytest.approx(begun + part)
        assert before < loader.epochs
        assert loader.epochs == loader.epoch or loader.epoch == epoch
    assert loader.epoch > 2


def test_closing_ends_the_threads_and_may_be_repeated(tmp_path: Path) -> None:
    def reading() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]

    lazy = make_set(tmp_path, lazy=True, num=6, frames=6, resolution=8)
    with WindowLoader({"burgers1d": lazy}, 4, 1, 1, seed=0, workers=2) as loader:
        loader.next_batch()
        assert reading()
    assert not reading()
    loader.close()
    with closing(WindowLoader({"burgers1d": lazy}, 4, 1, 1, seed=0)) as loader:
        loader.next_batch()
    assert not reading()


def test_an_alternating_horizon_ends_its_epoch(sets: dict[str, TrajectorySet]) -> None:
    loader = WindowLoader(sets, 4, 1, 1, seed=0)
    steps = 0
    while loader.epoch == 0:
        loader.set_horizon(1 + steps % 2)
        loader.next_batch()
        steps += 1
        assert steps < 100


def test_what_cannot_be_cut_is_an_error(sets: dict[str, TrajectorySet]) -> None:
    with pytest.raises(DataError, match="the longest trajectory has 8 frames; shorten the horizon"):
        WindowLoader(sets, 4, 1, 8, seed=0)
    loader = WindowLoader(sets, 4, 1, 1, seed=0)
    with pytest.raises(DataError, match=r"0 window\(s\) of 1 \+ 99 frames"):
        loader.set_horizon(99)
    assert loader.next_batch().horizon == 1
    with pytest.raises(DataError, match=r"for 100 rank\(s\)"):
        WindowLoader(sets, 4, 1, 1, seed=0, world_size=100)
    with pytest.raises(DataError, match="seed 0, not 1"):
        WindowLoader(sets, 4, 1, 1, seed=1).load_state_dict(loader.state_dict())
    with pytest.raises(DataError, match="no batch 999"):
        loader.load_state_dict({**loader.state_dict(), "position": 999})
    with pytest.raises(DataError, match="another version of ups"):
        loader.load_state_dict({"epoch": 0, "position": 0, "horizon": 1, "seed": 0})


def test_weighted_windows_come_as_often_as_their_first_frame_weighs(sets: dict[str, TrajectorySet]) -> None:
    trajectories = sets["burgers1d"]
    starts = int(trajectories.lengths.max()) - 1
    weights = torch.ones(starts)
    weights[0], weights[1] = 3.0, 0.5
    loader = WindowLoader({"burgers1d": trajectories}, 4, 1, 1, seed=0, weights={"burgers1d": weights})
    epochs = 300
    shares = [loader._share(epoch, place, 1) for epoch in range(epochs) for place in range(loader.steps_per_epoch)]
    first = torch.cat([windows.start[mine] for windows, mine in shares])
    assert len(first) == epochs * trajectories.num_windows(2)
    have = torch.tensor([float((trajectories.lengths > start + 1).sum()) for start in range(starts)])
    wanted, found = weights * have, torch.bincount(first, minlength=starts) / len(first)
    torch.testing.assert_close(found, wanted / wanted.sum(), atol=0.01, rtol=0)


def test_weighted_windows_resume_and_differ_between_epochs(sets: dict[str, TrajectorySet]) -> None:
    starts = {task: int(one.lengths.max()) - 1 for task, one in sets.items()}
    weights = {task: torch.linspace(2, 1, num) for task, num in starts.items()}
    whole = WindowLoader(sets, 4, 1, 1, seed=0, weights=weights)
    first, second = epoch_of(whole), epoch_of(whole)
    assert served(first) != served(second)
    resumed = WindowLoader(sets, 4, 1, 1, seed=0, weights=weights)
    resumed.load_state_dict({**resumed.state_dict(), "epoch": 1, "position": 2})
    for again, batch in zip(resumed, second[2:], strict=False):
        assert torch.equal(again.frames, batch.frames)
        break
    assert all(again.task == batch.task for again, batch in zip(resumed, second[3:], strict=False))
