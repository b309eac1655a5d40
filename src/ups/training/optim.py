"""Optimizers as the settings describe them, and the clipping of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ups.config.learning import OptimizerSettings
from ups.errors import UpsError
from ups.training.muon import Muon


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """The optimizer of a module's trainable parameters.

    Weight decay acts on parameters of two or more dims, not on biases, norms and other vectors. Each group keeps its
    peak rate as `initial_lr`, which a schedule multiplies.

    Raises:
        UpsError: no parameter of the module asks for gradients.
    """
    _leave_compiler_alone()
    params = [p for p in module.parameters() if p.requires_grad]
    if not params:
        raise UpsError("nothing to train: every parameter of this stage is frozen; skip the stage with epochs: 0")
    optimizer = _build(params, settings)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _build(params: list[nn.Parameter], settings: OptimizerSettings) -> Optimizer:
    if settings.name == "muon":
        return Muon(
            params,
            settings.lr,
            momentum=settings.muon_momentum,
            ns_steps=settings.muon_ns_steps,
            weight_decay=settings.weight_decay,
            adam_lr=settings.adam_lr,
            betas=settings.betas,
        )
    decayed = {"params": [p for p in params if p.ndim >= 2], "weight_decay": settings.weight_decay}
    others = {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}
    groups: list[dict[str, Any]] = [group for group in (decayed, others) if group["params"]]
    fused = None if any(p.is_complex() for p in params) else True  # the fused kernels know real numbers alone
    match settings.name:
        case "adam":
            return Adam(groups, settings.lr, settings.betas, fused=fused)
        case "adamw":
            return AdamW(groups, settings.lr, settings.betas, fused=fused)
        case "sgd":
            return SGD(groups, settings.lr, settings.momentum, fused=fused)


def _leave_compiler_alone() -> None:
    """Lets an optimizer be built without importing PyTorch's compiler, which takes longer than PyTorch itself.

    PyTorch keeps some methods of `Optimizer` out of compiled graphs and imports the compiler on their first call, to
    mark them so. The mark is an attribute of the plain method; nothing here is compiled, so the plain method is it.
    """
    for name in ("state_dict", "load_state_dict", "zero_grad", "add_param_group"):
        plain = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            setattr(plain, "__dynamo_disable", plain)


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Every group's rate becomes `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]


@torch.no_grad()
def gradient_norms(params: Sequence[Tensor]) -> Tensor:
    """The 2-norm of every parameter's gradient, 0 where it has none, (parameter,)."""
    grads = [p.grad for p in params if p.grad is not None]
    norms = torch._foreach_norm(grads)
    if len(grads) == len(params):
        return torch.stack(norms)
    found = iter(norms)
    zero = torch.zeros_like(norms[0])
    return torch.stack([zero if p.grad is None else next(found) for p in params])


@torch.no_grad()
def clip_gradients(params: Sequence[Tensor], limit: float | None, norms: Tensor | None = None) -> Tensor:
    """Scales the gradients down to a total 2-norm of at most `limit` (None leaves them); returns the norm before.

    Args:
        norms: of each gradient, where they are known.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient_norms(params) if norms is None else norms)
    if limit is not None:
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
