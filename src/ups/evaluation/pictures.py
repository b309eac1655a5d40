"""Fields as pictures: small PNGs for the page, and packed numbers for its player."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.image import imsave

from ups.evaluation.showcase import Array, Showcase

FIELD_MAP, ERROR_MAP, SIZE_MAP = "viridis", "RdBu_r", "magma"
"""Perceptually uniform maps for fields and for sizes that begin at zero, and one centred at zero for errors."""

PLAYER_BYTES = 3_000_000
"""What all the numbers of the player may take on the page."""


def picture(values: Array, low: float, high: float, colours: str) -> str:
    """A field (column, row) as a PNG in a data URI; the first axis runs to the right, the second upwards.

    Values that are not finite are left transparent.
    """
    span = high - low
    scaled = (np.nan_to_num(values) - low) / span if span > 0 else np.full(values.shape, 0.5)
    pixels = matplotlib.colormaps[colours](np.clip(scaled, 0, 1), bytes=True)
    pixels[..., 3] = np.where(np.isfinite(values), 255, 0)
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels.transpose(1, 0, 2)[::-1]), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def gradient(colours: str) -> str:
    """A colour map as a CSS gradient, to stand under a picture as its scale."""
    stops = matplotlib.colormaps[colours](np.linspace(0, 1, 9), bytes=True)[:, :3]
    return "linear-gradient(90deg," + ",".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops.tolist()) + ")"


def bounds(values: Array) -> tuple[float, float]:
    """Smallest and largest finite value; 0 and 1 where there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def shown(values: Array) -> tuple[float, float]:
    """Ends of the colour scale of a field (time, *grid): its bounds, without the outermost 0.5 % of a plane's values.

    In a plane a rough first frame would otherwise take all the colours from those after it.
    """
    finite = values[np.isfinite(values)]
    if values.ndim == 2 or not finite.size:
        return bounds(values)
    low, high = np.quantile(finite, (0.005, 0.995))
    return float(low), float(high)


def reach(error: Array) -> float:
    """The 99.9th percentile of the finite |error|: where the scale of its picture ends."""
    finite = np.abs(error[np.isfinite(error)])
    return float(np.quantile(finite, 0.999)) if finite.size else 1.0


def player_data(showcases: Sequence[Showcase], emulators: Sequence[str]) -> dict[str, Any]:
    """What the player shows, small enough for a page: the emulators that fit are kept in the order given.

    Fields are quantised to 8 bits in two dimensions and 16 in one, errors apart on their own scale, and deflated.
    """
    share = PLAYER_BYTES / max(len(showcases), 1)
    return {
        "maps": {"field": _table(FIELD_MAP), "error": _table(ERROR_MAP)},
        "gradients": {"field": gradient(FIELD_MAP), "error": gradient(ERROR_MAP)},
        "trajectories": [_trajectory(one, emulators, share) for one in showcases],
    }


def _trajectory(one: Showcase, emulators: Sequence[str], share: float) -> dict[str, Any]:
    bits = 16 if one.truth.ndim == 3 else 8
    low, high = zip(*(bounds(one.truth[:, channel]) for channel in range(len(one.fields))), strict=True)
    truth = _pack(one.truth, low, high, bits)
    used = len(truth)
    errors: dict[str, Any] = {}
    for name in (name for name in emulators if name in one.predictions):
        error = one.predictions[name] - one.truth
        scale = [_largest(error[:, channel]) for channel in range(len(one.fields))]
        packed = _pack(error, [-s for s in scale], scale, bits)
        if errors and used + len(packed) > share:
            continue
        used += len(packed)
        ends = [reach(error[:, channel]) for channel in range(len(one.fields))]
        errors[name] = {"data": packed, "scale": scale, "reach": ends}
    return {
        "task": one.task,
        "role": one.role,
        "index": one.index,
        "params": dict(one.params),
        "fields": list(one.fields),
        "times": list(one.times),
        "extent": [list(pair) for pair in one.extent],
        "shape": list(one.truth.shape),
        "bits": bits,
        "low": list(low),
        "high": list(high),
        "scale": [list(shown(one.truth[:, channel])) for channel in range(len(one.fields))],
        "truth": truth,
        "errors": errors,
    }


def _largest(error: Array) -> float:
    finite = np.abs(error[np.isfinite(error)])
    return float(finite.max()) if finite.size else 0.0


def _pack(values: Array, low: Sequence[float], high: Sequence[float], bits: int) -> str:
    """(time, channel, *grid) as whole numbers from `low` to `high` of each channel; the largest is "not finite"."""
    top = 2**bits - 2
    codes = np.empty(values.shape, dtype=np.uint8 if bits == 8 else np.dtype("<u2"))
    for channel, (bottom, ceiling) in enumerate(zip(low, high, strict=True)):
        part = values[:, channel]
        finite = np.isfinite(part)
        span = ceiling - bottom
        scaled = (np.where(finite, part, bottom) - bottom) / span if span > 0 else np.full(part.shape, 0.5)
        codes[:, channel] = np.where(finite, np.round(np.clip(scaled, 0, 1) * top), top + 1)
    return base64.b64encode(zlib.compress(codes.tobytes(), 9)).decode()


def _table(colours: str) -> str:
    """A colour map's 256 colours as base64 of its red, green and blue bytes."""
    table = matplotlib.colormaps[colours](np.arange(256), bytes=True)[:, :3]
    return base64.b64encode(np.ascontiguousarray(table).tobytes()).decode()
