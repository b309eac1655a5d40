"""The latent operator: symmetry, conditioning, and its two architectures."""

from __future__ import annotations

import pytest
import torch

from ups.models.operator import LatentOperator
from ups.models.pyramid import Patches, halvings


def make(axes: int, architecture: str, **changes: object) -> LatentOperator:
    torch.manual_seed(0)
    sizes: dict[str, object] = {
        "coarsen": (2, 2),
        "architecture": architecture,
        "hidden_dim": 16,
        "heads": 2,
        "depths": (1, 1),
        "stem_width": 8,
    }
    operator = LatentOperator(axes, {"a": (2, 3), "b": (1, 1)}, {"a": 1, "b": 0}, **{**sizes, **changes})  # type: ignore[arg-type]
    for p in operator.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return operator.eval()


@pytest.mark.parametrize("architecture", ["pdet_stack", "pdet_unet"])
@pytest.mark.parametrize("axes", [1, 2])
def test_it_commutes_with_translation_by_whole_coarse_tokens(axes: int, architecture: str) -> None:
    operator = make(axes, architecture)
    u, features = torch.randn(2, 2, *[16] * axes), torch.randn(2, 2)
    dims, shift = list(range(2, 2 + axes)), [8] * axes
    out = operator(u, features, "a", [True] * axes)
    assert out.shape == (2, 3, *[16] * axes)
    moved = operator(u.roll(shift, dims), features, "a", [True] * axes)
    torch.testing.assert_close(moved, out.roll(shift, dims), atol=1e-4, rtol=1e-3)


def test_parameters_and_dt_reach_the_output() -> None:
    operator, u = make(1, "pdet_stack"), torch.randn(1, 2, 16)
    plain = operator(u, torch.zeros(1, 2), "a", [True])
    for feature in range(2):
        features = torch.zeros(1, 2)
        features[0, feature] = 1
        assert not torch.allclose(operator(u, features, "a", [True]), plain, atol=1e-4)


def test_tasks_share_the_trunk_and_keep_their_own_ends() -> None:
    operator = make(1, "pdet_stack")
    assert operator(torch.randn(1, 1, 16), torch.zeros(1, 1), "b", [True]).shape == (1, 1, 16)
    operator.zero_grad()
    operator(torch.randn(1, 1, 16), torch.zeros(1, 1), "b", [True]).square().sum().backward()
    touched = {name for name, p in operator.named_parameters() if p.grad is not None}
    assert any(name.startswith("trunk") for name in touched)
    assert not any(".a." in name for name in touched)


def test_activation_checkpointing_changes_no_gradient() -> None:
    u, features, gradients = torch.randn(2, 2, 16), torch.randn(2, 2), []
    for use in (False, True):
        operator = make(1, "pdet_unet", use_activation_checkpoint=use).train()
        operator(u, features, "a", [True]).square().sum().backward()
        gradients.append([p.grad for p in operator.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_fresh_operator_writes_no_rest() -> None:
    operator = LatentOperator(
        1, {"a": (1, 1)}, {"a": 0}, coarsen=(4,), hidden_dim=16, heads=2, depths=(1,), stem_width=8
    )
    assert operator(torch.randn(2, 1, 16), torch.zeros(2, 1), "a", [True]).abs().max() == 0


@pytest.mark.parametrize("coarsen", [(), (3,), (2, 2), (4, 2)])
def test_levels_of_any_factors_keep_the_grid_and_use_every_weight(coarsen: tuple[int, ...]) -> None:
    operator = make(1, "pdet_stack", coarsen=coarsen)
    u = torch.randn(2, 1, 24)
    out = operator(u, torch.randn(2, 1), "b", [True])
    assert out.shape == u.shape
    out.square().sum().backward()
    idle = {name for name, p in operator.pyramids["b"].named_parameters() if p.grad is None or not p.grad.any()}
    assert not idle
    assert len(list(operator.pyramids["b"].parameters())) == 14 * len(coarsen)


def test_a_task_has_levels_of_its_own_and_shares_the_transformer() -> None:
    operator = make(1, "pdet_stack")
    operator(torch.randn(2, 1, 16), torch.randn(2, 1), "b", [True]).square().sum().backward()
    trained = {name for name, p in operator.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("trunk.") for name in trained)
    assert any(name.startswith("pyramids.b.") for name in trained)
    assert not any(name.split(".")[1] == "a" for name in trained)


def test_activation_checkpointing_holds_no_activations_of_the_levels() -> None:
    held: list[int] = []
    for use in (False, True):
        operator = make(2, "pdet_stack", use_activation_checkpoint=use).train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            operator(torch.randn(2, 2, 16, 16), torch.randn(2, 2), "a", [True, True])
        held.append(sum(sizes))
    assert held[1] < 0.5 * held[0]


def test_what_is_fine_passes_the_tokens_by() -> None:
    """A change between two cells of a patch reaches the output, whatever the tokens make of it."""
    operator = make(1, "pdet_stack", coarsen=(2, 2))
    torch.nn.init.zeros_(operator.pyramids["b"].resize[0].spread_weight)  # type: ignore[arg-type, union-attr]
    u = torch.zeros(1, 1, 16)
    u[0, 0, ::2] = 1
    features = torch.zeros(1, 1)
    assert not torch.allclose(operator(u, features, "b", [True]), operator(u.roll(1, -1), features, "b", [True]))


@pytest.mark.parametrize(("factor", "halved"), [(1, ()), (2, (2,)), (8, (2, 2, 2)), (12, (2, 2, 3)), (5, (5,))])
def test_a_factor_is_halved_as_often_as_it_can_be(factor: int, halved: tuple[int, ...]) -> None:
    assert halvings(factor) == halved


def test_gathering_with_an_orthogonal_kernel_and_spreading_is_the_identity() -> None:
    patches = Patches(2, 2, 8, 2)
    kernel = torch.linalg.qr(torch.randn(8, 8)).Q.reshape(8, 2, 2, 2)
    with torch.no_grad():
        patches.gather_weight.copy_(kernel)
        patches.spread_weight.copy_(kernel)
    u = torch.randn(3, 2, 6, 4)
    torch.testing.assert_close(patches.spread(patches.gather(u)), u, atol=1e-5, rtol=0)
