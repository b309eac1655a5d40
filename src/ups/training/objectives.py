"""One objective per stage: a batch and a random generator in, the loss and its components out.

All terms are in normalised units; fields come in physical ones. Codecs and losses compute in float32 even where the
loop trains under autocast. An objective owns no optimizer, no loop and no device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from ups.data.augment import Augment
from ups.data.fields import Batch
from ups.models.layers import full_precision
from ups.models.simulator import Simulator
from ups.models.step import StepEmulator
from ups.training.losses import InverseCurriculum, least_norm, mean_square, normalized_mse, relative_l2, spectral_loss
from ups.training.physics import PhysicsPriors, Prediction, latent_diversity_loss, latent_norm_loss

Scalar = Float[Tensor, ""]
Metrics = dict[str, Tensor]
Augments = Mapping[str, Augment]


@dataclass(frozen=True)
class OperatorTerms:
    """Weights of the operator's loss terms; the names are those of `training.lambda_*`."""

    forward: float = 1.0
    relative: float = 1.0
    inv_enc: float = 0.0
    inv_dec: float = 0.0
    rollout: float = 0.0
    rollout_horizon: int = 1
    rollout_start: float = 0.7
    rollout_gradient_steps: int | None = None
    spectral: float = 0.0
    inverse_frequency: int = 1
    num_queries: int | None = None


def sample_queries(shape: torch.Size, num: int | None, rng: torch.Generator) -> Tensor | None:
    """Indices (point,) of `num` random lattice nodes of a grid of `shape`; None stands for all of them."""
    total = shape.numel()
    return None if num is None or num >= total else torch.randperm(total, generator=rng, device=rng.device)[:num]


def at_queries(u: Float[Tensor, "batch channel *grid"], index: Tensor | None) -> Float[Tensor, "batch channel point"]:
    """The field at the lattice nodes of `index` (point,), or at all of them, flattened."""
    flat = u.flatten(2)
    return flat if index is None else flat.index_select(2, index.to(u.device))


class CodecObjective:
    """Relative L2 of D(E(u))(x_q) against u(x_q) over every frame of the window, and the terms of latents alone.

    Args:
        latent_norm, latent_diversity: weights of those terms, of E(u).
    """

    def __init__(
        self,
        simulator: Simulator,
        augments: Augments,
        num_queries: int | None = None,
        *,
        latent_norm: float = 0.0,
        latent_diversity: float = 0.0,
    ) -> None:
        self.module = simulator.codecs
        self.simulator, self.augments, self.num_queries = simulator, augments, num_queries
        self.latent_norm, self.latent_diversity = latent_norm, latent_diversity

    def plan(self, epoch: int, fraction: float) -> int:
        return 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Scalar, Metrics]:
        batch = self.augments[batch.task](batch, rng)
        u = self.simulator.normalizers[batch.task](batch.frames.flatten(0, 1))
        codec = self.simulator.codecs[batch.task]
        index = sample_queries(u.shape[2:], self.num_queries, rng)
        with full_precision(u):
            truth, z = at_queries(u, index), codec.encode(u)
            losses = {"reconstruction": relative_l2(at_queries(codec.decode(z), index), truth, least_norm(truth))}
            if self.latent_norm:
                losses["latent_norm"] = self.latent_norm * latent_norm_loss(z[:, None])
            if self.latent_diversity:
                losses["latent_diversity"] = self.latent_diversity * latent_diversity_loss(z[:, None])
        return torch.stack(list(losses.values())).sum(), {name: value.detach() for name, value in losses.items()}


@dataclass(frozen=True, eq=False)
class Truth:
    """The true frames of a batch, as terms compare with them; those that only latents are given of are decoded on call.

    Args:
        z: latents of all frames.
        given: normalised context frames.
        targets: normalised frames to predict.
        physical: the last context frame and those to predict, in physical units.
    """

    z: Float[Tensor, "batch time latent *tokens"]
    given: Callable[[], Tensor]
    targets: Callable[[], Tensor]
    physical: Callable[[], Tensor]


