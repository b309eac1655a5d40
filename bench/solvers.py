"""What the reference solvers are worth: observed order, difference from exponax, and time per trajectory.

    python bench/solvers.py [--samples 20] [--repeats 5] [--out bench/results]

Orders and differences are on smooth problems. Times are CPU seconds on one thread, of random states at the size that
`ups data make` writes and the resolution it solves at: the median over the repeats, taken in turn. Writes solvers.md
and solvers.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import exponax
import jax
import numpy as np
import torch
from torch import Tensor

from ups.physics.equations import Equation, get_equation
from ups.physics.solvers import solve, solver_of
from ups.physics.solvers.burgers import BurgersSolver
from ups.physics.solvers.kuramoto_sivashinsky import KuramotoSivashinskySolver
from ups.physics.solvers.navier_stokes import VorticitySolver
from ups.physics.solvers.reaction_diffusion import FisherSolver, FitzHughNagumoSolver

COLUMNS = ("solver", "order in", "expected", "observed", "rel. difference from exponax", "CPU ms per trajectory")


def centres(points: int) -> Tensor:
    """Cell centres of the unit interval."""
    return (torch.arange(points, dtype=torch.float64) + 0.5) / points


def wave(points: int, mean: float = 0.0, amplitude: float = 1.0) -> Tensor:
    """One smooth periodic state, (1, 1, points)."""
    x = centres(points)
    return (mean + amplitude * (torch.sin(2 * math.pi * x) + 0.3 * torch.cos(4 * math.pi * x)))[None, None]


def final(equation: Equation, u0: Tensor, params: tuple[float, ...], end: float) -> Tensor:
    """The state at the end of one interval."""
    row = torch.tensor([params], dtype=torch.float64)
    return solve(equation, u0, row, np.array([0.0, end]))[:, -1]


def difference(found: Tensor, reference: Tensor) -> float:
    """Relative L2 distance."""
    return float((found - reference).norm() / reference.norm())


def order(run: Callable[[int], Tensor], sizes: tuple[int, ...], finest: int, ratio: float) -> float:
    """Least observed order of the differences from the run at `finest`."""
    reference = run(finest)
    errors = [difference(run(size), reference) for size in sizes]
    return min(math.log(coarse / fine, ratio) for coarse, fine in itertools.pairwise(errors))


def burgers_in_time(steps: int) -> Tensor:
    """Spectral Burgers on a grid finer than needed, with about so many steps."""
    solver = BurgersSolver(peclet_limit=math.inf, courant=2 * 128 * 0.1 / steps)
    return final(replace(get_equation("burgers1d"), solver=solver), wave(128), (0.5,), 0.1)


def burgers_in_space(factor: int) -> Tensor:
    """WENO Burgers on `factor` times 40 cells, at the 40 centres they share."""
    equation = replace(get_equation("burgers1d"), solver=BurgersSolver(peclet_limit=0.0, courant=0.1))
    return final(equation, wave(40 * factor), (0.5,), 0.05)[..., factor // 2 :: factor]


def fisher_in_time(steps: int) -> Tensor:
    """Fisher's equation with so many steps."""
    solver = FisherSolver(reaction_step=10 / steps, change=math.inf)
    return final(replace(get_equation("reaction_diffusion1d"), solver=solver), wave(64, 0.5, 0.3), (0.1, 10.0), 1.0)


def bump(points: int) -> Tensor:
    """A smooth state without slope at the walls, (1, 2, points, points)."""
    x = centres(points)
    u = torch.cos(math.pi * x)[:, None] * torch.cos(2 * math.pi * x)
    return torch.stack([u, -u])[None]


def fitzhugh_nagumo_in_time(steps: int) -> Tensor:
    """FitzHugh-Nagumo with about so many steps."""
    solver = FitzHughNagumoSolver((1e-3, 5e-3), 5e-3, reaction_step=8 / steps)
    return final(replace(get_equation("reaction_diffusion2d"), solver=solver), bump(24), (), 2.0)


