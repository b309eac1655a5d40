"""What guards and flux form keep of conserved integrals, and what each physics prior brings and costs.

    python bench/physics.py gaps [--steps 60]
    python bench/physics.py priors [--steps 150] [--seeds 0]
    python bench/physics.py table

`gaps`: for every equation in time that conserves an integral and has a solver here, a small operator is trained for a
few steps in flux form and as increments, and both are rolled out as they are and with `guards.conservation`: what is
kept must not depend on how good a model is. The gap is max_t |I(u_t) - I(u_0)| / int |u_0|, the data's own taken off.

`priors`: one prior at a time, against a training of as many steps without any (what a prior takes in time is not
counted): nrmse of roll-outs over test trajectories, and the prior's own term, the violation, one step ahead on test
windows. Lines go to bench/results/physics.jsonl, tables to physics.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported

from accuracy_bench.results import Line, append, commit, read_lines, source_hash

HERE = Path(__file__).parent
LINES, TABLE = HERE / "results" / "physics.jsonl", HERE / "results" / "physics.md"
CONSERVING = {
    "advection1d": (64, {"beta": 0.4}),
    "burgers1d": (64, {"nu": 0.05}),
    "kuramoto_sivashinsky1d": (64, {"nu": 1.0}),
    "kolmogorov2d": (32, {"nu": 0.01, "drag": 0.1}),
}
"""Cells along each axis and parameters of the data that gaps are measured on."""
DATA = {"burgers1d": (128, {"nu": 0.01}), "reaction_diffusion1d": (128, {"nu": 0.5, "rho": 1.0})}
"""The same, of the data that priors are tried on."""
TEST_BATCHES = 20


@dataclass(frozen=True)
class Case:
    """A training to compare: on which task, in which form of a step, with which prior."""

    task: str
    form: str = "auto"
    prior: str | None = None
    weights: tuple[float, ...] = field(default=(0.0,))


CASES = (
    Case("burgers1d", prior="residual", weights=(0.0, 0.01, 0.1)),
    Case("burgers1d", prior="latent_norm", weights=(0.01,)),
    Case("burgers1d", prior="latent_diversity", weights=(0.01,)),
    Case("burgers1d", form="increment", prior="conservation", weights=(0.0, 1.0)),
    Case("reaction_diffusion1d", prior="residual", weights=(0.0, 0.01)),
    Case("reaction_diffusion1d", prior="positivity", weights=(1.0,)),
)
"""A weight of zero is the training without any; every prior's violation is measured on each."""


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def make(folder: Path, task: str, samples: int, cells: int, params: dict[str, float]) -> Path:
    """A file of trajectories, made where it is missing."""
    from ups.data.generate import generate

    path = folder / f"{task}_{samples}_{cells}.hdf5"
    if not path.exists():
        say(f"making {path}")
        generate(task, path, samples, 1, params, resolution=cells)
    return path


def train(path: Path, task: str, seed: int, **choices: Any) -> tuple[Any, Any]:
    """The workspace and the simulator of a training; `choices` are settings by group."""
    from ups.config.load import load_settings
    from ups.pipeline.train import fit_closed_form, train_stage
    from ups.pipeline.workspace import Workspace
    from ups.terminal import LineProgress
    from ups.training.schedule import Budget

    given = {
        "task": task,
        "seed": seed,
        "threads": 1,
        "runs_dir": str(path.parent / "runs"),
        "data": {"root": str(path.parent), "files": path.name},
        **choices,
    }
    config = path.parent / f"{os.getpid()}.json"  # JSON is YAML
    config.write_text(json.dumps(given))
    settings = load_settings(config)
    workspace = Workspace(settings, LineProgress(say, every=60.0))
    workspace.open()
    simulator = workspace.new_simulator()
    key = fit_closed_form(workspace, simulator)
    train_stage(workspace, "operator", simulator, key, Budget.of(settings.stage("operator")))
    return workspace, simulator.eval()


