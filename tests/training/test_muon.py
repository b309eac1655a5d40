from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ups.training.muon import MATCH_ADAMW_RMS, NEWTON_SCHULZ, Muon, matrix_shape, orthogonalize

DTYPES = {"real": torch.float32, "complex": torch.complex64}


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def reference(matrix: np.ndarray, steps: int) -> np.ndarray:
    """U p(S) V^H by singular value decomposition in float64, p the quintic composed with itself."""
    a, b, c = NEWTON_SCHULZ
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / math.sqrt(float((values**2).sum()))
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (2, 40)])
@pytest.mark.parametrize("steps", [1, 5])
def test_newton_schulz_is_the_polynomial_of_the_singular_values(kind: str, shape: tuple[int, int], steps: int) -> None:
    matrices = draw(3, *shape, dtype=DTYPES[kind])
    found = orthogonalize(matrices, steps).resolve_conj().numpy()
    for matrix, result in zip(matrices.numpy(), found, strict=True):
        wide = np.complex128 if kind == "complex" else np.float64
        np.testing.assert_allclose(result, reference(matrix.astype(wide), steps), atol=2e-5)


@pytest.mark.parametrize("shape", [(16, 16), (8, 64), (64, 8)])
def test_the_result_is_close_to_the_orthogonal_factor(shape: tuple[int, int]) -> None:
    matrix = draw(*shape)
    left, _, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    spread = np.linalg.svd(orthogonalize(matrix[None], 5)[0].numpy(), compute_uv=False)
    assert spread.max() < 1.25
    overlap = (orthogonalize(matrix[None], 5)[0].numpy() * (left @ right)).sum() / min(shape)
    assert 0.8 < overlap < 1.15


def test_zero_stays_zero_and_scale_does_not_matter() -> None:
    matrix = draw(1, 4, 6)
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 6), 5), torch.zeros(2, 4, 6))
    torch.testing.assert_close(orthogonalize(1e-12 * matrix, 5), orthogonalize(matrix, 5), rtol=1e-6, atol=1e-9)


def test_which_parameters_are_matrices() -> None:
    assert matrix_shape(nn.Linear(3, 5).weight) == (5, 3)
    assert matrix_shape(nn.Linear(3, 5).bias) is None
    assert matrix_shape(nn.Conv2d(3, 8, 5).weight) == (8, 75)
    assert matrix_shape(nn.Conv1d(8, 8, 5, groups=8).weight) is None
    assert matrix_shape(nn.Linear(3, 1).weight) is None
    stack = nn.Parameter(torch.zeros(7, 6, 4, 3, dtype=torch.complex64))
    stack.muon_batch_dims = 2
    assert matrix_shape(stack) == (4, 3)
    stack.no_muon = True
    assert matrix_shape(stack) is None


def test_steps_follow_the_formula() -> None:
    """Momentum, Nesterov, decay and step size of three steps, against numpy in float64."""
    weight, lr, momentum, decay = nn.Parameter(draw(4, 6)), 0.01, 0.9, 0.1
    optimizer = Muon([weight], lr, momentum=momentum, weight_decay=decay)
    expected, mean = weight.detach().numpy().copy(), np.zeros((4, 6))
    for step in range(3):
        grad = draw(4, 6, seed=1 + step)
        weight.grad = grad.clone()
        optimizer.step()
        mean = momentum * mean + (1 - momentum) * grad.numpy()
        target = reference((1 - momentum) * grad.numpy() + momentum * mean, 5)
        expected = (1 - lr * decay) * expected - lr * MATCH_ADAMW_RMS * math.sqrt(6) * target
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_agrees_with_the_muon_of_torch() -> None:
    """Which orthogonalises in bfloat16, hence the tolerance."""
    ours, theirs = (nn.Parameter(draw(24, 16, dtype=torch.float32)) for _ in range(2))
    start = ours.detach().clone()
    optimizers = (
        Muon([ours], 0.01, momentum=0.95, weight_decay=0.1),
        torch.optim.Muon([theirs], 0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = draw(24, 16, dtype=torch.float32, seed=step)
            optimizer.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


@pytest.mark.parametrize("shape", [(32, 32), (16, 96), (96, 16)])
def test_a_step_is_as_large_as_one_of_adamw(shape: tuple[int, int]) -> None:
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = draw(*shape, dtype=torch.float32)
    Muon([weight], 0.01).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_rotated_gradients_give_rotated_steps() -> None:
    left, right = torch.linalg.qr(draw(8, 8))[0], torch.linalg.qr(draw(6, 6, seed=1))[0]
    grad, moves = draw(8, 6, seed=2), []
    for rotated in (grad, left @ grad @ right):
        weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.float64))
        weight.grad = rotated
        Muon([weight], 1.0).step()
        moves.append(weight.detach())
    torch.testing.assert_close(left @ moves[0] @ right, moves[1])


