"""Which equation a file holds, and with which parameters: from its attributes, its name and its shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float64

from ups.data.layouts import GroupLayout, Layout
from ups.data.problems import DataProblem, bad
from ups.physics.equations import EQUATIONS, Equation, Parameter

NAME_HINTS = (("advection", "advection1d"), ("burgers", "burgers1d"), ("reacdiff", "reaction_diffusion1d"))
"""How the published files of the one-dimensional tasks are called."""

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"


def candidate_tasks(file: h5py.File, layout: Layout) -> tuple[str, ...]:
    """The tasks a file can hold, narrowed by (in this order) its attribute `task`, its name, and its parameters."""
    stated = _stated_tasks(file, layout)
    if len(stated) == 1 or len(layout.tasks) < 2:
        return stated or layout.tasks
    known = [EQUATIONS[task] for task in layout.tasks if task in EQUATIONS]
    complete = {equation.name: _num_given(file, equation) for equation in known}
    most = max((given for given in complete.values() if given), default=0)
    return tuple(task for task, given in complete.items() if given == most) if most else layout.tasks


def _stated_tasks(file: h5py.File, layout: Layout) -> tuple[str, ...]:
    """The tasks that the attribute `task` or the file's name names; most files have neither."""
    marked = file.attrs.get("task")
    if isinstance(marked, bytes | str):
        return (marked.decode() if isinstance(marked, bytes) else marked,)
    stem = Path(file.filename).stem.lower()
    hints = [task for hint, task in NAME_HINTS if hint in stem and task in layout.tasks]
    named = [task for task, equation in EQUATIONS.items() if task in stem and can_hold(layout, equation)]
    return tuple(dict.fromkeys([*named, *hints]))


def _num_given(file: h5py.File, equation: Equation) -> int:
    """How many of the equation's parameters the file gives; 0 unless all required ones are there."""
    given = {parameter.name: bool(_stated(file, parameter)) for parameter in equation.parameters}
    if not all(given[parameter.name] for parameter in equation.parameters if not parameter.optional):
        return 0
    return sum(given.values())


def can_hold(layout: Layout, equation: Equation) -> bool:
    """Whether an equation's trajectories can stand in a file of this layout with these shapes."""
    known = layout.name != "velocity" and len(layout.given) == len(equation.given)
    return known and len(layout.grid_shape) == equation.dim and len(layout.fields) == len(equation.fields)


def settle_task(file: h5py.File, layout: Layout, asked: str | None) -> str:
    """The task a file is read as.

    Raises:
        BadDataError: the file holds another task than the one asked for, or none was asked for and it could hold
            several.
    """
    candidates = candidate_tasks(file, layout)
    if asked is None:
        if len(candidates) == 1:
            return candidates[0]
        could = ", ".join(candidates) or "none that is known by its shapes"
        raise bad(
            file.filename,
            f"cannot tell its task (could be: {could})",
            "name it with data.task, or in the file's attribute task",
        )
    fits = asked in EQUATIONS and can_hold(layout, EQUATIONS[asked])
    stated = _stated_tasks(file, layout)
    unpublished = asked not in layout.tasks and not stated  # a layout and its parameters suggest published tasks alone
    if asked in candidates or (fits and (len(candidates) != 1 or unpublished)):
        return asked
    shape = f"{len(layout.fields)} field(s) on a {len(layout.grid_shape)}-dimensional grid"
    holds = " or ".join(candidates) or shape
    raise bad(file.filename, f"holds {holds}, not {asked}", "name another task, or another file")


def read_parameters(
    file: h5py.File, layout: Layout, equation: Equation
) -> tuple[Float64[np.ndarray, "trajectory parameter"], list[DataProblem]]:
    """The parameters of every trajectory, in the order of the equation's description, and what is wrong with them.

    A value stands in an attribute of the file (one for all trajectories, or one per trajectory), in an attribute of
    each group, or in the file's name; an optional parameter that stands nowhere has its default.
    """
    num = len(layout.lengths)
    values = np.empty((num, len(equation.parameters)))
    problems: list[DataProblem] = []
    for column, parameter in enumerate(equation.parameters):
        values[:, column], wrong = _parameter(file, layout, parameter, num)
        problems += wrong
    return values, problems


def _parameter(
    file: h5py.File, layout: Layout, parameter: Parameter, num: int
) -> tuple[Float64[np.ndarray, " trajectory"], list[DataProblem]]:
    nothing = np.full(num, parameter.default)
    stated = _stated(file, parameter)
    if isinstance(layout, GroupLayout) and "attribute" not in stated:
        per_group = [_attribute(file[group].attrs, parameter.keys) for group in layout.groups]
        given = [value for value in per_group if value is not None]
        if len(given) == num:
            stated["attribute"] = np.concatenate([np.ravel(value) for value in given])
    if not stated:
        if parameter.optional:
            return nothing, []
        keys = " or ".join(parameter.keys)
        remedy = f"add the attribute {parameter.keys[0]}, or put it into the file's name as {parameter.keys[0]}0.01"
        return nothing, [DataProblem(file.filename, f"parameter {parameter.name} is missing ({keys})", "", remedy)]
    value = stated.get("attribute", stated.get("name", nothing))
    if value.size not in (1, num):
        what = f"parameter {parameter.name} has {value.size} values for {num} trajectories"
        return nothing, [DataProblem(file.filename, what, "attributes", "give one for all, or one for each trajectory")]
    problems = []
    if len(stated) == 2 and not np.allclose(stated["attribute"], stated["name"], rtol=1e-3):
        attribute, named = value.flat[0], stated["name"].item()
        what = f"parameter {parameter.name} is {attribute:g} in the attributes, but {named:g} in the name"
        problems.append(DataProblem(file.filename, what, "", "correct the attribute or rename the file"))
    column = np.broadcast_to(value.ravel(), (num,))
    low, high = parameter.lower, parameter.upper
    bad = np.flatnonzero(~(np.isfinite(column) & (column >= low) & (column <= high)))
    if len(bad):
        what = f"parameter {parameter.name} is {column[bad[0]]:g}, outside [{low:g}, {high:g}]"
        problems.append(DataProblem(file.filename, what, layout.place(int(bad[0])), "correct the attribute"))
    return column, problems


def _stated(file: h5py.File, parameter: Parameter) -> dict[str, np.ndarray]:
    """What the file's attributes and its name say of a parameter."""
    stated = {}
    attribute = _attribute(file.attrs, parameter.keys)
    if attribute is None and isinstance(file.get("tensor"), h5py.Dataset):
        attribute = _attribute(file["tensor"].attrs, parameter.keys)
    if attribute is not None:
        stated["attribute"] = attribute
    named = _from_name(Path(file.filename).stem, parameter.keys)
    if named is not None:
        stated["name"] = np.array([named])
    return stated


def _attribute(attributes: Mapping[str, object], keys: Sequence[str]) -> np.ndarray | None:
    """The numbers of the first attribute that is called by one of the keys, whatever its capitals."""
    wanted = {key.lower() for key in keys}
    for name, value in attributes.items():
        if name.lower() in wanted:
            array = np.asarray(value)
            if array.dtype.kind in "fiu":
                return array.astype(np.float64)
    return None


def _from_name(stem: str, keys: Sequence[str]) -> float | None:
    """The number behind a key in a file's name: 0.01 in `1D_Burgers_Sols_Nu0.01`."""
    for key in keys:
        found = re.search(rf"(?:^|[_\- ]){re.escape(key)}[_=]?({_NUMBER})(?=[_\- .]|$)", stem, flags=re.IGNORECASE)
        if found:
            return float(found[1])
    return None
