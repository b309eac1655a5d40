"""What is wrong with settings, in words: each problem with its dotted name, its file and what would be right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ups.config.merge import BUDGETS
from ups.config.names import nearest_name, setting_names

Path = tuple[str, ...]


def _number(value: float) -> str:
    """A bound as a person writes it: 0, not 0.0."""
    return str(int(value)) if float(value).is_integer() else str(value)


_EXPECTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "bool_type": lambda _: "true or false",
    "string_type": lambda _: "text",
    "tuple_type": lambda _: "a list",
    "dict_type": lambda _: "a group of settings",
    "model_type": lambda _: "a group of settings",
    "model_attributes_type": lambda _: "a group of settings",
    "literal_error": lambda context: str(context["expected"]),
    "union_tag_invalid": lambda context: f"a name out of {context['expected_tags']}",
    "greater_than": lambda context: f"above {_number(context['gt'])}",
    "greater_than_equal": lambda context: f"at least {_number(context['ge'])}",
    "less_than": lambda context: f"below {_number(context['lt'])}",
    "less_than_equal": lambda context: f"at most {_number(context['le'])}",
    "too_short": lambda context: f"a list of at least {context['min_length']}",
    "too_long": lambda context: f"a list of at most {context['max_length']}",
    "string_too_short": lambda _: "text that is not empty",
    "string_pattern_mismatch": lambda context: f"text that matches {context['pattern']}",
}


def _holds(node: Any, part: str | int) -> bool:
    """Whether a step of pydantic's path exists in the tree; the name of a union's member does not."""
    return part in node if isinstance(node, Mapping) else isinstance(node, list) and part in range(len(node))


def _written_path(error: ErrorDetails, tree: Any) -> Path:
    """The place in the file that an error is about: pydantic's own, without the names of union members."""
    path: list[str] = []
    node = tree
    for part in error["loc"]:
        if _holds(node, part):
            path.append(str(part))
            node = node[part]
    last = error["loc"][-1] if error["loc"] else None
    if error["type"] in ("missing", "extra_forbidden") and (not path or path[-1] != str(last)):
        path.append(str(last))
    return tuple(path)


def _dotted(path: Path) -> str:
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path).lstrip(".")


def _unknown(path: Path) -> str:
    name = _dotted(path)
    if name in setting_names():
        return "does not belong to the kind chosen by name beside it; remove it, or choose the kind that has it"
    near = nearest_name(name)
    return "unknown setting" + (f"; did you mean {near}?" if near else "; remove it")


def _value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(path: Path, value: str) -> str:
    """What a person may have meant by a budget of nothing."""
    if path[:1] == ("stages",) and path[-1] in BUDGETS and value in ("0", "0.0"):
        return f"; to skip the stage, give {_dotted((*path[:-1], 'epochs'))}=0"
    return ""


def describe(error: ValidationError, tree: Any, source_of: Callable[[Path], str]) -> list[str]:
    """One line per problem, in the order of the schema.

    Args:
        error: what validation raised.
        tree: the tree that was validated.
        source_of: the file, or "command line", that a place in the tree came from.
    """
    expected: dict[Path, list[str]] = {}
    found: dict[Path, str] = {}
    lines: list[tuple[Path, str]] = []
    for detail in error.errors(include_url=False):
        path = _written_path(detail, tree)
        if detail["type"] == "extra_forbidden":
            lines.append((path, _unknown(path)))
        elif detail["type"] == "missing":
            lines.append((path, "is required and not given"))
        elif detail["type"] in _EXPECTED:
            if path not in expected:
                lines.append((path, ""))
            wanted = _EXPECTED[detail["type"]](detail.get("ctx", {}))
            expected.setdefault(path, [])
            if wanted not in expected[path]:
                expected[path].append(wanted)
            found[path] = _value(detail["input"])
        else:
            lines.append((path, detail["msg"].removeprefix("Value error, ")))
    within = {path[:depth] for path in expected for depth in range(len(path))}  # a list, one item of which is wrong
    described = []
    for path, text in lines:
        if path in expected and path in within:
            continue  # what a union would take in the list's place is not what is wrong
        said = text or f"must be {' or '.join(expected[path])}, not {found[path]}{_hint(path, found[path])}"
        name = f"{_dotted(path)} " if path else ""
        described.append(f"{name}({source_of(path)}): {said}")
    return described
