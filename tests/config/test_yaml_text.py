"""YAML 1.2's plain scalars, and texts that must be refused before anything is built from them."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ups.config.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_NODES, dump_yaml, parse_yaml
from ups.errors import SettingsError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_dump_is_read_back_as_the_same_value(value: object) -> None:
    assert parse_yaml(dump_yaml(value), "test") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3", 3),
        ("017", 17),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("off", "off"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("'3'", "3"),
        (".inf", math.inf),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(text, "test")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['echo broken']",
        "a: !!python/name:os.system ''",
        "!!python/object:object {}",
        "a: !custom 3",
        "a: !!binary aGVsbG8=",
        "a: !!set {b}",
    ],
)
def test_tags_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"test, line 1: the tag .* is refused"):
        parse_yaml(text, "test")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "a is given twice"),
        ("1: a", "a key must be a word"),
        ("? [a, b]\n: 1", "a key must be a word"),
        ("<<: {a: 1}", None),
        ("a: [1", "line 1"),
        ("a: b: c", "line 1"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: \x00", "test"),
        ("a: *nowhere", "nowhere"),
        (f"a: {'9' * 5000}", "too many digits"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str | None) -> None:
    if said is None:
        assert parse_yaml(text, "test") == {"<<": {"a": 1}}, "a merge key is an ordinary, and so an unknown, word"
        return
    with pytest.raises(SettingsError, match=said):
        parse_yaml(text, "test")


def _laughs() -> str:
    lines = ["l0: &l0 [lol, lol]"]
    lines += [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(_laughs(), id="aliases that multiply"),
        pytest.param("a: &a 1\nb: [" + "*a, " * 100_000 + "1]", id="many aliases"),
        pytest.param("a: &a [*a]", id="an alias in its own anchor"),
        pytest.param("[" * 10_000, id="deep nesting, open"),
        pytest.param("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), id="deep nesting, closed"),
        pytest.param("[" + "1, " * (MAX_NODES + 1) + "]", id="many values"),
        pytest.param("#" * (MAX_BYTES + 1), id="many characters"),
    ],
)
def test_bombs_are_refused_quickly(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(SettingsError):
        parse_yaml(text, "test")
    assert time.perf_counter() - began < 10


def test_a_few_aliases_are_welcome() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: [*x, *x]", "test") == {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}
