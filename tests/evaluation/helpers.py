"""Tiny trajectories and emulators whose scores are known beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups.data.fields import Grid
from ups.data.trajectories import Cut, Frames, TrajectorySet
from ups.evaluation.evaluate import Protocol, evaluate
from ups.models.baselines import Persistence
from ups.models.emulator import Emulator, TaskSpec
from ups.physics.equations import get_equation

HOSTILE = "<script>alert('owned')</script>"
"""A name that would be a script, were it not escaped."""


class Held(Frames):
    """Trajectories of any lengths, held as they are given."""

    def __init__(self, trajectories: list[Tensor]) -> None:
        self.trajectories = trajectories

    def cut(self, trajectory: Tensor, start: Tensor, length: int) -> Cut:
        def gather(part: slice) -> Tensor:
            places = zip(trajectory[part].tolist(), start[part].tolist(), strict=True)
            return torch.stack([self.trajectories[number][first : first + length] for number, first in places])

        return gather

    def subset(self, trajectories: Tensor) -> Held:
        return Held([self.trajectories[number] for number in trajectories.tolist()])


def make_set(task: str, trajectories: list[Tensor], dt: float = 0.1) -> TrajectorySet:
    """A set of trajectories (time, channel, *grid) on the equation's own domain."""
    equation = get_equation(task)
    axes = []
    for (low, high), size in zip(equation.domain, trajectories[0].shape[2:], strict=True):
        axes.append(low + (high - low) * (np.arange(size) + 0.5) / size)
    params = torch.tensor([[parameter.default for parameter in equation.parameters] for _ in trajectories])
    return TrajectorySet(
        task,
        equation,
        Grid(tuple(axes), equation.periodic),
        dt,
        params.reshape(len(trajectories), len(equation.parameters)),
        torch.tensor([len(one) for one in trajectories]),
        [f"hash-{number}" for number in range(len(trajectories))],
        Held(trajectories),
    )


def travelling_sines(num: int = 4, frames: int = 9, size: int = 32) -> list[Tensor]:
    """Sines of different amplitude and wave number that move to the right by one cell per frame."""
    x = torch.arange(size) / size
    return [
        torch.stack([(1 + number) * torch.sin(2 * math.pi * (1 + number % 3) * (x - t / size)) for t in range(frames)])[
            :, None
        ]
        for number in range(num)
    ]


def bumps(num: int = 3, frames: int = 6, size: int = 16, channels: int = 2) -> list[Tensor]:
    """Even products of cosines on a box without flow through its walls, decaying in time."""
    x = (torch.arange(size) + 0.5) / size
    wave = torch.cos(math.pi * x)[:, None] * torch.cos(2 * math.pi * x)[None]
    return [
        torch.stack(
            [
                torch.stack([(number + 1 + channel) * wave * math.exp(-0.2 * t) for channel in range(channels)])
                for t in range(frames)
            ]
        )
        for number in range(num)
    ]


def spec_of(trajectories: TrajectorySet, context: int = 1) -> TaskSpec:
    """What a model is told of the set."""
    equation, fields = trajectories.equation, len(trajectories.equation.fields)
    return TaskSpec(
        name=trajectories.task,
        fields=tuple(field.name for field in equation.fields),
        lattice=tuple(trajectories.grid.shape),
        spacing=tuple(trajectories.grid.spacing),
        origin=tuple(float(axis[0]) for axis in trajectories.grid.axes),
        periodic=tuple(equation.periodic),
        form=equation.form,
        conserved=tuple(field.conserved for field in equation.fields),
        context=context,
        dt=float(trajectories.dt),
        mean=(0.0,) * fields,
        std=(1.0,) * fields,
    )


class Steps(Emulator):
    """Advances by a function of the last frame, and remembers what it was given."""

    def __init__(
        self,
        sets: dict[str, TrajectorySet],
        advance: Callable[[Tensor], Tensor],
        *,
        name: str = "ups",
        context: int = 1,
    ) -> None:
        super().__init__({task: replace(spec_of(one), context=context) for task, one in sets.items()})
        self.name, self.advance = name, advance
        self.given: list[Tensor] = []

    def step(self, context: Tensor, *, task: str, dt: Tensor, params: Tensor, number: int = 0) -> Tensor:
        self.given.append(context.clone())
        return self.advance(context[:, -1])


