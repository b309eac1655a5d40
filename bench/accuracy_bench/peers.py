"""External peers, imported from their own packages (extra `bench`) and called as grid-to-grid networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ups.models.emulator import TaskSpec


class External(nn.Module):
    """A network of another package behind the call that `NetworkEmulator` makes."""

    def __init__(self, network: nn.Module, read: Callable[[Any], Tensor] = lambda found: found) -> None:
        super().__init__()
        self.network, self.read = network, read

    def forward(self, u: Tensor, periodic: Sequence[bool]) -> Tensor:
        """`u` is (batch, channel, *grid)."""
        return self.read(self.network(u))


def make_neuralop_fno(
    spec: TaskSpec,
    channels_in: int,
    channels_out: int,
    *,
    width: int,
    modes: int,
    layers: int = 4,
    padding: float = 0.0,
) -> nn.Module:
    """neuraloperator's FNO, its own domain padding (a share of the grid) between walls."""
    from neuralop.models import FNO

    return External(
        FNO(
            n_modes=(2 * modes,) * spec.axes,
            in_channels=channels_in,
            out_channels=channels_out,
            hidden_channels=width,
            n_layers=layers,
            positional_embedding=None if all(spec.periodic) else "grid",
            domain_padding=None if all(spec.periodic) or not padding else padding,
        )
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {"neuralop_fno": make_neuralop_fno}
