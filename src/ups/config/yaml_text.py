"""YAML as settings need it: version 1.2's plain scalars (`1e-3` is a number, `off` is a word), no tags, no bombs.

A text is measured as a stream of events before anything is built from it, so that deep nesting and aliases that
multiply cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from ups.errors import SettingsError

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN))$",
     list("-+.0123456789")),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """A safe loader with YAML 1.2's core schema that refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (yaml's own protocol)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > 40:
            raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark)
        return int(node.value)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Writes plain only what `_Loader` reads back as the same value."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (yaml's own protocol)

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_yaml_float)


def _measure(text: str, source: str) -> None:
    depth = nodes = 0
    weights: dict[str, int] = {}  # nodes that an anchor stands for, once its node has ended
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Loader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise SettingsError(f"{source}, line {line}: the tag {event.tag} is refused; write a plain value")
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == name for name, _ in opened):
                raise SettingsError(f"{source}: the alias *{anchor} stands inside its own anchor; write the value out")
            nodes += weights.get(anchor, 1) if anchor else 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before = opened.pop()
            if name:
                weights[name] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if anchor:
                weights[anchor] = 1
        depth = max(depth, len(opened))
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise SettingsError(
                f"{source}: nested deeper than {MAX_DEPTH} levels or, with its aliases written out, larger than "
                f"{MAX_NODES} values; this is not a settings file"
            )


def parse_yaml(text: str, source: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        text: one YAML document.
        source: what to call the text in errors: a file or "command line".

    Raises:
        SettingsError: the text is not YAML, has a tag, gives a key twice, or is larger than any settings file is.
    """
    if len(text) > MAX_BYTES:
        raise SettingsError(f"{source}: larger than {MAX_BYTES:,} characters; this is not a settings file")
    try:
        _measure(text, source)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{source}{where}: {error.problem or 'not YAML'}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{source}: {' '.join(str(error).split())}") from error


def dump_yaml(value: Any) -> str:
    """The YAML text, in ASCII, that `parse_yaml` reads back as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=120)
