"""The walk over the output times that all time-stepping solvers share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ups.physics.description import Report

Plan = Callable[[Tensor, Tensor, float], Tensor]
Advance = Callable[[Tensor, Tensor, float, tuple[int, ...]], Tensor]

_LOST = 1e60  # beyond any unit: what has come so far goes on to overflow
_CHUNK_VALUES = 1 << 16  # values of a field advanced together: they stay in a processor's cache


def march(
    u0: Float[Tensor, "batch channel *grid"],
    params: Float[Tensor, "batch parameter"],
    times: Float[Tensor, " time"],
    plan: Plan,
    advance: Advance,
    report: Report,
    longest: float = math.inf,
) -> Float[Tensor, "batch time channel *grid"]:
    """Advance a batch from output time to output time, each sample with the steps it needs itself.

    Where a sample blows up, all stay as they are then, and it is infinite: there are no steps to plan for it.

    Args:
        u0: fields at ``times[0]``.
        params: parameters of each sample.
        times: increasing output times.
        plan: (fields, parameters, interval) -> (batch, choice) integers. Samples with the same row advance together, so
            what a sample becomes does not depend on its neighbours.
        advance: (fields, parameters, interval, row) -> fields after the interval.
        report: called with the share of the time done, from 0 to 1.
        longest: interval that one plan may be made for; longer ones are cut into equal parts.
    """
    frames = u0.new_empty((u0.shape[0], len(times), *u0.shape[1:]))
    frames[:, 0] = u0
    stamps = times.tolist()
    u = u0.clone()
    for frame, (start, stop) in enumerate(itertools.pairwise(stamps), start=1):
        parts = max(1, math.ceil((stop - start) / longest * (1 - 1e-9)))  # 0.5 / 0.1 is not cut into six by rounding
        interval = (stop - start) / parts
        for part in range(1, parts + 1):
            lost = ~(u.abs().flatten(1).amax(dim=1) < _LOST)
            if bool(lost.any()):
                frames[:, frame:] = torch.where(lost.reshape(-1, *[1] * (u.ndim - 1)), math.inf, u)[:, None]
                return frames
            choices: Int[Tensor, "batch choice"] = plan(u, params, interval)
            for choice in torch.unique(choices, dim=0):
                members = (choices == choice).all(dim=1).nonzero().squeeze(1)
                for rows in members.split(max(1, _CHUNK_VALUES // u[0].numel())):
                    u[rows] = advance(u[rows], params[rows], interval, tuple(choice.tolist()))
            report((start + part * interval - stamps[0]) / (stamps[-1] - stamps[0]))
        frames[:, frame] = u
    return frames


def steps_for(interval: float, longest: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Number of equal steps, each at most `longest`.

    Rounded up to four numbers per octave (4, 5, 6, 7, 8, 10, ...), so that samples fall into few groups.
    """
    steps = torch.ceil(interval / longest).clamp(min=1.0)
    unit = torch.exp2(torch.floor(torch.log2(steps)) - 2).clamp(min=1.0)
    return (torch.ceil(steps / unit) * unit).long()


def common_rows(params: Float[Tensor, "batch parameter"]) -> Float[Tensor, "rows parameter"]:
    """One row where all samples share their parameters (the usual case), else all: spares repeating equal tables."""
    return params[:1] if bool((params == params[:1]).all()) else params