def fitzhugh_nagumo_in_space(factor: int) -> Tensor:
    """FitzHugh-Nagumo on `factor` times 8 cells, at the centres they share."""
    u = final(get_equation("reaction_diffusion2d"), bump(8 * factor), (), 1.0)
    return u[..., factor // 2 :: factor, factor // 2 :: factor]


def smooth(equation: Equation, points: int) -> Tensor:
    """A random initial state of the equation, the same function on any grid."""
    assert equation.initial_condition is not None
    return equation.initial_condition(1, equation.centres(points), torch.ones(1), torch.Generator().manual_seed(0))


def kuramoto_sivashinsky_in_time(steps: int) -> Tensor:
    """Kuramoto-Sivashinsky with so many steps."""
    solver = KuramotoSivashinskySolver(64.0, step=0.5 / steps, courant=math.inf)
    equation = replace(get_equation("kuramoto_sivashinsky1d"), solver=solver)
    return final(equation, smooth(equation, 96), (1.0,), 0.5)


def kolmogorov_in_time(steps: int) -> Tensor:
    """Kolmogorov flow with about so many steps."""
    equation = get_equation("kolmogorov2d")
    assert equation.forcing is not None
    equation = replace(equation, solver=VorticitySolver(equation.forcing, courant=10 / steps))
    return final(equation, smooth(equation, 32), (0.02, 0.1), 0.5)


def kolmogorov_from_exponax() -> float:
    """Relative difference of the final flow from exponax's.

    exponax has its points at the ends of the cells, so that the forcing is half a cell away: its initial state is moved
    by that, and the final one back. Its vorticity is u_y - v_x, hence the sign of its transport.
    """
    equation, points, steps = get_equation("kolmogorov2d"), 96, 400
    assert equation.forcing is not None
    half = torch.exp(1j * math.pi / points * torch.arange(points // 2 + 1, dtype=torch.float64))
    half[-1] = 0
    u0 = smooth(equation, points)
    stepper = exponax.stepper.KolmogorovFlowVorticity(
        2, 2 * math.pi, points, 1 / steps, diffusivity=0.05, drag=-0.1, convection_scale=-1.0, order=4
    )
    at_ends = torch.fft.irfft(torch.fft.rfft(u0[0]) / half.where(half != 0, 1), n=points)
    theirs = jax.jit(lambda u: jax.lax.fori_loop(0, steps, lambda _, v: stepper(v), u))(at_ends.numpy())
    at_centres = torch.fft.irfft(torch.fft.rfft(torch.from_numpy(np.array(theirs))) * half, n=points)
    finer = replace(equation, solver=VorticitySolver(equation.forcing, courant=0.1))
    return difference(final(finer, u0, (0.05, 0.1), 1.0)[0], at_centres)


def from_exponax(name: str) -> float:
    """Relative difference of the final state from exponax's, both refined until it no longer falls."""
    if name == "kolmogorov2d":
        return kolmogorov_from_exponax()
    u0 = wave(256) if name != "reaction_diffusion1d" else wave(256, 0.5, 0.3)
    if name == "kuramoto_sivashinsky1d":
        u0 = smooth(get_equation(name), 256)
    steppers = {
        "advection1d": ((0.4,), 1.0, lambda dt: exponax.stepper.Advection(1, 1.0, 256, dt, velocity=0.4)),
        "burgers1d": (
            (0.1,),
            0.3,
            lambda dt: exponax.stepper.Burgers(1, 1.0, 256, dt, diffusivity=0.1 / math.pi, conservative=True, order=4),
        ),
        "reaction_diffusion1d": (
            (0.05, 5.0),
            1.0,
            lambda dt: exponax.stepper.reaction.FisherKPP(1, 1.0, 256, dt, diffusivity=0.05, reactivity=5.0, order=4),
        ),
        "kuramoto_sivashinsky1d": (
            (1.0,),
            2.0,
            lambda dt: exponax.stepper.KuramotoSivashinskyConservative(1, 64.0, 256, dt, order=4),
        ),
    }
    params, end, build = steppers[name]
    steps = 1000
    stepper = build(end / steps)
    theirs = jax.jit(lambda u: jax.lax.fori_loop(0, steps, lambda _, v: stepper(v), u))(u0[0].numpy())
    return difference(final(get_equation(name), u0, params, end)[0], torch.from_numpy(np.array(theirs)))


def seconds_per_trajectory(names: list[str], samples: int, repeats: int) -> dict[str, float]:
    """Median CPU time for the size that is made by default, the solvers in turn; a spin-up is part of it.

    A fifth as many trajectories where there is one.
    """
    found: dict[str, list[float]] = {name: [] for name in names}
    for _, name in itertools.product(range(repeats), names):
        equation = get_equation(name)
        defaults = tuple(parameter.default for parameter in equation.parameters)
        params = torch.tensor(defaults, dtype=torch.float64)
        cells = equation.make_resolution * solver_of(equation).refinement(equation.make_resolution, defaults)
        assert equation.initial_condition is not None
        num = max(1, samples // 5) if equation.spin_up else samples
        u = equation.initial_condition(num, equation.centres(cells), params, torch.Generator().manual_seed(0))
        start = time.process_time()
        if equation.spin_up:
            u = solve(equation, u, params.expand(num, -1), np.array([0, equation.spin_up]))[:, -1]
        solve(equation, u, params.expand(num, -1), np.linspace(0, equation.time, equation.make_frames))
        found[name].append((time.process_time() - start) / num)
    return {name: median(times) for name, times in found.items()}


def main() -> None:
    """Measure, print the table and one JSON line, and write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jax.config.update("jax_enable_x64", True)
    orders = [
        ("advection1d", "-", "exact", None),
        ("burgers1d", "time", "4", order(burgers_in_time, (64, 128, 256), 2048, 2)),
        ("burgers1d", "space (WENO)", "5", order(burgers_in_space, (1, 3), 9, 3)),
        ("reaction_diffusion1d", "time", "4", order(fisher_in_time, (16, 32, 64), 512, 2)),
        ("kuramoto_sivashinsky1d", "time", "4", order(kuramoto_sivashinsky_in_time, (16, 32, 64), 512, 2)),
        ("kolmogorov2d", "time", "4", order(kolmogorov_in_time, (16, 32, 64), 512, 2)),
        ("reaction_diffusion2d", "time", "4", order(fitzhugh_nagumo_in_time, (16, 32, 64), 512, 2)),
        ("reaction_diffusion2d", "space", "2", order(fitzhugh_nagumo_in_space, (1, 3), 9, 3)),
    ]
    names = list(dict.fromkeys(name for name, *_ in orders))
    seconds = seconds_per_trajectory(names, arguments.samples, arguments.repeats)
    differences = {name: from_exponax(name) for name in names if name != "reaction_diffusion2d"}
    rows = []
    for name, where, expected, observed in orders:
        apart = f"{differences[name]:.1e}" if name in differences else "not in exponax"
        shown = "-" if observed is None else f"{observed:.2f}"
        rows.append((name, where, expected, shown, apart, f"{1e3 * seconds[name]:.3g}"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in (COLUMNS, ("---",) * len(COLUMNS), *rows))
    result = {
        "orders": [{"solver": n, "in": w, "expected": e, "observed": o} for n, w, e, o in orders],
        "relative_difference_from_exponax": differences,
        "seconds_per_trajectory": seconds,
        "time_over_burgers1d": {name: value / seconds["burgers1d"] for name, value in seconds.items()},
    }
    print(table)
    print(json.dumps(result))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "solvers.md").write_text(table + "\n", encoding="utf-8")
    (arguments.out / "solvers.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
