"""The page `docs/settings.md`, made from the schema: every key with its type, default and meaning, and what is refused.

python -m ups.config.document docs/settings.md
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ups.config.schema import Settings

TOP = """# Settings

<!-- Made from src/ups/config by `make docs`: change the docstrings there, not this page. -->

A settings file is YAML. `include: FILE`, or a list of files, lays other files beneath it; they lie in the folder of the
file that is loaded, or below. `key.sub=value` on the command line wins over all files. The least that a file must say
is `task: burgers1d`, short for `data.task`.

Groups are merged key by key; lists and mappings of files are replaced as a whole. Two groups are choices: a stage's
budget displaces a budget of another kind in what lies beneath, and a schedule of another name displaces the schedule
with its keys; two budgets of a stage in one file, or on one command line, are refused. A key that does not exist is
refused, and the nearest that does is named. Values are strict: `"3"` is not a number, but a whole number may stand for
any number. All problems are listed together, each with its key and where it was written.

The default of a group, such as `{epochs: 20}`, is that of the group as a whole: where a key of it is written, the
others have the defaults of their own rows.

A run writes its settings, every key written out, into `config.yaml` of its folder; that file can be run again.
"""

END = """## What else is refused

Some rules can be told only once data and model are known; `ups check` tells them before training:

- `latent.patch` must divide the grid, and a token needs room for the values of a cell (`latent.dim`);
- the grid must be a multiple of the factors of `operator.pdet.coarsen`, the halvings of `pdet_unet` and
  `operator.pdet.window`, all multiplied; of a steady problem, of `prior.patch`;
- `operator.form` where the fields of an equation cannot change so;
- a loss term that is zero by construction: `lambda_conservation` where steps are fluxes through the faces of cells
  and the codec loses nothing;
- a prior or a guard that an equation has nothing for, such as `lambda_divergence` without a solenoidal vector;
- tasks with and without time together; for those without, other stages than `steady_prior`, the baseline `linear`, and
  settings that nothing reads there: of `guards`, `latent`, `operator` and `diffusion`, of losses and sampling in
  `training`, and of roll-outs in `evaluation`.

The sinks of `logging` need packages that are extras: `pip install -c constraints.txt 'ups[wandb]'`, or
`'ups[tensorboard]'`.
"""

KINDS = {int: "whole number", float: "number", str: "text", types.NoneType: "null"}
BOUNDS = {"gt": "above", "ge": "from", "lt": "and below", "le": "up to"}
IN_A_STAGE = re.compile(r"^stages\.\w+\.")
"""What groups within a stage begin with: they are alike in all stages, and stand on the page once."""


def settings_page() -> str:
    """The text of `docs/settings.md`."""
    sections = [_section(group, places) for group, places in _groups().items()]
    return "\n".join([TOP, *sections, END])


def main(arguments: list[str]) -> None:
    """Writes the page to the file that is named."""
    Path(arguments[0]).write_text(settings_page(), encoding="utf-8")


# --- sections --------------------------------------------------------------------------------------------------------


def _groups() -> dict[type[BaseModel], list[str]]:
    """Every group with the dotted names it may stand under, in the order of the schema."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(group: type[BaseModel], place: str) -> None:
        place = IN_A_STAGE.sub("stages.STAGE.", place)
        for one in (group, _parent(group)):
            places = found.setdefault(one, []) if one else []
            if place not in places:
                places.append(place)
        for name, field in group.model_fields.items():
            for inner in _groups_in(field.annotation):
                visit(inner, f"{place}.{name}" if place else name)

    visit(Settings, "")
    return found


def _groups_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The groups that may stand in a field, looked for through unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _groups_in(inner)


def _parent(group: type[BaseModel]) -> type[BaseModel] | None:
    """The group that another one adds keys to; None where there is none."""
    above = group.__mro__[1]
    return above if issubclass(above, BaseModel) and above.model_fields else None