def scores(workspace: Any, simulator: Any, task: str) -> Any:
    """Of roll-outs over the test trajectories."""
    from ups.evaluation.evaluate import Protocol, evaluate

    found = evaluate(
        {"ups": simulator}, workspace.splits["test"], protocol=Protocol("test", members=0), showcases=False
    )
    return found.scores(task)


def measure_gaps(arguments: argparse.Namespace) -> None:
    """Conservation gaps with and without flux form and guards."""
    from ups.physics.guards import Guards

    for task, (cells, params) in CONSERVING.items():
        path = make(arguments.work, task, 12, cells, params)
        for form in ("flux", "increment"):
            sizes = {"operator": {"form": form, "pdet": {"hidden_dim": 16, "depths": 1, "heads": 2}}}
            stages = {"codec": {"epochs": 0}, "operator": {"steps": arguments.steps}}
            workspace, simulator = train(path, task, 0, stages=stages, **sizes)
            for guarded in (False, True):
                guards = Guards.of(task, conservation=True, lengths=simulator.tasks[task].lengths)
                simulator.guards[task] = guards if guarded else Guards.none
                found = scores(workspace, simulator, task)
                line = {"what": "gap", "task": task, "form": form, "guarded": guarded, "steps": arguments.steps}
                values = {"gap": found["conservation_gap"].value, "nrmse": found["nrmse"].value}
                append({**line, **values, "commit": commit(), "source": source_hash()}, arguments.out)
                say(f"{line} {values}")


def violations(workspace: Any, simulator: Any, task: str) -> dict[str, float]:
    """Every prior's term one step ahead on test windows, where the task has something for it."""
    import torch

    from ups.data.windows import WindowLoader
    from ups.physics.equations import get_equation
    from ups.training.physics import Prediction, TaskPriors

    equation, spec = get_equation(task), simulator.tasks[task]
    has = {
        "residual": equation.rhs is not None,
        "conservation": any(one.conserved for one in equation.fields),
        "positivity": any(one.lower is not None or one.upper is not None for one in equation.fields),
        "latent_norm": True,
        "latent_diversity": True,
    }
    chosen = [name for name, there in has.items() if there]
    priors = TaskPriors(equation, spec.spacing, **dict.fromkeys(chosen, 1.0))
    total, count = dict.fromkeys(chosen, 0.0), 0
    with WindowLoader({task: workspace.splits["test"][task]}, 32, spec.context, 1, 0) as loader, torch.no_grad():
        for batch in islice(loader, TEST_BATCHES):
            given, advance = batch.frames[:, : spec.context], {"dt": batch.dt, "params": batch.params, "task": task}
            z = simulator.advance(simulator.encode(given, task=task), **advance)[:, None]
            frames = torch.cat([given[:, -1:], simulator.decode(z, task=task)], dim=1)
            found = Prediction(frames, batch.frames[:, spec.context - 1 :], z, batch.params, batch.dt)
            for name, (weight, term) in priors.terms(found).items():
                if weight > 0:
                    total[name] += float(term())
            count += 1
    return {name: value / count for name, value in total.items()}


def measure_priors(arguments: argparse.Namespace) -> None:
    """One prior at a time."""
    done = [line for line in read_lines(arguments.out) if line["what"] == "prior"]
    for seed in arguments.seeds:
        for case in (one for one in CASES if one.task in arguments.tasks):
            for weight in case.weights:
                prior = case.prior if weight else None
                wanted = {"what": "prior", "task": case.task, "form": case.form, "prior": prior, "weight": weight}
                wanted |= {"seed": seed, "steps": arguments.steps}
                if any({key: line[key] for key in wanted} == wanted for line in done):
                    continue
                values = measure_prior(case, weight, seed, arguments)
                append({**wanted, **values, "commit": commit(), "source": source_hash()}, arguments.out)
                say(f"{wanted} {values}")


