"""The sizes and parts that make a simulator, as its file describes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Plain sizes of a simulator; the keyword arguments of `LatentOperator` and `Codec`."""

    latent_dim: int = 64
    patch: int = 8
    coarsen: tuple[int, ...] = (8,)
    base: str = "auto"
    form: str | None = None
    moving_frame: bool = True
    symmetrize: int = 1
    cutoff: float = 1.0
    architecture: str = "pdet_stack"
    hidden_dim: int = 64
    depths: tuple[int, ...] = (3,)
    heads: int = 4
    window: int | None = None
    mlp_ratio: float = 2.0
    qk_norm: bool = True
    drop_path: float = 0.0
    stem_width: int = 32
    use_activation_checkpoint: bool = False
    guards: tuple[str, ...] = ()
    corrector_every: int = 1
    mode: str = "latent"
