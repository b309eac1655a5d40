"""Searches a peer's recipe by validation alone, candidate by candidate; test trajectories are never looked at."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accuracy_bench.cells import Places, open_workspace, settings_of, train
from accuracy_bench.models import get_model
from accuracy_bench.recipes import SEARCHES, STARTS, Recipe
from accuracy_bench.results import Cell, Line, append, commit, read_lines, rounded, source_hash
from accuracy_bench.tasks import get_task
from ups.errors import UsageError
from ups.physics.equations import get_equation
from ups.training.monitor import DivergedError


def search(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Measures the candidates of a peer, round by round; those that were measured are read from their lines.

    A round tries changes to the best recipe so far, and the best of it is what the next one starts from.
    """
    model, task = get_model(arguments.model), get_task(arguments.task)
    key = (model.architecture, get_equation(task.equation).dim)
    if key not in SEARCHES:
        raise UsageError(f"no search is declared for {arguments.model} in {key[1]} dimension(s)")
    task.prepare(arguments.work / "data", say)
    best, found = STARTS[key], math.inf
    for changes in ({},), *SEARCHES[key]:
        for change, recipe in [(change, best.changed(**change)) for change in changes]:
            line = measured(arguments, recipe) or measure(arguments, recipe, say)
            value = math.inf if line["valid_nrmse"] is None else line["valid_nrmse"]
            say(f"{arguments.model} {change or 'start'}: {value:.4g} ({line['steps']} steps)")
            if value < found:
                best, found = recipe, value
    say(f"{arguments.model} on {arguments.task}: {found:.4g} with {json.dumps(best.to_json())}")


def lines_of(arguments: argparse.Namespace) -> Path:
    """The file of the candidates."""
    place: Path = arguments.results / "search.jsonl"
    return place


def identity(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """What tells one candidate from the others."""
    asked = {name: getattr(arguments, name) for name in ("task", "model", "seconds", "device")}
    return rounded({**asked, "recipe": recipe.to_json()})


def measured(arguments: argparse.Namespace, recipe: Recipe) -> Line | None:
    """The newest line of a candidate, if there is one."""
    wanted = identity(arguments, recipe)
    lines = [line for line in read_lines(lines_of(arguments)) if {name: line[name] for name in wanted} == wanted]
    return lines[-1] if lines else None


def measure(arguments: argparse.Namespace, recipe: Recipe, say: Callable[[str], None]) -> Line:
    """Trains a candidate with the first seed and appends its line."""
    work: Path = arguments.work
    cell = Cell(arguments.task, arguments.model, arguments.seconds, 0, arguments.device)
    places = Places(arguments.data, work / "data", work / "search")
    model = get_model(arguments.model)
    workspace = open_workspace(cell, settings_of(cell, model, places), say)
    facts: dict[str, Any] = {"valid_nrmse": None, "steps": 0, "parameters": None}
    try:
        _, trained = train(workspace, cell, model, arguments.model, recipe)
        facts = {name: trained[name] for name in facts}
    except DivergedError as error:
        facts["failure"] = str(error)
    line = {**identity(arguments, recipe), **facts, "commit": commit(), "source": source_hash()}
    append(line, lines_of(arguments))
    return line