class OperatorObjective:
    """Loss of the latent operator, one step ahead and rolled out, in latent space and decoded.

    L = lambda_forward |z^ - z|^2 / |z|^2 + lambda_relative relL2(D(z^)(x_q), u(x_q))
        + lambda_spectral spectral(D(z^), u) + lambda_inv_enc mse(D(z)(x_q), u(x_q))
        + lambda_inv_dec mse(E(D(z^)), z^) + lambda_rollout mean_{k>1} relL2(D(z^_k)(x_q), u_k(x_q))
        + priors of D(z^_k) and z^_k for all k

    where z^ is the *predicted* latent: every term but the reconstruction `inv_enc` sends its gradient to the operator,
    and the roll-out's flows through all of its steps. Roll-outs join for the last part of the budget (`rollout_start`).
    What is divided by counts as a tenth of a field's usual size at least (`losses.LEAST`).

    A batch may hold latents of a frozen codec in place of its frames. Nothing is encoded then, and u is D(z), which is
    u itself only where the codec loses nothing: a lossy codec's operator is held to what the codec can express.

    Args:
        simulator: codec and operator; the codec takes part in training if its parameters require gradients.
        priors: what the predictions are held to besides the data.
    """

    def __init__(
        self,
        simulator: Simulator,
        augments: Augments,
        terms: OperatorTerms,
        curriculum: InverseCurriculum,
        priors: PhysicsPriors = PhysicsPriors.none,
    ) -> None:
        self.module = simulator
        self.simulator, self.augments, self.terms, self.curriculum = simulator, augments, terms, curriculum
        self.priors = priors
        self.epoch, self.batches = 0, 0

    def plan(self, epoch: int, fraction: float) -> int:
        """Notes where the run stands; returns the number of frames the next batch must hold after its context."""
        self.epoch = epoch
        unrolls = self.terms.rollout > 0 and fraction >= self.terms.rollout_start
        return self.terms.rollout_horizon if unrolls else 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Scalar, Metrics]:
        truth = self._encode(batch, rng) if batch.latents is None else self._take(batch, batch.latents)
        index = sample_queries(batch.frames.shape[3:], self.terms.num_queries, rng)

        state, predictions, learned = truth.z[:, : batch.context], [], self._learned_from(batch.horizon)
        for step in range(batch.horizon):
            if 0 < step <= learned:
                state = state.detach()
            with torch.set_grad_enabled(torch.is_grad_enabled() and not 0 < step < learned):
                z_next = self.simulator.advance(state, task=batch.task, dt=batch.dt, params=batch.params)
            predictions.append(z_next)
            state = torch.cat([state[:, 1:], z_next[:, None]], dim=1)
        with full_precision(truth.z):
            return self._weigh(predictions, truth, batch, index)

    def _learned_from(self, horizon: int) -> int:
        """The first step of a roll-out that its term is of, and that its gradient goes back to."""
        last = self.terms.rollout_gradient_steps
        return 0 if last is None else max(0, horizon - last)

    def _encode(self, batch: Batch, rng: torch.Generator) -> Truth:
        """The truth of the batch's frames, moved at random."""
        batch, first = self.augments[batch.task](batch, rng), batch.context
        u = self.simulator.normalizers[batch.task](batch.frames)  # (batch, context + horizon, channel, *grid)
        with full_precision(u):
            z = self.simulator.codecs[batch.task].encode(u.flatten(0, 1)).unflatten(0, u.shape[:2])
        return Truth(z, lambda: u[:, :first], lambda: u[:, first:], lambda: batch.frames[:, first - 1 :])

    def _take(self, batch: Batch, latents: Tensor) -> Truth:
        """The truth of the batch's latents; each frame is decoded once, if any term asks for it."""
        codec, normalizer = self.simulator.codecs[batch.task], self.simulator.normalizers[batch.task]
        if any(p.requires_grad for p in codec.parameters()):
            raise ValueError(f"{batch.task}: latents are those of a frozen codec, and this one is being trained")
        z, first = latents.float(), batch.context

        @cache
        def frames(start: int, end: int) -> Tensor:
            u: Tensor = codec.decode(z[:, start:end].flatten(0, 1)).unflatten(0, (len(z), end - start))
            return u

        def given() -> Tensor:
            return frames(0, first)

        def targets() -> Tensor:
            return frames(first, z.shape[1])

        return Truth(z, given, targets, lambda: normalizer.inverse(torch.cat([given()[:, -1:], targets()], dim=1)))

    def _weigh(
        self, predictions: list[Tensor], truth: Truth, batch: Batch, index: Tensor | None
    ) -> tuple[Scalar, Metrics]:
        """The weighted sum of the terms that count now, and each of them."""
        first, task, terms = batch.context, batch.task, self.terms
        codec, z = self.simulator.codecs[task], truth.z
        fields = [codec.decode(z_next) for z_next in predictions]
        decoded = fields[0]
        losses: dict[str, tuple[float, Callable[[], Tensor]]] = {
            "forward": (terms.forward, lambda: normalized_mse(predictions[0], z[:, first], least_norm(decoded))),
            "relative": (terms.relative, lambda: self._relative(decoded, truth.targets()[:, 0], index)),
            "spectral": (terms.spectral, lambda: spectral_loss(decoded, truth.targets()[:, 0])),
            "rollout": (
                terms.rollout * (len(predictions) > 1),
                lambda: self._rollout(fields, truth.targets(), index),
            ),
            "inv_enc": (
                self._inverse_weight(terms.inv_enc),
                lambda: self._inverse_encoding(z[:, 0], truth.given()[:, 0], task, index),
            ),
            "inv_dec": (
                self._inverse_weight(terms.inv_dec),
                lambda: mean_square(codec.encode(decoded), predictions[0]),
            ),
        }
        if self.priors.due(self.batches):
            losses |= self.priors.terms(task, self._prediction(predictions, fields, truth.physical(), batch))
        self.batches += 1
        total, metrics = z.new_zeros(()), {}
        for name, (weight, term) in losses.items():
            if weight > 0:
                value = term()
                total = total + weight * value
                metrics[name] = value.detach()
        return total, metrics

    def state_dict(self) -> dict[str, int]:
        """Batches seen, by which `inverse_frequency` and that of the priors count."""
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on counting from where `state_dict` was."""
        self.batches = state["batches"]

    def _inverse_weight(self, base: float) -> float:
        computed = self.batches % self.terms.inverse_frequency == 0
        return self.curriculum(base, self.epoch) if computed else 0.0

    def _prediction(self, predictions: list[Tensor], fields: list[Tensor], truth: Tensor, batch: Batch) -> Prediction:
        """The roll-out in physical units, after the last given frame, with which `truth` begins."""
        found = self.simulator.normalizers[batch.task].inverse(torch.stack(fields, dim=1))
        frames = torch.cat([truth[:, :1], found], dim=1)
        return Prediction(frames, truth, torch.stack(predictions, dim=1), batch.params, batch.dt)

    def _rollout(self, fields: list[Tensor], truth: Tensor, index: Tensor | None) -> Tensor:
        learned = max(1, self._learned_from(len(fields)))
        terms = [self._relative(field, truth[:, k], index) for k, field in enumerate(fields) if k >= learned]
        return torch.stack(terms).mean()

    @staticmethod
    def _relative(field: Tensor, truth: Tensor, index: Tensor | None) -> Tensor:
        found = at_queries(field, index)
        return relative_l2(found, at_queries(truth, index), least_norm(found))

    def _inverse_encoding(self, z: Tensor, u: Tensor, task: str, index: Tensor | None) -> Tensor:
        return mean_square(at_queries(self.simulator.codecs[task].decode(z), index), at_queries(u, index))


class EmulatorObjective:
    """Relative L2 one step ahead of any grid-to-grid emulator: how the baselines are trained."""

    def __init__(self, emulator: StepEmulator, augments: Augments) -> None:
        self.module = emulator
        self.emulator, self.augments = emulator, augments

    def plan(self, epoch: int, fraction: float) -> int:
        return 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Scalar, Metrics]:
        batch = self.augments[batch.task](batch, rng)
        u = self.emulator.normalizers[batch.task](batch.frames)
        found = self.emulator.advance_normalized(
            u[:, : batch.context], task=batch.task, dt=batch.dt, params=batch.params
        )
        with full_precision(u):
            loss = relative_l2(found, u[:, batch.context], least_norm(found))
        return loss, {"relative": loss.detach()}
