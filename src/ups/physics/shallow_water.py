"""Shallow water in two dimensions, of which the published data holds the depth alone: a radial dam break."""

from __future__ import annotations

from ups.physics.description import Equation, Field

SHALLOW_WATER2D = Equation(
    name="shallow_water2d",
    dim=2,
    fields=(Field("h", lower=0.0),),  # water leaves through the open boundary: not conserved
    parameters=(),
    domain=((-2.5, 2.5), (-2.5, 2.5)),
    boundary="neumann",
    form="flux_open",
    symmetries=frozenset({"reflection", "rotation"}),
    time=1.0,
    frames=101,
    resolution=128,
    make_frames=21,
    make_resolution=64,
)
