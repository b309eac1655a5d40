"""The accuracy bench's tasks, their splits, and the search for recipes."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bench.made_lines import arguments

from accuracy_bench import cells as bench_cells
from accuracy_bench import search as bench_search
from accuracy_bench.models import MODELS
from accuracy_bench.recipes import RECIPES, SEARCHES, STARTS, Recipe
from accuracy_bench.results import Cell, append
from accuracy_bench.tasks import TASKS, Made, Published, describe, horizon
from ups.config import Settings
from ups.data.split import assign
from ups.errors import UsageError


def test_unseen_parameters_are_in_test_files_alone() -> None:
    task = TASKS["burgers_multi"]
    assert isinstance(task, Made)
    values = {split: [params["nu"] for _, _, params in task.files(split)] for split in ("train", "valid", "test")}
    assert len(values["test"]) == 12
    assert values["train"] == values["valid"]
    unseen = sorted(set(values["test"]) - set(values["train"]))
    assert len(unseen) == 2
    assert min(values["train"]) < unseen[0] < unseen[1] < max(values["train"])
    assert [task.is_unseen([float(np.float32(value))]) for value in values["test"]] == [
        value in unseen for value in values["test"]
    ]
    seeds = [seed for split in values for _, seed, _ in task.files(split)]
    assert len(set(seeds)) == len(seeds)


def test_made_files_go_on_for_twice_the_horizon_and_others_are_refused(tmp_path: Path) -> None:
    task = Made("advection1d", (2, 1, 1), "beta", (0.2, 0.3, 0.4), unseen=(1,))
    task.prepare(tmp_path, lambda line: None)
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(made) == 2 + 2 + 3
    test, train = (describe(tmp_path / f"advection1d_{split}_00.hdf5", 1, ("beta",)) for split in ("test", "train"))
    assert (test["frames"] - 1, test["time"]) == (2 * (train["frames"] - 1), 2 * train["time"])
    task.prepare(tmp_path, lambda line: None)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made
    with pytest.raises(UsageError, match="samples"):
        replace(task, counts=(3, 1, 1)).prepare(tmp_path, lambda line: None)
    with pytest.raises(UsageError, match="beta"):
        replace(task, values=(0.21, 0.3, 0.4)).prepare(tmp_path, lambda line: None)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_settings_of_every_task_are_valid(name: str, tmp_path: Path) -> None:
    places = bench_cells.Places(tmp_path, tmp_path / "cache", tmp_path / "runs")
    for model in ("ups", "ups_stack", "ups_unet"):
        settings = bench_cells.settings_of(Cell(name, model, 60.0, 3), MODELS[model], places)
        assert isinstance(settings, Settings)
        assert settings.data.task == (TASKS[name].equation,)
        assert (settings.seed, settings.stages.operator.seconds, settings.training.clock) == (3, 60.0, "process")
    assert horizon(name, 41) == (21 if isinstance(TASKS[name], Made) else 41)


def test_published_splits_are_as_declared() -> None:
    burgers, water = TASKS["burgers"], TASKS["shallow_water"]
    assert isinstance(burgers, Published)
    assert isinstance(water, Published)
    contents = [str(number) for number in range(200)]
    fractions = {"test": burgers.test, "valid": burgers.valid, "train": 1 - burgers.test - burgers.valid}
    parts = assign([contents], fractions, order="file", seed=0)
    assert parts is not None
    assert parts["test"][0].tolist() == list(range(20))
    assert parts["valid"][0].tolist() == list(range(20, 36))
    twins = [str(number % 20) for number in range(60)]  # as in the file: 20 distinct trajectories, 60 in all
    fractions = {"test": water.test, "valid": water.valid, "train": 1 - water.test - water.valid}
    parts = assign([twins], fractions, order="file", seed=0)
    assert parts is not None
    homes = [{int(number) % 20 for number in parts[split][0]} for split in ("test", "valid", "train")]
    assert [len(home) for home in homes] == [5, 3, 12]
    assert not homes[0] & homes[1] | homes[0] & homes[2] | homes[1] & homes[2]


def test_search_changes_sizes_or_training() -> None:
    recipe = Recipe({"width": 20, "modes": 12}, lr=1e-3)
    changed = recipe.changed(width=32, lr=4e-3)
    assert changed == Recipe({"width": 32, "modes": 12}, lr=4e-3)
    assert changed.optimizer.lr == 4e-3
    assert json.loads(json.dumps(changed.to_json()))["sizes"] == {"width": 32, "modes": 12}
    assert set(SEARCHES) == set(RECIPES) == set(STARTS)


def test_search_goes_on_from_each_round_s_winner_and_reads_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[Recipe] = []

    def measure(given: Namespace, recipe: Recipe, say: Any) -> dict[str, Any]:
        tried.append(recipe)
        wide = recipe.sizes.get("width") == 48
        value = None if recipe.lr == 8e-3 else recipe.lr + 0.01 * wide - 0.001 * (recipe.weight_decay == 0)
        line = {**bench_search.identity(given, recipe), "valid_nrmse": value, "steps": 1}
        append(line, bench_search.lines_of(given))
        return line

    monkeypatch.setattr(bench_search, "measure", measure)
    given = arguments(tmp_path, task="burgers", model="fno", seconds=30.0)
    said: list[str] = []
    bench_search.search(given, said.append)
    changes = [change for rounds in SEARCHES["fno", 1] for change in rounds]
    start = STARTS["fno", 1]
    assert len(tried) == len({json.dumps(recipe.to_json()) for recipe in tried}) <= 1 + len(changes)
    assert '"lr": 0.002, "weight_decay": 0.0' in said[-1]  # the best rate, which diverged is not; and later no decay
    assert tried[-1].lr == 2e-3 or tried[-1].lr == 16e-3
    assert start.changed(lr=2e-3, position=True) in tried
    before = len(tried)
    bench_search.search(given, said.append)
    assert len(tried) == before
    assert said[-1] == said[len(said) // 2 - 1]