def shifted(u: Tensor) -> Tensor:
    """One cell to the right: exact for `travelling_sines`."""
    return u.roll(1, -1)


class Draws(Steps):
    """Rolls out as `Steps`; members are that and independent Gaussian noise of a given size at every value."""

    def __init__(
        self,
        sets: dict[str, TrajectorySet],
        advance: Callable[[Tensor], Tensor],
        *,
        sigma: float,
        name: str = "ups",
        context: int = 1,
    ) -> None:
        super().__init__(sets, advance, name=name, context=context)
        self.sigma = sigma
        self.rolled: list[tuple[int, int]] = []

    @property
    def draws(self) -> bool:
        return True

    def rollout_members(
        self,
        context: Tensor,
        steps: int,
        *,
        members: int,
        task: str,
        dt: Tensor,
        params: Tensor,
        mode: str = "physical",
        rng: torch.Generator | None = None,
    ) -> Tensor:
        self.rolled.append((len(context), steps))
        centre = self.rollout(context, steps, task=task, dt=dt, params=params, mode=mode)
        return centre + self.sigma * torch.randn(members, *centre.shape, generator=rng)


def noisy_sines(sigma: float, num: int = 4, frames: int = 9, size: int = 32) -> list[Tensor]:
    """`travelling_sines` with independent Gaussian noise on every frame but the first."""
    rng = torch.Generator().manual_seed(5)
    found = travelling_sines(num, frames, size)
    return [torch.cat([u[:1], u[1:] + sigma * torch.randn(u[1:].shape, generator=rng)]) for u in found]


class Elements(HTMLParser):
    """Every element with its attributes, and the ones left open."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def write_run(
    folder: Path, tasks: tuple[str, ...] = ("advection1d",), *, name: str = "run", drawn: bool = False, **files: str
) -> Path:
    """A run's folder as the pipeline leaves it, with a short log; `drawn`: two of the emulators draw ensembles."""
    makers = {
        "advection1d": lambda: make_set("advection1d", travelling_sines(num=5)),
        "burgers1d": lambda: make_set("burgers1d", travelling_sines(num=4, frames=6)),
        "reaction_diffusion2d": lambda: make_set("reaction_diffusion2d", bumps()),
    }
    run = folder / name
    run.mkdir(parents=True)
    sets = {task: makers[task]() for task in tasks}
    emulators = {
        "ups": Steps(sets, lambda u: 1.01 * shifted(u)),
        "persistence": Persistence({task: spec_of(one) for task, one in sets.items()}),
        HOSTILE: Steps(sets, lambda u: 1.1 * shifted(u), name=HOSTILE),
    }
    if drawn:
        emulators["ups"] = Draws(sets, lambda u: 1.01 * shifted(u), sigma=0.1)
        emulators[HOSTILE] = Draws(sets, lambda u: 1.1 * shifted(u), sigma=0.1, name=HOSTILE)
    evaluate(emulators, sets, protocol=Protocol()).save(run / "evaluation", "full")
    records = [
        {"stage": "operator", "step": step, "loss": 1 / step, "lr": 1e-3, "elapsed": 0.1 * step} for step in range(1, 9)
    ]
    records += [
        {"stage": "operator", "step": 4, "valid_nrmse": 0.2, "best_nrmse": 0.2},
        {"stage": HOSTILE, "step": 1, "loss": None},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"stage": "torn')
    (run / "config.yaml").write_text(f"name: {json.dumps(HOSTILE)}\n")
    (run / "metadata.json").write_text(
        json.dumps({"created_at": "2030-01-02T03:04:05+00:00", "versions": {HOSTILE: "1"}})
    )
    for file, text in files.items():
        (run / file).write_text(text)
    return run
