"""Stop-gap."""
from __future__ import annotations
from collections.abc import Callable
from dataclasses import dataclass
import difflib
import torch
from torch import Tensor
from ups.errors import UpsError

@dataclass(frozen=True)
class Field:
    name: str
    unit: str = "1"
    conserved: bool = False
    lower: float | None = None
    upper: float | None = None
    parity: int = 1

@dataclass(frozen=True)
class Parameter:
    name: str
    keys: tuple[str, ...]
    default: float
    scale: str = "log"
    lower: float = 0.0
    upper: float = 1e9
    optional: bool = False

@dataclass(frozen=True)
class Equation:
    name: str
    dim: int
    fields: tuple[Field, ...]
    parameters: tuple[Parameter, ...]
    domain: tuple[tuple[float, float], ...]
    boundary: str
    form: str
    symmetries: frozenset[str]
    time: float
    frames: int
    resolution: int
    rhs: Callable[[Tensor, Tensor, tuple[float, ...]], Tensor]
    has_solver: bool = False

    @property
    def periodic(self) -> tuple[bool, ...]:
        return (self.boundary == "periodic",) * self.dim

    def invariants(self, u: Tensor, params: Tensor, spacing: tuple[float, ...]) -> dict[str, Tensor]:
        import math
        return {f"integral of {f.name}": u[:, i].flatten(1).sum(1) * math.prod(spacing) for i, f in enumerate(self.fields) if f.conserved}

def _d(u, dx): return (u.roll(-1, -1) - u.roll(1, -1)) / (2 * dx)
def _l(u, dx): return (u.roll(-1, -1) - 2 * u + u.roll(1, -1)) / dx**2
def _p(p, i): return p[:, i, None, None]
def _lap2(u, s):
    out = 0
    for a, h in zip((-2, -1), s):
        n = u.shape[a]
        up = torch.cat([u.narrow(a, 1, n - 1), u.narrow(a, n - 1, 1)], a)
        dn = torch.cat([u.narrow(a, 0, 1), u.narrow(a, 0, n - 1)], a)
        out = out + (up - 2 * u + dn) / h**2
    return out
def _fhn(u, p, s):
    a, b = u[:, :1], u[:, 1:]
    return torch.cat([1e-3 * _lap2(a, s) + a - a**3 - 5e-3 - b, 5e-3 * _lap2(b, s) + a - b], 1)

_all = [
    Equation("advection1d", 1, (Field("u", conserved=True),), (Parameter("beta", ("beta",), 0.4, "linear"),), ((0.0, 1.0),), "periodic", "flux", frozenset({"translation"}), 2.0, 201, 1024, lambda u, p, s: -_p(p, 0) * _d(u, s[0])),
    Equation("burgers1d", 1, (Field("u", conserved=True, parity=-1),), (Parameter("nu", ("Nu", "nu"), 0.01),), ((0.0, 1.0),), "periodic", "flux", frozenset({"translation", "reflection"}), 2.0, 201, 1024, lambda u, p, s: -_d(u * u / 2, s[0]) + _p(p, 0) / torch.pi * _l(u, s[0])),
    Equation("reaction_diffusion1d", 1, (Field("u", lower=0.0, upper=1.0),), (Parameter("nu", ("Nu", "nu"), 0.5), Parameter("rho", ("Rho", "rho"), 1.0)), ((0.0, 1.0),), "periodic", "flux_source", frozenset({"translation", "reflection"}), 1.0, 101, 1024, lambda u, p, s: _p(p, 0) * _l(u, s[0]) + _p(p, 1) * u * (1 - u)),
    Equation("reaction_diffusion2d", 2, (Field("u"), Field("v")), (), ((-1.0, 1.0), (-1.0, 1.0)), "neumann", "flux_source", frozenset({"reflection", "rotation"}), 5.0, 101, 128, _fhn),
    Equation("shallow_water2d", 2, (Field("h", lower=0.0),), (), ((-2.5, 2.5), (-2.5, 2.5)), "neumann", "increment", frozenset({"reflection", "rotation"}), 1.0, 101, 128, lambda u, p, s: u * 0),
]
EQUATIONS = {e.name: e for e in _all}

def get_equation(name: str) -> Equation:
    if name not in EQUATIONS:
        near = difflib.get_close_matches(name, EQUATIONS, 1)
        raise UpsError(f"no equation '{name}'; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(EQUATIONS)}"))
    return EQUATIONS[name]
