"""How trees of settings are laid over each other: an include under its file, the command line over both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BUDGETS = ("epochs", "steps", "seconds")
_VALUES = frozenset({"files", "train_files", "valid_files", "test_files"})  # mappings that are one value, not a group


def move_task_alias(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with `task` at the top moved to `data.task`.

    Raises:
        ValueError: when both are given and differ.
    """
    if "task" not in tree:
        return dict(tree)
    rest = {key: value for key, value in tree.items() if key != "task"}
    data = rest.get("data")
    if data is not None and not isinstance(data, Mapping):
        return rest
    data = {} if data is None else data
    if data.get("task", tree["task"]) != tree["task"]:
        raise ValueError(f"task is {tree['task']!r} and data.task is {data['task']!r}; give one of them")
    return {**rest, "data": {**data, "task": tree["task"]}}


def deep_merge(
    base: Mapping[str, Any], over: Mapping[str, Any], path: tuple[str, ...] = (), *, displacing: bool = True
) -> dict[str, Any]:
    """`base` with `over` laid upon it: groups merge key by key, everything else (lists too) is replaced.

    Two kinds of groups are choices and not collections: a stage's budget displaces a budget of another kind, and a
    schedule of another name displaces the schedule with its keys.

    Args:
        displacing: a choice displaces another; without, the keys of both stay.
    """
    merged = dict(base)
    if displacing and path[:1] == ("stages",) and len(path) == 2 and any(over.get(key) is not None for key in BUDGETS):
        merged = {key: value for key, value in merged.items() if key not in BUDGETS}
    if displacing and path[-1:] == ("scheduler",) and "name" in over and over["name"] != base.get("name", "cosine"):
        merged = {}
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and key not in _VALUES:
            merged[key] = deep_merge(below, value, (*path, key), displacing=displacing)
        else:
            merged[key] = value
    return merged
