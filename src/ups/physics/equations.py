"""Every equation that is known, by name.

A new one is a description in a module of its family, an entry here, its name in `names`, and a test of its
solver's order.
"""

from __future__ import annotations

from ups.physics.advection import ADVECTION1D
from ups.physics.burgers import BURGERS1D
from ups.physics.darcy import DARCY2D
from ups.physics.description import Equation, Field, Parameter
from ups.physics.kolmogorov import KOLMOGOROV2D
from ups.physics.kuramoto_sivashinsky import KURAMOTO_SIVASHINSKY1D
from ups.physics.names import require_equation
from ups.physics.reaction_diffusion import REACTION_DIFFUSION1D, REACTION_DIFFUSION2D
from ups.physics.relaxation import RELAXATION2D
from ups.physics.shallow_water import SHALLOW_WATER2D

__all__ = ["EQUATIONS", "Equation", "Field", "Parameter", "get_equation"]

EQUATIONS: dict[str, Equation] = {
    equation.name: equation
    for equation in (
        ADVECTION1D,
        BURGERS1D,
        KURAMOTO_SIVASHINSKY1D,
        REACTION_DIFFUSION1D,
        REACTION_DIFFUSION2D,
        KOLMOGOROV2D,
        SHALLOW_WATER2D,
        DARCY2D,
        RELAXATION2D,
    )
}


def get_equation(name: str) -> Equation:
    """The description of an equation.

    Raises:
        UsageError: there is none of that name; the message names the nearest.
    """
    require_equation(name)
    return EQUATIONS[name]
