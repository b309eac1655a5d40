"""Universal Physics Stack: fast neural simulators from PDE trajectories.

import ups

sim = ups.load("runs/RUN")
u = sim.rollout(u0, steps=40, params={"nu": 0.01})
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ups.models.surrogate import Surrogate

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def load(folder: str | Path, device: torch.device | str | None = None) -> Surrogate:
    """Reads the trained model of a run's folder, of any folder with `model/`, or of the Hugging Face Hub.

    Args:
        folder: what `ups run` printed last, or the folder `model` in it; or `hf://OWNER/NAME`, what `ups push` wrote
            (with the extra `hub`). Weights are safetensors: nothing is unpickled.
        device: where to compute; the GPU where there is one.

    Returns:
        the simulator; see `Surrogate.rollout`.

    Raises:
        CheckpointError: there is no model, or it is damaged or of another version of ups.
    """
    from ups.models.surrogate import load as load_surrogate  # PyTorch is imported only when a model is

    return load_surrogate(folder, device)