def _section(group: type[BaseModel], places: list[str]) -> str:
    place, also = places[0], places[1:]
    meanings, parent = _meanings(group), _parent(group)
    lines = [f"## {f'`{place}`' if place else 'Top'}" + _choice(group), ""]
    if place:
        lines += [_flow(inspect.getdoc(group) or ""), ""]
    if also:
        lines += [f"The same keys stand under {_listed([f'`{other}`' for other in also], 'and')}.", ""]
    if parent is not None:
        lines += ["Beside the keys that all stages have:", ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in group.model_fields.items():
        if parent is not None and name in parent.model_fields:
            continue
        kinds = _choices(field.annotation, field.metadata)
        row = (
            f"`{place}.{name}`" if place else f"`{name}`",
            _listed(kinds, "or"),
            _default(field),
            meanings.get(name, ""),
        )
        lines.append(f"| {' | '.join(_cell(text) for text in row)} |")
    rules = list(_rules(group))
    if rules:
        lines += ["", "Refused (`…` stands for a name or a value):", "", *(f"- {rule}" for rule in rules)]
    return "\n".join([*lines, ""])


def _choice(group: type[BaseModel]) -> str:
    """Which of several groups it is that may stand in one place."""
    name = group.model_fields.get("name")
    named = get_args(name.annotation) if name is not None and get_origin(name.annotation) is Literal else ()
    return f" with `name: {named[0]}`" if len(named) == 1 else ""


def _cell(text: str) -> str:
    return _flow(text).replace("|", "\\|")


def _flow(text: str) -> str:
    return " ".join(text.split())


# --- meanings and rules, from the source -----------------------------------------------------------------------------


def _meanings(group: type[BaseModel]) -> dict[str, str]:
    """The docstring that stands under each attribute of a group."""
    body = _source(group).body
    return {
        attribute.target.id: _flow(ast.literal_eval(under.value))
        for attribute, under in pairwise(body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(under, ast.Expr)
        and isinstance(under.value, ast.Constant)
    }


def _rules(group: type[BaseModel]) -> Iterator[str]:
    """The messages of the errors that a group's own validators raise, in their order."""
    raised = [node.exc for node in ast.walk(_source(group)) if isinstance(node, ast.Raise)]
    errors = [call for call in raised if isinstance(call, ast.Call) and ast.unparse(call.func) == "ValueError"]
    for call in sorted(errors, key=lambda call: call.lineno):
        yield _flow(_message(call.args[0]))


def _message(node: ast.expr) -> str:
    """A text as it stands in the source, with a mark for what is filled in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def _source(group: type[BaseModel]) -> ast.ClassDef:
    found = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]
    assert isinstance(found, ast.ClassDef)
    return found


# --- types and defaults ----------------------------------------------------------------------------------------------


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "`{}`"
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        given = field.default.model_dump(mode="json", exclude_unset=True)
        return f"`{_yaml(given)}`" if given else ""
    return f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return str(value)


def _choices(annotation: Any, metadata: Sequence[Any] = ()) -> list[str]:
    """What may be written, each kind in words.

    Args:
        metadata: what is annotated to the type.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _choices(inner[0], [*inner[1:], *metadata])
    if origin in (Union, types.UnionType):
        return list(dict.fromkeys(choice for one in inner for choice in _choices(one, metadata)))
    if origin is Literal:
        return [f"`{one}`" for one in inner]
    if origin is tuple:
        items = _choices(inner[0])
        single = any(isinstance(one, BeforeValidator) for one in metadata) and items[0][0] in "`t"  # one word is a list
        many = f"list of {_listed(items, 'or')}" if inner[-1] is Ellipsis else f"list of {len(inner)}: {items[0]}"
        return [*items, "list of such"] if single else [many]
    if origin is dict:
        return [f"mapping from {_listed(_choices(inner[0]), 'or')} to {_listed(_choices(inner[1]), 'or')}"]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ["group"]
    if annotation is bool:
        return ["true", "false"]
    return [" ".join([KINDS[annotation], *_bounds(metadata)])]


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    """The bounds of a number, in words."""
    marks = [mark for one in metadata for mark in (one.metadata if isinstance(one, FieldInfo) else [one])]
    for mark in marks:
        for key, word in BOUNDS.items():
            bound = getattr(mark, key, None)
            if bound is not None:
                yield f"{word} {_number(bound)}"


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if value > 2**20 and value == 2**power else f"{value:g}"


def _listed(words: list[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


if __name__ == "__main__":
    main(sys.argv[1:])
