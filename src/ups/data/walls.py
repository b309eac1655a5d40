"""Where the walls of a problem with fixed values lie, as its solutions show them.

Files differ in whether the first value of an axis stands on the wall, half a cell inside or a whole cell inside, and
the coordinates written beside them are not always those of the values. Solutions that vanish at the walls tell.
"""

from __future__ import annotations

from torch import Tensor

from ups.data.trajectories import TrajectorySet

PLACES = (0.0, 0.5, 1.0)  # cells from the wall at the lower end to the first value; the rest is at the upper end
SAMPLES = 256


def first_cells(train: TrajectorySet) -> tuple[float, ...]:
    """Cells from the lower wall of each axis to the first value: 0, 1/2 or 1, or what the coordinates say.

    Of a steady problem whose solutions vanish at all walls, the mean solution is continued linearly to where it is
    zero, at both ends; the place that is nearest to that is taken. Other problems are as their coordinates say.
    """
    grid, equation = train.grid, train.equation
    written = tuple(
        (float(axis[0]) - low) / step
        for axis, step, (low, _) in zip(grid.axes, grid.spacing, equation.domain, strict=True)
    )
    if not (equation.steady and equation.boundary == "dirichlet") or min(grid.shape) < 4:
        return written
    spans = zip(grid.axes, grid.spacing, equation.domain, strict=True)
    if any(abs(len(axis) * step - (high - low)) > 0.25 * step for axis, step, (low, high) in spans):
        return written  # walls on both ends, or a whole cell beyond both: the spacing tells which, and where
    number = min(train.num, SAMPLES)
    sought = sum(train.trajectory(index)[1].double() for index in range(number)) / number
    assert isinstance(sought, Tensor)
    found = []
    for axis, place in enumerate(written):
        profile = sought.abs().mean(dim=[other for other in range(sought.ndim) if other != axis + 1])
        low, high = (float(end[0] / (end[1] - end[0])) for end in (profile, profile.flip(0)))
        inside = (low - high + 1) / 2  # both ends bend alike: their difference does not
        found.append(min((*PLACES, place), key=lambda one: abs(one - inside)))
    return tuple(found)


def cells_to_walls(part: TrajectorySet) -> tuple[tuple[float, float], ...] | None:
    """Cells from the first value of each axis to the lower wall, and from the last to the upper one.

    None where walls hold no fixed values.
    """
    if part.equation.boundary != "dirichlet":
        return None
    spans = zip(first_cells(part), part.grid.axes, part.grid.spacing, part.equation.domain, strict=True)
    return tuple((first, (high - low) / step - (len(axis) - 1) - first) for first, axis, step, (low, high) in spans)
