"""A cache of latents gives what encoding gives, is never read when torn or another's, and survives its writers."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.latent_cache import CACHE, LENGTHS, Codec, exact, load, make_set, make_weight, parts
from tests.layouts import write_task
from torch.nn.functional import conv1d

from ups.config.data import DataSettings
from ups.data.fields import Grid
from ups.data.latents import LatentStore, free_memory, latent_key
from ups.data.split import load_files
from ups.data.windows import WindowLoader
from ups.errors import UpsError


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 1e-2)])
def test_a_cache_holds_what_encoding_gives_and_is_made_once(
    tmp_path: Path, dtype: Any, tolerance: float, preload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ups.data.latents.BLOCK_VALUES", 48)  # three frames at a time
    trajectories, codec, said = make_set(), Codec(), []
    store = LatentStore(tmp_path / "cache", dtype=dtype, preload=preload, say=said.append)
    first = load(store, trajectories, codec)
    assert codec.encoded == sum(LENGTHS)
    assert first.dtype == getattr(torch, dtype)
    torch.testing.assert_close(first.float(), exact(trajectories, codec), rtol=tolerance, atol=tolerance)
    again = load(store, trajectories, codec)
    assert torch.equal(first, again)
    assert codec.encoded == sum(LENGTHS)
    assert len(said) == 1
    assert "there is none yet; every frame is encoded once" in said[0]
    assert parts(tmp_path / "cache") == CACHE
    assert (tmp_path / "cache" / CACHE[0]).stat().st_size == first.nbytes


@pytest.mark.parametrize("preload", [True, False])
def test_gathers_equal_fancy_indexing(tmp_path: Path, preload: bool) -> None:
    trajectories, codec = make_set(), Codec()
    frames = LatentStore(tmp_path, dtype="float32", preload=preload).load("train", trajectories, codec, codec.weights)
    assert frames.in_memory is preload
    rng, z = torch.Generator().manual_seed(0), exact(trajectories, codec)
    first = trajectories.lengths.cumsum(0) - trajectories.lengths
    for length in (1, 2):
        trajectory = torch.randint(len(LENGTHS), (50,), generator=rng)
        start = (torch.rand(50, generator=rng) * (trajectories.lengths[trajectory] - length + 1)).long()
        expected = z[(first[trajectory] + start)[:, None] + torch.arange(length)]
        windows = frames.cut(trajectory, start, length)
        for part in (slice(None), slice(3, 40, 7), slice(5, 6)):
            torch.testing.assert_close(windows(part), expected[part], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preload", [True, False])
def test_a_loader_hands_out_latents_in_the_order_of_frames(tmp_path: Path, preload: bool) -> None:
    trajectories, codec = make_set(), Codec()
    sets = {"burgers1d": trajectories}
    store = LatentStore(tmp_path, dtype="float32", preload=preload)
    latents = {"burgers1d": store.load("train", trajectories, codec, codec.weights)}
    with WindowLoader(sets, 4, 1, 1, seed=3) as plain, WindowLoader(sets, 4, 1, 1, seed=3, latents=latents) as cached:
        for step, (frames, found) in enumerate(islice(zip(plain, cached, strict=False), 12)):
            assert found.latents is not None
            encoded = conv1d(frames.frames.flatten(0, 1), codec.weights["encoder"], stride=4)
            torch.testing.assert_close(found.latents.flatten(0, 1), encoded, rtol=1e-6, atol=1e-6)
            assert found.frames.shape == frames.frames.shape
            assert found.frames.is_meta
            assert torch.equal(found.dt, frames.dt)
            assert torch.equal(found.params, frames.params)
            assert (len(found), found.horizon, found.grid) == (len(frames), frames.horizon, frames.grid)
            assert found.to("cpu") is found
            if step == 5:
                plain.set_horizon(2)
                cached.set_horizon(2)


def test_a_lazy_set_is_encoded_as_one_in_memory(tmp_path: Path) -> None:
    path = write_task(tmp_path / "burgers.h5", "burgers1d", num=4, frames=6, resolution=16)
    found = []
    for name, budget in (("held", 1.0), ("lazy", 1e-6)):
        trajectories = load_files([path], "burgers1d", DataSettings(task=("burgers1d",), memory_budget_gb=budget))
        found.append(load(LatentStore(tmp_path / name, dtype="float32"), trajectories, Codec()))
    assert torch.equal(*found)


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def edit(**changes: object) -> Callable[[Path, Path], None]:
    def damage(_array: Path, manifest: Path) -> None:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))

    return damage


def cut_manifest(_array: Path, manifest: Path) -> None:
    os.truncate(manifest, 20)


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated": (lambda array, _: os.truncate(array, 100), "torn \\(100 bytes instead of"),
    "emptied": (lambda array, _: os.truncate(array, 0), "torn \\(0 bytes"),
    "extended": (lambda array, _: os.truncate(array, 10**4), "torn \\(10000 bytes"),
    "zeroed": (lambda array, _: array.write_bytes(bytes(array.stat().st_size)), "SHA-256"),
    "first bit": (lambda array, _: flip(array, 0), "SHA-256"),
    "a bit": (lambda array, _: flip(array, 0.6), "SHA-256"),
    "last bit": (lambda array, _: flip(array, 1), "SHA-256"),
    "no array": (lambda array, _: array.unlink(), "there is none yet"),
    "no manifest": (lambda _, manifest: manifest.unlink(), "there is none yet"),
    "manifest cut": (cut_manifest, "manifest is damaged"),
    "manifest is no text": (lambda _, manifest: manifest.write_bytes(b"\xff\xfe\x00{"), "manifest is damaged"),
    "manifest is a list": (lambda _, manifest: manifest.write_text("[]"), "manifest is damaged"),
    "another hash": (edit(sha256="0" * 64), "SHA-256"),
    "another layout": (edit(shape=[25, 4, 6]), "SHA-256"),
    "fewer frames": (edit(shape=[5, 6, 20]), "torn"),
    "another dtype": (edit(dtype="bfloat16"), "SHA-256"),
    "unknown dtype": (edit(dtype="float64"), "manifest is damaged"),
    "another key": (edit(key="0" * 64), "other data, another codec or another dtype"),
    "more entries": (edit(more=1), "manifest is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, name: str) -> None:
    trajectories, codec, said = make_set(), Codec(), []
    store = LatentStore(tmp_path, preload=False, say=said.append)
    expected = load(store, trajectories, codec).clone()
    damage, reason = DAMAGE[name]
    damage(tmp_path / CACHE[0], tmp_path / CACHE[1])
    for _ in range(2):
        assert torch.equal(load(store, trajectories, codec), expected)
    assert codec.encoded == 2 * sum(LENGTHS)
    assert len(said) == 2
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(said[1])
    assert parts(tmp_path) == CACHE


def test_everything_that_latents_are_made_of_is_in_the_key() -> None:
    weights = {"encoder": make_weight(), "mean": torch.zeros(1), "std": torch.ones(1)}
    grid, full = Grid(((np.arange(16) + 1.0) / 16,), (True,)), make_set()
    others = {
        "the same": (make_set(), weights, "float16"),
        "codec": (full, weights | {"encoder": make_weight(1)}, "float16"),
        "statistics": (full, weights | {"std": torch.tensor([1.5])}, "float16"),
        "exchanged": (full, weights | {"mean": weights["std"], "std": weights["mean"]}, "float16"),
        "precision": (full, weights | {"mean": weights["mean"].double()}, "float16"),
        "shape": (full, weights | {"encoder": make_weight().reshape(6, 4, 1)}, "float16"),
        "dtype": (full, weights, "float32"),
        "values": (make_set(seed=1), weights, "float16"),
        "time step": (make_set(dt=0.2), weights, "float16"),
        "frames kept": (full._with(lengths=full.lengths - 1), weights, "float16"),
        "lattice": (full._with(grid=grid), weights, "float16"),
        "order": (full.subset([1, 0, 2, 3, 4]), weights, "float16"),
    }
    keys = {name: latent_key(*parts) for name, parts in others.items()}  # type: ignore[arg-type]
    assert keys.pop("the same") == latent_key(full, weights, "float16")
    assert latent_key(full, weights, "float16") not in keys.values()
    assert len(set(keys.values())) == len(keys)


def test_the_cache_of_another_codec_is_replaced_and_its_reader_keeps_it(tmp_path: Path) -> None:
    trajectories, said = make_set(), []
    store = LatentStore(tmp_path, dtype="float32", preload=False, say=said.append)
    old = load(store, trajectories, Codec(0))
    reopened = load(store, trajectories, Codec(0))
    new = load(store, trajectories, Codec(1))
    assert "it is of other data, another codec or another dtype" in said[1]
    for found, seed in ((old, 0), (reopened, 0), (new, 1)):
        torch.testing.assert_close(found, exact(trajectories, Codec(seed)), rtol=1e-6, atol=1e-6)
    assert parts(tmp_path) == CACHE


@pytest.mark.parametrize(
    ("preload", "free", "held"), [("auto", 10**6, True), ("auto", 100, False), (True, 0, True), (False, 10**6, False)]
)
def test_latents_are_held_in_memory_where_they_fit(
    tmp_path: Path, preload: Any, free: int, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ups.data.latents.free_memory", lambda: free)
    codec = Codec()
    frames = LatentStore(tmp_path, preload=preload).load("train", make_set(), codec, codec.weights)
    assert frames.in_memory is held
    mapped = os.path.realpath(tmp_path / CACHE[0])
    del codec
    assert any(mapped in line for line in Path("/proc/self/maps").read_text().splitlines()) is not held


def test_free_memory_is_some_of_what_there_is() -> None:
    assert 0 < free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


WRITER = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, {root!r})
from tests.data.latent_cache import Codec, exact, load, make_set
from ups.data.latents import LatentStore

torch.set_num_threads(1)
folder, seed, ready = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
trajectories, codec, said = make_set(), Codec(seed), []
expected = exact(trajectories, codec)
store = LatentStore(folder, dtype="float32", preload=False, say=said.append)

class Slow(Codec):
    def __call__(self, frames):
        time.sleep({pause})
        return super().__call__(frames)

ready.touch()
while len(list(ready.parent.iterdir())) < {writers}:
    time.sleep(0.001)
held = []
for turn in range({turns}):
    held.append(load(store, trajectories, Slow(seed)))
    for latents in held:
        torch.testing.assert_close(latents, expected, rtol=1e-6, atol=1e-6)
print(len(said))
"""