def measure_prior(case: Case, weight: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains once, and measures."""
    cells, params = DATA[case.task]
    training: dict[str, Any] = {}
    if weight:
        training["physics_priors"] = {"enabled": True, f"lambda_{case.prior}": weight}
    stages = {"codec": {"epochs": 0}, "operator": {"steps": arguments.steps}}
    path = make(arguments.work, case.task, 100, cells, params)
    workspace, simulator = train(path, case.task, seed, stages=stages, training=training, operator={"form": case.form})
    found = scores(workspace, simulator, case.task)
    return {
        "nrmse": found["nrmse"].value,
        "one_step": found["one_step_nrmse"].value,
        "violations": violations(workspace, simulator, case.task),
    }


def table(arguments: argparse.Namespace) -> None:
    """Draws both tables."""
    lines = read_lines(arguments.out)
    gaps = {(line["task"], line["form"], line["guarded"]): line for line in lines if line["what"] == "gap"}
    steps = ", ".join(map(str, sorted({line["steps"] for line in gaps.values()})))
    text = [
        "# Physics: what is kept, and what priors bring",
        "",
        "## Conserved integrals",
        "",
        f"Gaps of roll-outs over test trajectories, after {steps} steps of training a small operator: what is kept",
        "must not depend on how good a model is. Drawn by `bench/physics.py` from `physics.jsonl`.",
        "",
        "| task | flux | flux, guarded | increment | increment, guarded |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task in CONSERVING:
        cells = [gaps.get((task, form, guarded)) for form in ("flux", "increment") for guarded in (False, True)]
        if all(cells):
            text.append(f"| {task} | " + " | ".join(f"{one['gap']:.1e}" for one in cells if one) + " |")
    text += ["", "## One prior at a time", "", *prior_rows([line for line in lines if line["what"] == "prior"])]
    TABLE.write_text("\n".join(text) + "\n")
    say(f"{TABLE}: written")


def prior_rows(lines: list[Line]) -> list[str]:
    """The ablation's table: each training against the one without priors of the same seed."""
    plain = {(line["task"], line["form"], line["seed"]): line for line in lines if line["prior"] is None}
    grouped: dict[tuple[Any, ...], list[tuple[Line, Line]]] = {}
    for line in lines:
        base = plain.get((line["task"], line["form"], line["seed"]))
        if line["prior"] is not None and base is not None:
            key = (line["task"], line["form"], line["prior"], line["weight"])
            grouped.setdefault(key, []).append((base, line))
    rows = []
    for (task, form, prior, weight), pairs in grouped.items():
        before, after = (
            (median(one["nrmse"] for one in side), median(one["violations"][prior] for one in side))
            for side in zip(*pairs, strict=True)
        )
        ratio = median(line["nrmse"] / base["nrmse"] for base, line in pairs)
        rows.append(
            f"| {task} | {form} | {prior} | {weight:g} | {before[0]:.3g} | {after[0]:.3g} | {ratio:.2f} | "
            f"{before[1]:.2g} | {after[1]:.2g} | {len(pairs)} |"
        )
    steps = ", ".join(map(str, sorted({line["steps"] for line in lines})))
    several = any(len(pairs) > 1 for pairs in grouped.values())
    of_seeds = "Medians of the seeds." if several else "One seed: what another would change is not known."
    return [
        f"{steps} steps of training; nrmse of roll-outs over test trajectories; violation: the prior's own",
        f"term one step ahead on test windows. {of_seeds}",
        "Problems without time take no priors.",
        "",
        "| task | form | prior | weight | nrmse without | nrmse with | ratio | violation without | with | seeds |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("gaps", help="measure conservation gaps")
    one.add_argument("--steps", type=int, default=60, help="of training")
    two = commands.add_parser("priors", help="measure the priors that are missing")
    two.add_argument("--tasks", nargs="+", choices=tuple(DATA), default=list(DATA))
    two.add_argument("--steps", type=int, default=150, help="of training")
    two.add_argument("--seeds", nargs="+", type=int, default=[0])
    three = commands.add_parser("table", help="draw the tables")
    for command in (one, two, three):
        command.add_argument("--out", type=Path, default=LINES, help="file of the lines")
        command.add_argument("--work", type=Path, default=Path("runs/physics"), help="folder of made data and runs")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    {"gaps": measure_gaps, "priors": measure_priors, "table": table}[arguments.command](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
