"""Universal Physics Stack: fast neural simulators from PDE trajectories."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