def start_writers(folder: Path, seeds: list[int], turns: int, pause: float) -> list[subprocess.Popen[str]]:
    (folder / "ready").mkdir()
    root = str(Path(__file__).parents[2])
    code = WRITER.format(root=root, pause=pause, writers=len(seeds), turns=turns)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder / "cache"), str(seed), str(folder / "ready" / str(number))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number, seed in enumerate(seeds)
    ]


@pytest.mark.parametrize("seeds", [[0, 0], [0, 1]])
def test_two_writers_at_once_never_mix(tmp_path: Path, seeds: list[int]) -> None:
    """Of one codec and of two: each reads what its own codec gives, in every turn and as long as it holds it."""
    for writer in start_writers(tmp_path, seeds, turns=15, pause=0.002):
        out, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
        assert int(out) >= 1
    assert parts(tmp_path / "cache") == CACHE


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    (writer,) = start_writers(tmp_path, [0], turns=1, pause=30.0)
    cache = tmp_path / "cache"
    while not (cache.exists() and parts(cache)):
        assert writer.poll() is None, writer.communicate()[1]
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=30)
    (leftover,) = cache.iterdir()
    trajectories, codec = make_set(), Codec()
    store = LatentStore(cache, dtype="float32")
    torch.testing.assert_close(load(store, trajectories, codec), exact(trajectories, codec), rtol=1e-6, atol=1e-6)
    assert sorted(parts(cache)) == sorted([*CACHE, leftover.name])  # its writer might live
    os.utime(leftover, (0, 0))
    load(store, trajectories, Codec(1))
    assert parts(cache) == CACHE


