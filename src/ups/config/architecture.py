"""Settings of the networks: latent space, operator, residual diffusion, steady prior."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ups.config.kinds import BelowOne, Group, Share, as_tuple


class CodecSettings(Group):
    """Encoder and decoder between fields and latent tokens."""

    train_with_operator: bool = False
    """Whether the operator's stage trains the codec too, instead of freezing it."""


class LatentSettings(Group):
    """The latent space shared by all discretisations."""

    dim: PositiveInt = 64
    """Values per token; at least fields times `patch` to the power of the dimensions makes a codec that loses
    nothing."""
    patch: PositiveInt | Literal["auto"] = "auto"
    """Grid points per token along each axis; `auto` is the largest power of two that divides the grid and loses
    nothing, up to 8 in one dimension, 4 in two and 2 in three."""
    codec: CodecSettings = CodecSettings()
    """How encoder and decoder are trained."""


class PdetSettings(Group):
    """The operator's network: a transformer that mixes tokens, between convolutional levels."""

    hidden_dim: PositiveInt = 64
    """Width of a token inside the blocks."""
    depths: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1), BeforeValidator(as_tuple)] = 2
    """Blocks: of a stack, or of each of two levels of a U; a list is one number per level."""
    heads: PositiveInt = 4
    """Attention heads; they must divide `hidden_dim` into even parts."""
    window: PositiveInt | None = None
    """Tokens per side of an attention window; null attends globally."""
    mlp_ratio: PositiveFloat = 2.0
    """Width of a block's MLP over `hidden_dim`."""
    qk_norm: bool = True
    """Normalise queries and keys of the attention."""
    drop_path: BelowOne = 0.0
    """Probability with which a block is left out in training (stochastic depth)."""
    coarsen: PositiveInt | Annotated[tuple[PositiveInt, ...], BeforeValidator(as_tuple)] | Literal["auto"] = "auto"
    """Convolutional levels between the grid and the tokens: how many times each coarsens it; the width doubles from
    each to the next. `auto` is one level of 8 in one dimension, three of 2 in two and two of 2 in three, as far as the
    grid divides, with `window` and the halvings of a U."""
    stem_width: PositiveInt | Literal["auto"] = "auto"
    """Channels at full resolution; `auto` is 32 in one dimension, else 16."""
    use_activation_checkpoint: bool = False
    """Compute activations again in the backward pass: less memory, the same gradients, more time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_dim % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide hidden_dim, {self.hidden_dim}")
        width = self.hidden_dim // self.heads
        if width % 2:
            raise ValueError(
                f"hidden_dim // heads is {self.hidden_dim} // {self.heads} = {width}; rotary pairs need an even head "
                "width: change heads or hidden_dim"
            )
        return self


class OperatorSettings(Group):
    """The operator that advances latents in time."""

    architecture_type: Literal["pdet_unet", "pdet_stack"] = "pdet_stack"
    """A plain stack of blocks, or a U that halves and doubles the grid of tokens."""
    base: Literal["auto", "linear", "persistence"] = "auto"
    """What the learned rest is added to: the best linear propagator of the training data, or the last frame; `auto`
    takes the propagator where it leaves less than half of a step of the training data (root mean square)."""
    form: Literal["auto", "flux", "flux_open", "flux_source", "increment"] = "auto"
    """How the rest is read: `auto` takes the equation's own; a flux between cells keeps the integral of a field.
    `flux` where an integral is not kept, and `flux_open` without open walls, are refused."""
    moving_frame: bool = True
    """Take the mean velocity out of every step where the equation is Galilean-invariant."""
    symmetrize: Literal["auto"] | NonNegativeInt = "auto"
    """Views of the field, by the symmetries of its equation, that each step of a roll-out is the mean over: as many as
    there are make a step as symmetric as its equation. The views change from step to step, so that errors average out.
    One costs nothing; `n` take `n` times the operator's time, in roll-outs, validations and the training of
    `diff_residual`. `auto` is 1, and 0, the field as it is, where training saw no other (`training.augment`). Unrolled
    training (`lambda_rollout`) stays in one view."""
    cutoff: Literal["auto"] | Share = "auto"
    """Share of the wave numbers of periodic axes that a step keeps: the shortest waves, of which the data have next to
    nothing, may grow over a roll-out. `auto` takes, once the operator is trained, what its validation roll-outs are
    best with of all, two thirds and half of them."""
    derived_fields: bool = True
    """Show the network also what follows from its fields by what they are, as the velocity does from the vorticity."""
    pdet: PdetSettings = PdetSettings()
    """Sizes of the network."""


class DiffusionSettings(Group):
    """The residual diffusion: samples of the operator's error, for ensembles."""

    architecture: Literal["transformer", "mlp"] = "transformer"
    """Networks that mix tokens as the operator does, or of every cell on its own."""
    hidden_dim: PositiveInt = 64
    """Width of the networks; a multiple of 8."""
    depth: PositiveInt = 3
    """Blocks of each network."""
    stem_width: PositiveInt | Literal["auto"] = "auto"
    """Channels of the layers at full resolution; `auto` is the operator's."""
    tau_distribution: str = "uniform"
    """Times of the flow that training draws: `uniform`, `logit_normal` or `beta(a,b)`."""
    sampler: Literal["heun", "euler"] = "heun"
    """Second-order or first-order steps of the flow."""
    sampler_steps: PositiveInt = 16
    """Steps of the flow from noise to a sample."""
    student_steps: PositiveInt = 2
    """Steps of the distilled sampler, which takes the other's place where it was trained."""
    lambda_spectral: NonNegativeFloat = 0.0
    """Weight of the spectral loss of the field that one step of the flow lands at."""
    lambda_relative: NonNegativeFloat = 0.0
    """Weight of that field's relative L2 error."""

    @field_validator("tau_distribution")
    @classmethod
    def _known(cls, value: str) -> str:
        number = r"\s*(?:[1-9]\d*(?:\.\d*)?|0?\.\d*[1-9]\d*)\s*"
        if value not in ("uniform", "logit_normal") and not re.fullmatch(rf"beta\({number},{number}\)", value):
            raise ValueError(f"{value!r} is none of uniform, logit_normal and beta(a,b) with a and b above 0")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_dim % 8:
            raise ValueError(f"hidden_dim is {self.hidden_dim}; it must be a multiple of 8 (four heads of even width)")
        return self


class PriorSettings(Group):
    """The steady prior, which solves problems without time."""

    num_steps: PositiveInt = 2
    """Refinement steps, each of them supervised."""
    hidden_dim: PositiveInt = 64
    """Width of a token inside the blocks."""
    depth: PositiveInt = 2
    """Blocks of the network, which all steps share."""
    stem_width: PositiveInt = 16
    """Channels of the layers at full resolution."""
    patch: PositiveInt | Literal["auto"] = "auto"
    """Grid points per token along each axis; `auto` is 2 up to 32 points per axis and 4 beyond."""
    conductivities: NonNegativeInt = 4
    """Learned conductivities whose divergences every step sees."""
