"""The accuracy bench's own logic: which lines count, what is missing, what the table makes of them."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import accuracy
from accuracy_bench import cells as bench_cells
from accuracy_bench import results, summary, table
from accuracy_bench import search as bench_search
from accuracy_bench.models import MODELS, build_network, recipe_of
from accuracy_bench.peers import External
from accuracy_bench.recipes import RECIPES, SEARCHES, STARTS, Recipe
from accuracy_bench.results import Cell, append, claimed, newest, read_cells, read_lines, stale
from accuracy_bench.tasks import TASKS, Made, Published, describe, horizon
from ups.config import Settings
from ups.data.split import assign
from ups.errors import UsageError
from ups.models.emulator import TaskSpec
from ups.physics.equations import EQUATIONS

CELL = Cell("burgers", "ups", 200.0, 0)


def make_line(cell: Cell, value: float | None, **more: Any) -> dict[str, Any]:
    curve: list[float | None] = [value, value]
    return {
        **results.key_of(cell),
        "nrmse": value,
        "source": "now",
        "trajectories": {"train": 164},
        "curve": curve,
        "persistence": [0.5, 1.0],
        "scored_frames": 1,
    } | more


def cells_of(values: dict[tuple[str, str], list[float | None]], seconds: float = 200.0) -> summary.Cells:
    return {
        (cell := Cell(task, model, seconds, seed)): make_line(cell, value)
        for (task, model), of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    }


# --- lines -------------------------------------------------------------------------------------------------------


def test_newest_line_of_a_key_wins_and_every_part_of_the_key_counts(tmp_path: Path) -> None:
    others = [
        replace(CELL, task="ks"),
        replace(CELL, model="fno"),
        replace(CELL, seconds=60.0),
        replace(CELL, seed=1),
        replace(CELL, device="cuda"),
        replace(CELL, train=20),
    ]
    for number, cell in enumerate([CELL, *others]):
        append(make_line(cell, 1.0 + number), tmp_path / f"{cell.task}.jsonl")
    append(make_line(CELL, 0.25), tmp_path / "burgers.jsonl")
    append({"task": "burgers", "model": "fno"}, tmp_path / "search.jsonl")  # candidates are no cells
    found = read_cells(tmp_path)
    assert {cell: line["nrmse"] for cell, line in found.items()} == {
        CELL: 0.25,
        **{cell: 2.0 + number for number, cell in enumerate(others)},
    }
    assert len({cell.slug for cell in found}) == 7


def test_line_holds_six_digits_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "lines" / "burgers.jsonl"
    append({"a": math.nan, "b": [math.inf, 0.12345678], "c": {"d": -math.inf}, "e": 3, "f": True}, path)
    assert read_lines(path) == [{"a": None, "b": [None, 0.123457], "c": {"d": None}, "e": 3, "f": True}]


def test_processes_side_by_side_append_whole_lines(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from accuracy_bench.results import append\n"
        "for i in range(200): append({'who': sys.argv[3], 'i': i, 'pad': 'x' * 9000}, Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(Path(accuracy.__file__).parent), str(tmp_path / "x.jsonl")]
    running = [subprocess.Popen([*command, who]) for who in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    lines = read_lines(tmp_path / "x.jsonl")
    assert sorted((line["who"], line["i"]) for line in lines) == [(who, i) for who in "ab" for i in range(200)]


def test_stale_cells_are_those_of_other_code() -> None:
    other = replace(CELL, seed=1)
    cells = newest([make_line(CELL, 1.0), make_line(other, 1.0, source="before")])
    assert stale(cells, "now") == [other]


def test_source_hash_changes_with_any_module(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.py").write_text("x = 1\n")
    before = results.source_hash(tmp_path)
    (tmp_path / "notes.md").write_text("no module")
    assert results.source_hash(tmp_path) == before
    (tmp_path / "a" / "one.py").rename(tmp_path / "one.py")
    assert results.source_hash(tmp_path) != before


# --- computing what is missing -----------------------------------------------------------------------------------


def arguments(work: Path, **changes: Any) -> Namespace:
    given = {"tasks": ["burgers"], "models": ["fno"], "seconds": [60.0, 200.0], "seeds": [0, 1], "device": "cpu"}
    rest = {
        "train": None,
        "label": None,
        "set": None,
        "redo": False,
        "data": None,
        "work": work,
        "results": work / "results",
    }
    return Namespace(**{**given, **rest, **changes})


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Cell]]:
    """The cells that `run` computes, which here costs nothing."""
    done: list[tuple[str, Cell]] = []

    def compute(cell: Cell, name: str, *given: Any, **more: Any) -> dict[str, Any]:
        done.append((name, cell))
        return make_line(cell, float(len(done)))

    monkeypatch.setattr(bench_cells, "compute", compute)
    return done


def test_run_resumes_and_redoes(computed: list[tuple[str, Cell]], tmp_path: Path) -> None:
    accuracy.run(arguments(tmp_path, seconds=[200.0]))
    accuracy.run(arguments(tmp_path))
    assert [(cell.seconds, cell.seed) for _, cell in computed] == [(200.0, 0), (200.0, 1), (60.0, 0), (60.0, 1)]
    accuracy.run(arguments(tmp_path, seconds=[60.0], seeds=[1], redo=True))
    found = read_cells(tmp_path / "results")
    assert len(computed) == 5
    assert found[Cell("burgers", "fno", 60.0, 1)]["nrmse"] == 5.0


def test_untrained_models_have_one_cell_and_experiments_a_row_of_their_own(
    computed: list[tuple[str, Cell]], tmp_path: Path
) -> None:
    accuracy.run(arguments(tmp_path, models=["linear"]))
    accuracy.run(arguments(tmp_path, models=["ups"], seconds=[200.0], seeds=[0], label="ups-no-frame"))
    assert computed == [
        ("linear", Cell("burgers", "linear", 200.0, 0)),
        ("ups", Cell("burgers", "ups-no-frame", 200.0, 0)),
    ]


def test_cell_of_a_living_process_is_skipped(computed: list[tuple[str, Cell]], tmp_path: Path) -> None:
    cell = Cell("burgers", "fno", 60.0, 0)
    (tmp_path / "locks").mkdir()
    handle = os.open(tmp_path / "locks" / f"{cell.slug}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    accuracy.run(arguments(tmp_path, seconds=[60.0]))
    assert [cell.seed for _, cell in computed] == [1]
    os.close(handle)  # as when it dies
    with claimed(cell, tmp_path / "locks") as ours:
        assert ours


# --- the table ---------------------------------------------------------------------------------------------------


def test_geometric_mean_and_ratio_of_medians() -> None:
    peers = ("fno", "unet")
    cells = cells_of(
        {
            ("burgers", "ups"): [0.1, 0.3, 0.2],
            ("burgers", "fno"): [0.9, 0.8, 0.1],
            ("burgers", "unet"): [None, 1.0, None],  # two of three are not finite: worse than any number
            ("ks", "ups"): [0.2, 0.2, 0.2],
            ("ks", "fno"): [0.1, 0.1, 0.1],
        }
    )
    burgers, ks = (summary.ratio(cells, task, peers) for task in ("burgers", "ks"))
    assert (burgers.peer, burgers.complete, ks.peer, ks.complete) == ("fno", True, "fno", False)
    assert burgers.value == pytest.approx(0.25)
    assert summary.geometric_mean([0.25, ks.value or 0.0]) == pytest.approx(math.sqrt(0.5))
    assert summary.geometric_mean([]) is None
    assert summary.ratio(cells, "advection", peers).value is None


def test_missing_cells_are_named_and_never_guessed() -> None:
    cells = cells_of({("burgers", "ups"): [0.1, 0.3], ("burgers", "fno"): [0.2, 0.2, 0.4]})
    report = table.Report(cells)
    text = report.text()
    row = next(line for line in text.splitlines() if line.startswith("| burgers |"))
    assert "| 0.2 [0.1 - 0.3, n = 2] |" in row
    assert "| 0.2 [0.2 - 0.4] |" in row
    assert row.count("missing") == 5  # persistence, linear, unet, ups_stack, ups_unet
    gone = text.split("## Missing cells")[1]
    assert "- burgers, ups, 200 s: seed 2\n" in gone
    assert "burgers, fno, 200 s:" not in gone
    assert "- advection, ups, 200 s: seed 0, 1, 2\n" in gone
    assert "- burgers, ups, 200 s, 20 trajectories: seed 0, 1, 2\n" in gone
    assert r"| 1\* (fno) |" in row  # a ratio of which cells are missing says so


def test_experiments_have_rows_of_their_own_and_change_no_other() -> None:
    cells = dict(cells_of({("burgers", "ups"): [0.2, 0.2, 0.2], ("burgers", "fno"): [0.4, 0.4, 0.4]}))
    before = table.Report(cells).main()
    trial = Cell("burgers", "ups-small", 200.0, 0)
    cells[trial] = make_line(trial, 0.001, recipe={"settings": ["operator.pdet.hidden_dim=32"]})
    report = table.Report(cells)
    assert report.main() == before
    wanted = "| burgers | ups-small | 200 | all | 0.001 [0.001 - 0.001, n = 1] | operator.pdet.hidden_dim=32 |"
    assert wanted in report.text()


def test_diverged_seed_is_said_and_counts_as_worst() -> None:
    spread = summary.Spread.of([None, 0.2, 0.1], 3)
    assert str(spread) == "0.2 [0.1 - diverged]"
    assert summary.Spread.of([None, None, 0.1], 3).median == math.inf


def test_stability_is_against_the_largest_persistence_so_far() -> None:
    line = {"curve": [0.1, 0.4, 0.6, 0.9], "persistence": [0.5, 1.0, 0.2, 0.1]}  # the wave comes back to its start
    assert summary.stability(line, 2) == pytest.approx(0.4)
    assert summary.stability(line) == pytest.approx(0.9)
    assert summary.stability({**line, "curve": [0.1, None, None, None]}) is None


def test_stability_is_judged_over_all_frames_and_seeds() -> None:
    held, beyond = Cell("burgers", "ups", 200.0, 0), Cell("burgers", "ups", 200.0, 1)
    cells = {held: make_line(held, 0.1)}
    assert "Holds on 1 of 1" in table.Report(cells).stability()
    cells[beyond] = make_line(beyond, 0.1, curve=[0.1, 1.1])  # worse than persistence after the horizon
    text = table.Report(cells).stability()
    assert "Holds on 0 of 1" in text
    assert "| 1.1 | twice the horizon | 2 | **fails** |" in text
    cells[beyond] = make_line(beyond, 0.1, curve=[0.1, None])
    assert "diverged" in table.Report(cells).stability()


def test_solver_is_held_at_the_coarsest_grid_that_is_as_accurate() -> None:
    trials = [
        {"resolution": points, "nrmse": error, "seconds_per_trajectory": seconds}
        for points, error, seconds in ((16, None, 1.0), (32, 0.2, 2.0), (48, 0.1, 3.0), (64, 0.01, 4.0))
    ]
    line = {"task": "burgers", "ups_seconds": 1.5, "solver": trials, "samples": [0, 2]}

    def told(*each: float) -> str:
        ours = Cell("burgers", "ups", 200.0, 0)
        return table.Report({ours: make_line(ours, 9.0, each=each)}, {"burgers": line}).at_equal_error()

    assert "| burgers | 0.1 | 1.5 | 48 | 0.1 | 3 | 2 |" in told(
        0.05, 7.0, 0.15
    )  # the trajectories that it was timed on
    assert "| burgers | 0.001 | 1.5 | none | 0.01 at best | - | - |" in told(0.001, 7.0, 0.001)


def test_lines_read_back_draw_the_same_table(tmp_path: Path) -> None:
    cells = cells_of({("ks", "ups"): [0.1, 0.2, 0.3], ("ks", "linear"): [1.0]})
    for line in cells.values():
        append(line, tmp_path / "accuracy" / "ks.jsonl")
    table.draw(lambda line: None, tmp_path / "accuracy")
    assert (tmp_path / "accuracy.md").read_text() == table.Report(cells).text()


# --- tasks, recipes and peers ------------------------------------------------------------------------------------


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


def make_spec(name: str) -> TaskSpec:
    equation = EQUATIONS[name]
    lattice = tuple(32 for _ in range(equation.dim))
    spacing = tuple(length / 32 for length in equation.lengths)
    return TaskSpec(
        name=name, fields=tuple(field.name for field in equation.fields), lattice=lattice, spacing=spacing,
        origin=tuple(low + step / 2 for (low, _), step in zip(equation.domain, spacing, strict=True)),
        periodic=equation.periodic, form=equation.form,
        conserved=tuple(field.conserved for field in equation.fields), context=1, dt=0.1,
        mean=(0.0,) * len(equation.fields), std=(1.0,) * len(equation.fields),
        static=0 if equation.forcing is None else 1,
    )  # fmt: skip


PACKAGES = {
    "neuralop_fno": ("neuralop", "neuralop.models"),
    "neuralop_uno": ("neuralop", "neuralop.models"),
    "pdetransformer": ("pdetransformer", "diffusers"),
}
"""Of networks of other packages: the package, and what of it, or of those it needs, has to import."""
ENTRIES = [
    (equation, model)
    for equation in ("burgers1d", "reaction_diffusion2d", "kolmogorov2d")
    for model in sorted(MODELS)
    if MODELS[model].kind == "network"
    and EQUATIONS[equation].dim in MODELS[model].axes
    and (model not in PACKAGES or equation != "kolmogorov2d")
]


def require_package(model: str) -> None:
    """Skips the test where a network's package is not installed, or not with all that it needs."""
    if model not in PACKAGES:
        return
    package, imported = PACKAGES[model]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: it is in the extra 'bench'")
    why = f"{package} is installed without what it needs: see the extra 'bench'"
    pytest.importorskip(imported, reason=why, exc_type=ImportError)