def test_a_full_disk_is_an_error_and_what_stood_there_stays(tmp_path: Path) -> None:
    trajectories = make_set()
    store = LatentStore(tmp_path, dtype="float32", preload=False)
    old = load(store, trajectories, Codec(0))
    before = {name: (tmp_path / name).read_bytes() for name in CACHE}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for room in (0, 500, old.nbytes - 1, old.nbytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            if room < old.nbytes:
                with pytest.raises(UpsError, match=r"cannot be written: .*; give another"):
                    load(store, trajectories, Codec(1))
                assert {name: (tmp_path / name).read_bytes() for name in parts(tmp_path)} == before
            else:
                load(store, trajectories, Codec(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)
    assert parts(tmp_path) == CACHE


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UpsError, match=r"file/burgers1d-train.latents cannot be read: .*or null to train without"):
        load(LatentStore(tmp_path / "file"), make_set(), Codec())


def test_a_latent_that_the_dtype_cannot_hold_is_an_error(tmp_path: Path) -> None:
    codec = Codec()
    codec.weights["encoder"] *= 1e5
    with pytest.raises(UpsError, match=r"does not fit in torch.float16; give training.latent_cache_dtype float32"):
        load(LatentStore(tmp_path), make_set(), codec)
    assert parts(tmp_path) == []
    load(LatentStore(tmp_path, dtype="bfloat16"), make_set(), codec)
