"""Settings of what is known of a task beyond its data: priors in the training loss, guards of a roll-out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from ups.config.kinds import Group


class PhysicsPriorSettings(Group):
    """Weights of the terms that hold the operator's prediction to the physics; see `ups.training.physics`."""

    enabled: bool = False
    """Whether there are such terms."""
    lambda_divergence: NonNegativeFloat = 0.0
    """Weight of a solenoidal vector's mean divergence, beyond the truth's; for an equation whose velocity is among its
    fields, which none of the built-in ones is yet."""
    lambda_conservation: NonNegativeFloat = 0.0
    """Weight of what is lost of every conserved integral, beyond the truth's loss."""
    lambda_boundary: NonNegativeFloat = 0.0
    """Weight of the mismatch at the walls, beyond the truth's where the condition is the equation's own."""
    lambda_positivity: NonNegativeFloat = 0.0
    """Weight of how far bounded fields leave their bounds, beyond the truth."""
    lambda_residual: NonNegativeFloat = 0.0
    """Weight of the squared difference between the prediction's and the truth's residual of the equation."""
    bc_type: Literal["dirichlet", "neumann", "periodic"] | None = None
    """Condition that `lambda_boundary` asks for at every end of every axis; null takes the equation's own."""
    bc_value: float | None = None
    """Value at the walls, in the fields' unit; for `dirichlet` alone."""
    lambda_latent_norm: NonNegativeFloat = 0.0
    """Weight of the squared distance of the tokens' root mean squares from 1; of the codec's stage, too."""
    lambda_latent_diversity: NonNegativeFloat = 0.0
    """Weight of the mean |cosine| between the tokens of a frame; of the codec's stage, too."""
    frequency: PositiveInt = 1
    """The priors are computed for every so many batches, as the inverse terms are by `inverse_loss_frequency`."""

    @property
    def weighted(self) -> list[str]:
        """Names of the weights above 0."""
        return [key for key in type(self).model_fields if key.startswith("lambda_") and getattr(self, key) > 0]

    @property
    def of_latents(self) -> list[str]:
        """Those of `weighted` that are of latents, which the codec's stage has, too."""
        return [key for key in self.weighted if key.startswith("lambda_latent_")]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.enabled and not self.weighted:
            raise ValueError("enabled is true, but every lambda is 0: give one above 0, or make enabled false")
        if self.weighted and not self.enabled:
            raise ValueError(
                f"{' and '.join(self.weighted)} above 0 would have no effect: enabled is false; make it true, or give 0"
            )
        if self.bc_type is not None and self.lambda_boundary == 0:
            raise ValueError(f"bc_type is {self.bc_type}, but lambda_boundary is 0: give it above 0, or leave bc_type")
        if self.bc_type == "dirichlet" and self.bc_value is None:
            raise ValueError("bc_type is dirichlet: give bc_value, the value at the walls")
        if self.bc_type != "dirichlet" and self.bc_value is not None:
            raise ValueError("bc_value is the value at dirichlet walls: give bc_type dirichlet, or leave bc_value")
        return self


class GuardSettings(Group):
    """Exact projections of every predicted frame; see `ups.physics.guards`."""

    conservation: bool = False
    """Keep the integral of every conserved field."""
    positivity: bool = False
    """Keep fields within their bounds, without a change of their integral."""
    divergence: bool = False
    """Take the divergence out of the vector that has none, on periodic grids; for an equation whose velocity is among
    its fields, which none of the built-in ones is yet."""
    boundary: bool = False
    """Make fields meet the boundary condition at the walls."""