def test_weights_of_one_shape_step_together_as_they_would_alone() -> None:
    shapes = [(6, 4), (6, 4), (4, 6), (6, 2, 2), (3, 6, 4)]
    together = [nn.Parameter(draw(*shape, dtype=torch.float32, seed=i)) for i, shape in enumerate(shapes)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    together[-1].muon_batch_dims = alone[-1].muon_batch_dims = 1
    optimizers = [Muon(together, 0.1), *(Muon([p], 0.1) for p in alone)]
    for i, (one, other) in enumerate(zip(together, alone, strict=True)):
        one.grad, other.grad = (draw(*one.shape, dtype=torch.float32, seed=10 + i) for _ in range(2))
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", DTYPES)
def test_a_stack_of_spectral_weights_is_one_matrix_per_mode(kind: str) -> None:
    stack = nn.Parameter(torch.zeros(5, 4, 3, dtype=DTYPES[kind]))
    stack.muon_batch_dims = 1
    stack.grad = draw(5, 4, 3, dtype=DTYPES[kind])
    Muon([stack], 1.0, momentum=0.0).step()
    for mode in range(5):
        target = reference(stack.grad[mode].numpy(), 5)
        np.testing.assert_allclose(stack[mode].detach().numpy(), -0.2 * math.sqrt(4) * target, atol=1e-5)


@pytest.mark.parametrize("kind", DTYPES)
def test_everything_else_takes_adamw_steps(kind: str) -> None:
    ours, theirs = ([nn.Parameter(draw(n, dtype=DTYPES[kind], seed=n)) for n in (3, 8)] for _ in range(2))
    optimizers = (
        Muon(ours, 1.0, adam_lr=0.01, betas=(0.8, 0.9), weight_decay=0.5),
        torch.optim.AdamW(theirs, 0.01, (0.8, 0.9), weight_decay=0.0),
    )
    for step in range(5):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            for p in params:
                p.grad = draw(*p.shape, dtype=DTYPES[kind], seed=100 * step + len(p))
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_state_goes_on_bit_for_bit() -> None:
    def start() -> tuple[list[nn.Parameter], Muon]:
        shapes = ((4, 6), (6,), (3, 4, 5))
        params = [nn.Parameter(draw(*shape, dtype=torch.float32)) for shape in shapes]
        return params, Muon(params, 0.1)

    def advance(params: list[nn.Parameter], optimizer: Muon, steps: range) -> None:
        for step in steps:
            for p in params:
                p.grad = draw(*p.shape, dtype=torch.float32, seed=step)
            optimizer.step()

    whole, optimizer = start()
    advance(whole, optimizer, range(4))
    kept = copy.deepcopy(optimizer.state_dict())
    resumed, second = start()
    for p, q in zip(resumed, whole, strict=True):
        p.data.copy_(q.data)
    second.load_state_dict(kept)
    advance(whole, optimizer, range(4, 8))
    advance(resumed, second, range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


def test_learns_a_linear_map() -> None:
    torch.manual_seed(0)
    target, layer = draw(8, 8, dtype=torch.float32), nn.Linear(8, 8)
    optimizer = Muon(list(layer.parameters()), 0.3, adam_lr=0.1)
    first = last = 0.0
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * (1 - step / 150)
        x = draw(32, 8, dtype=torch.float32, seed=step)
        loss = (layer(x) - x @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert last < 1e-3 * first