def test_a_package_installed_without_what_it_needs_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neuralop").mkdir()
    (tmp_path / "neuralop" / "__init__.py").write_text("import no_such_dependency")
    for name in [name for name in sys.modules if name.partition(".")[0] == "neuralop"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(pytest.skip.Exception, match="installed without what it needs"):
        require_package("neuralop_fno")


@pytest.mark.parametrize(("equation", "model"), ENTRIES)
@pytest.mark.filterwarnings("ignore")  # of other packages
def test_networks_step_on_every_grid_and_all_their_weights_learn(equation: str, model: str) -> None:
    spec = make_spec(equation)
    require_package(model)
    recipe = recipe_of(MODELS[model], spec.axes, "burgers")
    emulator = build_network(MODELS[model], {equation: spec}, recipe)
    u = torch.randn(2, 1, len(spec.fields), *spec.lattice)
    call = {"task": equation, "dt": torch.full((2,), 0.1), "params": torch.zeros(2, 0)}
    for weight in emulator.parameters():
        weight.data += 0.01 * torch.randn_like(weight)  # those that start at zero would hide the others
    emulator.step(u, **call).square().sum().backward()
    assert all(weight.grad is not None for weight in emulator.parameters())
    assert all(isinstance(value, torch.Tensor) for value in emulator.state_dict().values())


def test_external_networks_save_tensors_alone() -> None:
    class Described(nn.Linear):
        def state_dict(self, *given: Any, **more: Any) -> Any:
            state = super().state_dict(*given, **more)
            state["_metadata"] = {"version": 1}
            return state

    assert list(nn.Sequential(External(Described(2, 3))).state_dict()) == ["0.network.weight", "0.network.bias"]
