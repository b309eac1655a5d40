"""Muon: gradient descent whose step on a weight matrix is the orthogonal factor of its momentum.

For the momentum M = U S V^H of a matrix the step is (nearly) U V^H, every direction with the same strength. The factor
comes from a Newton-Schulz iteration, which needs matrix products alone; here it runs in float32 and *batched over all
weights of the same shape*, so that a small network costs a few batched products a step. Parameters that are no matrices
take AdamW steps.

Papers: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (iteration and its coefficients);
Liu et al. 2025, "Muon is scalable for LLM training", arXiv:2502.16982 (step size that matches AdamW's, weight decay).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.optim.adamw import adamw

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's quintic: p(s) = a s + b s^3 + c s^5 takes singular values in (0, 1] to about [0.7, 1.2] in five steps."""

MATCH_ADAMW_RMS = 0.2
"""Root mean square of an AdamW step at unit rate, to which Muon's is scaled (Liu et al. 2025, section 2.2)."""


def orthogonalize(matrices: Inexact[Tensor, "matrix row column"], steps: int) -> Inexact[Tensor, "matrix row column"]:
    """Nearly U V^H of every matrix U S V^H, real or complex, by `steps` Newton-Schulz iterations.

    With X_0 = M / |M|_F, each iteration is X <- a X + (b A + c A A) X where A = X X^H. A zero matrix stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mH  # the smaller Gram matrix
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-30)
    for _ in range(steps):
        gram = x @ x.mH
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mH


def matrix_shape(parameter: Tensor) -> tuple[int, int] | None:
    """How Muon reads a parameter, as one or more matrices of (rows, columns); None when AdamW trains it.

    A linear weight (out, in) is one matrix and a convolution (out, in, *kernel) is the matrix (out, in * kernel). A
    stack of matrices, such as spectral weights (*modes, in, out), says how many leading dims count them in its
    attribute `muon_batch_dims`. AdamW trains vectors, depthwise kernels, and whatever carries `no_muon = True`.
    """
    stacked: int = getattr(parameter, "muon_batch_dims", 0)
    shape = parameter.shape[stacked:]
    if len(shape) < 2 or getattr(parameter, "no_muon", False):
        return None
    rows, columns = shape[0], math.prod(shape[1:])
    depthwise = not stacked and len(shape) > 2 and shape[1] == 1
    return None if depthwise or min(rows, columns) == 1 else (rows, columns)


class Muon(torch.optim.Optimizer):
    """Muon for matrices and fused AdamW for everything else, as one optimizer with one state.

    A matrix W (rows x columns) with gradient G moves by

        M <- m M + (1 - m) G,    W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, columns)) orthogonalize((1 - m) G + m M)

    so that a step has the root mean square of an AdamW step and both kinds can share a rate and a weight decay.

    Args:
        params: parameters; `matrix_shape` tells which are matrices.
        lr: rate of the matrices.
        momentum: m.
        ns_steps: Newton-Schulz iterations.
        weight_decay: decoupled, on matrices alone.
        adam_lr, betas, eps: AdamW's, for the rest.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        ns_steps: int = 5,
        weight_decay: float = 0.0,
        adam_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        matrices = [p for p in params if matrix_shape(p) is not None]
        others = [p for p in params if matrix_shape(p) is None]
        muon = {"method": "muon", "lr": lr, "momentum": momentum, "ns_steps": ns_steps, "weight_decay": weight_decay}
        # `fused` also makes Optimizer.load_state_dict keep the step counts where the fused kernel wants them.
        adam = {"method": "adamw", "lr": adam_lr, "betas": betas, "eps": eps, "fused": True}
        groups = [{"params": matrices, **muon}, {"params": others, **adam}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._step_matrices if group["method"] == "muon" else self._step_others)(params, group)
        return loss

    def _step_matrices(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        momenta = [self._kept(p, "momentum", p) for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        targets = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        alike: dict[Any, list[int]] = defaultdict(list)
        for i, p in enumerate(params):
            alike[matrix_shape(p), p.dtype, p.device].append(i)
        for ((rows, columns), dtype, _), members in alike.items():
            stack = torch.cat([targets[i].reshape(-1, rows, columns) for i in members])
            stack = orthogonalize(stack.to(torch.promote_types(dtype, torch.float32)), group["ns_steps"]).to(dtype)
            moves = torch.split(stack, [params[i].numel() // (rows * columns) for i in members])
            rate = group["lr"] * MATCH_ADAMW_RMS * math.sqrt(max(rows, columns))
            moved = [params[i] for i in members]
            torch._foreach_add_(moved, [m.reshape(p.shape) for p, m in zip(moved, moves, strict=True)], alpha=-rate)

    def _step_others(self, params: list[Tensor], group: dict[str, Any]) -> None:
        real = [_as_real(p) for p in params]
        adamw(
            real,
            [_as_real(p.grad) for p in params if p.grad is not None],
            [self._kept(p, "exp_avg", r) for p, r in zip(params, real, strict=True)],
            [self._kept(p, "exp_avg_sq", r) for p, r in zip(params, real, strict=True)],
            [],
            [self._kept(p, "step", torch.zeros((), dtype=torch.float32, device=p.device)) for p in params],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _kept(self, parameter: Tensor, name: str, like: Tensor) -> Tensor:
        """The named entry of the parameter's state, zero at first."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(like)
        kept: Tensor = state[name]
        return kept


def _as_real(parameter: Tensor) -> Tensor:
    return torch.view_as_real(parameter) if parameter.is_complex() else parameter
