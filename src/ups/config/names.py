"""The names that settings have, and the nearest one to a name that does not exist."""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from ups.config.schema import Settings


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The groups that a field may hold, looked for through unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _models_in(inner)


def _walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for group in _models_in(field.annotation):
            yield from _walk(group, f"{prefix}{name}.")


@functools.cache
def setting_names() -> tuple[str, ...]:
    """All dotted names a settings file may hold, groups included, in the order of the schema."""
    return tuple(dict.fromkeys(["task", *_walk(Settings, "")]))


def nearest_name(unknown: str) -> str | None:
    """The setting that was most likely meant by a dotted name, or None when nothing is near.

    A slip of the pen beside the right neighbours comes first, then the same word in another group,
    rather in one that is called like the group that was written, then anything alike.
    """
    group, _, word = unknown.rpartition(".")
    siblings = [name for name in setting_names() if name.rpartition(".")[0] == group]
    near = difflib.get_close_matches(word, [name.rpartition(".")[2] for name in siblings], n=1, cutoff=0.7)
    if near:
        return f"{group}.{near[0]}" if group else near[0]
    elsewhere = [name for name in setting_names() if name.rpartition(".")[2] == word]
    if elsewhere:
        groups = set(group.split("."))
        return max(elsewhere, key=lambda name: len(groups & set(name.split("."))))
    words = {name.rpartition(".")[2]: name for name in reversed(setting_names())}
    for candidates in (setting_names(), words):
        found = difflib.get_close_matches(unknown if candidates is not words else word, candidates, n=1, cutoff=0.75)
        if found:
            return words.get(found[0], found[0]) if candidates is words else found[0]
    return None
