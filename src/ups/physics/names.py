"""The names of the equations, for what must not wait for PyTorch to tell that a name is wrong."""

from __future__ import annotations

import difflib

from ups.errors import UsageError

NAMES = (
    "advection1d",
    "burgers1d",
    "kuramoto_sivashinsky1d",
    "reaction_diffusion1d",
    "reaction_diffusion2d",
    "kolmogorov2d",
    "shallow_water2d",
    "darcy2d",
    "relaxation2d",
)

STEADY = frozenset({"darcy2d", "relaxation2d"})
"""Those of problems without time."""


def require_equation(name: str) -> None:
    """Refuses a name that no equation has.

    Raises:
        UsageError: there is none of that name; the message names the nearest.
    """
    if name in NAMES:
        return
    nearest = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(NAMES)}"
    raise UsageError(f"no equation is called {name!r}; {hint}")
