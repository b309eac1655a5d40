"""What all groups of settings share: strictness, and the kinds of values that may be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Word = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f]+$")]
PathComponent = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


def as_tuple(value: Any) -> Any:
    """YAML has lists, settings have tuples; a single item stands for a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _as_files(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {task: as_tuple(files) for task, files in value.items()}
    return as_tuple(value)


def _files_kind(value: Any) -> str:
    return "by_task" if isinstance(value, Mapping) else "plain"


Words = Annotated[tuple[Word, ...], Field(min_length=1), BeforeValidator(as_tuple)]
Files = Annotated[
    Annotated[tuple[Word, ...], Field(min_length=1), Tag("plain")]
    | Annotated[dict[Word, Annotated[tuple[Word, ...], Field(min_length=1)]], Field(min_length=1), Tag("by_task")],
    Discriminator(_files_kind),
    BeforeValidator(_as_files),
]


class Group(BaseModel):
    """A group of settings: frozen, strict, without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)
