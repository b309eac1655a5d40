"""Fields that follow from a frame's own: what they are, who reads them, and in which units."""

from __future__ import annotations

import math

import pytest
import torch
from tests.models.helpers import make_spec
from torch import Tensor

from ups.models.architecture import Architecture
from ups.models.baselines import LinearEmulator, NetworkEmulator
from ups.models.derived import Derived
from ups.models.simulator import Simulator
from ups.physics.equations import EQUATIONS, get_equation

FLOW = "kolmogorov2d"
SMALL = Architecture(latent_dim=16, patch=4, coarsen=(4,), hidden_dim=16, heads=2, depths=(1,), stem_width=8)


def spec_of(**changes: object):  # type: ignore[no-untyped-def]
    values = {"name": FLOW, "fields": ("w",), "spacing": (2 * math.pi / 16,) * 2, "static": 1, "derived": 2}
    return make_spec(2, 16, **{**values, **changes})


def swirl(points: int) -> tuple[Tensor, Tensor]:
    """A vorticity and its velocity: the stream function sin(x) cos(2 y)."""
    x, y = torch.meshgrid(*[(torch.arange(points) + 0.5) * 2 * math.pi / points] * 2, indexing="ij")
    velocity = torch.stack([-2 * x.sin() * (2 * y).sin(), -x.cos() * (2 * y).cos()])
    return 5 * (x.sin() * (2 * y).cos())[None, None], velocity[None]


@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_the_velocity_of_a_known_flow_is_found_from_its_vorticity(mean: float) -> None:
    w, velocity = swirl(32)
    derive = get_equation(FLOW).derive
    assert derive is not None
    torch.testing.assert_close(derive(w + mean, (2 * math.pi / 32,) * 2), velocity, atol=1e-5, rtol=1e-5)


def test_a_gradient_passes_after_fields_were_first_derived_in_inference_mode() -> None:
    """What is kept of a grid from one call to the next must not be a tensor that knows no gradients."""
    derive, spacing = get_equation(FLOW).derive, (2 * math.pi / 20,) * 2  # a grid that no other test has
    assert derive is not None
    with torch.inference_mode():
        derive(torch.randn(1, 1, 20, 20), spacing)
    w = torch.randn(1, 1, 20, 20, requires_grad=True)
    derive(w, spacing).square().sum().backward()
    assert w.grad is not None
    assert w.grad.any()


def test_every_equation_derives_as_many_fields_as_it_names() -> None:
    deriving = [equation for equation in EQUATIONS.values() if equation.derive is not None]
    assert deriving
    for equation in deriving:
        u = torch.randn(3, len(equation.fields), *[16] * equation.dim)
        assert equation.derive is not None
        found = equation.derive(u, tuple(length / 16 for length in equation.lengths))
        assert found.shape == (3, len(equation.derived), *[16] * equation.dim)


def test_derived_fields_have_unit_size_after_fitting_whatever_the_units() -> None:
    w = torch.randn(20, 1, 16, 16)
    for std in (1.0, 300.0):
        derived = Derived(spec_of(mean=(0.0,), std=(std,)))
        derived.fit([w[:10], w[10:]])
        found = derived(w)
        assert found is not None
        torch.testing.assert_close(found.square().mean((0, 2, 3)), torch.ones(2), atol=1e-4, rtol=1e-4)


def test_a_fitted_scale_is_saved_with_the_model() -> None:
    simulator = Simulator({FLOW: spec_of()}, SMALL)
    frames = torch.randn(40, 1, 16, 16)
    simulator.fit(FLOW, [(frames, 0.9 * frames, torch.zeros(40, 0))])
    assert simulator.state_dict()[f"physics.{FLOW}.derived.scale"].shape == (2, 1, 1)
    assert not torch.equal(simulator.physics[FLOW].derived.scale, torch.ones(2, 1, 1))


def test_the_network_reads_them_and_a_gradient_passes_through_them() -> None:
    simulator = Simulator({FLOW: spec_of()}, SMALL)
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    inlet = simulator.operator.inlets[FLOW].weight
    assert isinstance(inlet, Tensor)
    assert inlet.shape[1] == 1 + 1 + 2
    with torch.no_grad():
        inlet[:, :2] = 0  # neither the field nor the forcing: what is left comes by the velocity
    u = torch.randn(1, 1, 1, 16, 16, requires_grad=True)
    seen = simulator.physics[FLOW].read(u)
    simulator.rest(seen, torch.zeros(1, 1), FLOW).square().sum().backward()
    assert u.grad is not None
    assert u.grad.abs().sum() > 0


def test_a_plain_baseline_is_not_shown_them() -> None:
    plain = NetworkEmulator({FLOW: spec_of()}, "fno")
    assert plain.tasks[FLOW].channels_read == 2
    assert LinearEmulator({FLOW: spec_of()}).physics[FLOW].derived.derive is None, "it has no network to show them to"
    helped = NetworkEmulator({FLOW: spec_of()}, "fno", base="linear", form=None, derived=True)
    assert helped.tasks[FLOW].channels_read == 4
