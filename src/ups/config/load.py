"""From files and overrides to settings: read safely, include, merge, validate, and write back.

`include:` is resolved relative to its file and confined to the folder of the top file. Later wins: includes in their
order, then the file itself, then the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ups.config.merge import deep_merge, move_task_alias
from ups.config.problems import describe
from ups.config.schema import Settings
from ups.config.yaml_text import MAX_BYTES, dump_yaml, parse_yaml
from ups.errors import SettingsError

MAX_INCLUDES = 64
COMMAND_LINE = "command line"

_Sources = dict[tuple[str, ...], str]


@dataclass(frozen=True)
class _Document:
    """A tree of settings and, for each place in it, where it came from."""

    tree: dict[str, Any]
    sources: _Sources

    def under(self, over: _Document) -> _Document:
        return _Document(deep_merge(self.tree, over.tree), {**self.sources, **over.sources})

    def source_of(self, path: tuple[str, ...], default: str) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self.sources:
                return self.sources[path[:length]]
        return default


def _places(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, Mapping):
            yield from _places(value, (*path, key))


def _document(tree: Any, source: str) -> _Document:
    if tree is None:
        tree = {}
    if not isinstance(tree, Mapping):
        raise SettingsError(f"{source}: must be a mapping such as `seed: 17`, not {type(tree).__name__}")
    try:
        settled = move_task_alias(tree)
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from error
    return _Document(settled, dict.fromkeys(_places(settled), source))


class _Reader:
    """Reads a file with its includes, all of them under one root."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.files_read = 0

    def read(self, path: Path, above: tuple[Path, ...]) -> _Document:
        """The document of `path`, its includes beneath it.

        Args:
            path: the file, symbolic links resolved.
            above: the files that led here, to find a circle.
        """
        self.files_read += 1
        if self.files_read > MAX_INCLUDES:
            raise SettingsError(f"{above[0]}: includes more than {MAX_INCLUDES} files; merge some of them")
        tree = parse_yaml(_text_of(path), str(path))
        includes: Any = None
        if isinstance(tree, dict):
            includes = tree.pop("include", None)
        document = _document({}, str(path))
        for include in _include_list(includes, path):
            document = document.under(self.read(self._target(include, path, above), (*above, path)))
        return document.under(_document(tree, str(path)))

    def _target(self, include: str, path: Path, above: tuple[Path, ...]) -> Path:
        try:
            target = (path.parent / include).resolve()
        except (OSError, RuntimeError) as error:  # a symlink that leads to itself
            raise SettingsError(f"{path}: include {include!r} cannot be followed: {error}") from error
        if not target.is_relative_to(self.root):
            raise SettingsError(
                f"{path}: include {include!r} leads out of {self.root}; only files in that folder may be included"
            )
        if target in (*above, path):
            circle = " -> ".join(file.name for file in (*above, path, target))
            raise SettingsError(f"{path}: include {include!r} closes a circle: {circle}; remove one of them")
        return target


def _include_list(includes: Any, path: Path) -> list[str]:
    names = [] if includes is None else [includes] if isinstance(includes, str) else includes
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise SettingsError(f"{path}: include must be a file name or a list of them, not {includes!r}")
    return names


def _text_of(path: Path) -> str:
    if not path.exists():
        raise SettingsError(f"{path}: no such settings file")
    if not path.is_file():
        raise SettingsError(f"{path}: not a file; name a YAML file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{path}: larger than {MAX_BYTES:,} bytes; this is not a settings file")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text at byte {error.start}; this is not a settings file") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error


def _override_document(overrides: Iterable[str]) -> _Document:
    """The overrides as one document, a later one over an earlier one; choices that exclude each other stay."""
    tree: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.split(".")
        if not equals or not all(key.isidentifier() for key in keys):
            raise SettingsError(f"{COMMAND_LINE}: {override!r} is not of the form key.sub=value")
        if keys[0] == "include":
            raise SettingsError(f"{COMMAND_LINE}: include works in files only; name the other file as CONFIG")
        if not text.strip():
            raise SettingsError(f"{COMMAND_LINE}: {override!r} has no value; write {name}=null to give none")
        # A pattern such as *.h5: in YAML a star begins an alias, and there is nothing here that one could be of.
        value: Any = text if text.startswith("*") else parse_yaml(text, f"{COMMAND_LINE}, {name}")
        for key in reversed(keys):
            value = {key: value}
        tree = deep_merge(tree, value, displacing=False)
    return _document(tree, COMMAND_LINE)


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Read, merge and validate a settings file.

    Args:
        path: the YAML file. What it includes must lie in its folder or below.
        overrides: `key.sub=value` pairs, values in YAML; they win over the file.

    Raises:
        SettingsError: with every problem found, each with its dotted name and where it came from.
    """
    top = Path(path)
    if not top.exists():
        raise SettingsError(f"{top}: no such settings file")
    document = _Reader(top.parent).read(top.resolve() if not top.is_symlink() else top.absolute(), ())
    document = document.under(_override_document(overrides))

    def source_of(place: tuple[str, ...]) -> str:
        return _short(document.source_of(place, str(top)))

    try:
        return Settings.model_validate(document.tree)
    except ValidationError as error:
        problems = describe(error, document.tree, source_of)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise SettingsError("\n  ".join([f"{top}: {count} in the settings", *problems])) from error


def _short(source: str) -> str:
    """A file under the working directory by its relative name."""
    path = Path(source)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else source


def resolved(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, every key written out."""
    return settings.model_dump(mode="json")


def dump_settings(settings: Settings) -> str:
    """The resolved settings as YAML; loading the text gives equal settings with the same hash."""
    return dump_yaml(resolved(settings))


def settings_hash(settings: Settings) -> str:
    """SHA-256, in hexadecimal, of the resolved settings as canonical JSON."""
    text = json.dumps(resolved(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
