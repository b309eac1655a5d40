"""External peers, imported from their own packages (extra `bench`) and called as grid-to-grid networks.

`pdetransformer` is loaded by its one module that holds the network: the package as a whole imports its trainer, metrics
and loggers (lightning, torchvision, moviepy, wandb), which need another build of PyTorch. Of timm it takes a layer for
stochastic depth, which is off here, so that the identity stands in for it. Install it with `pip install --no-deps`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ups.errors import UsageError
from ups.models.emulator import TaskSpec
from ups.models.layers import full_precision


class External(nn.Module):
    """A network of another package behind the call that `NetworkEmulator` makes.

    Args:
        call: how the network is called with the fields.
    """

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor], Any] = lambda net, u: net(u)) -> None:
        super().__init__()
        self.network, self.call = network, call
        self.register_state_dict_post_hook(_only_tensors)

    def forward(self, u: Tensor, periodic: Sequence[bool]) -> Any:
        """`u` is (batch, channel, *grid); computed in its own precision, whatever autocast says: these know none."""
        with full_precision(u):
            return self.call(self.network, u)


def _only_tensors(module: nn.Module, state: dict[str, Any], prefix: str, local: dict[str, Any]) -> None:
    """Takes out what neuraloperator's models add to their weights, a description of themselves."""
    state.pop("_metadata", None)


def _neuralop() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the package's own imports
            return importlib.import_module("neuralop.models")
    except ImportError as error:
        raise UsageError(f"neuraloperator cannot be imported ({error}); install the extra 'bench'") from error


def make_neuralop_fno(
    spec: TaskSpec,
    channels_in: int,
    channels_out: int,
    *,
    width: int,
    modes: int,
    layers: int = 4,
    position: bool = False,
    padding: float = 0.0,
) -> nn.Module:
    """neuraloperator's FNO; its own domain padding (a share of the grid) between walls."""
    network = _neuralop().FNO(
        n_modes=(2 * modes,) * spec.axes,
        in_channels=channels_in,
        out_channels=channels_out,
        hidden_channels=width,
        n_layers=layers,
        positional_embedding="grid" if position else None,
        domain_padding=padding if padding and not all(spec.periodic) else None,
    )
    return External(network)


def make_neuralop_uno(
    spec: TaskSpec,
    channels_in: int,
    channels_out: int,
    *,
    width: int,
    modes: int,
    position: bool = False,
    padding: float = 0.0,
) -> nn.Module:
    """neuraloperator's U-shaped neural operator: five layers, the middle ones at half the resolution."""
    fine, coarse = (2 * modes,) * spec.axes, (modes,) * spec.axes
    models = _neuralop()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its arguments
        network = models.UNO(
            channels_in,
            channels_out,
            width,
            lifting_channels=2 * width,
            projection_channels=2 * width,
            n_layers=5,
            uno_out_channels=[width, 2 * width, 2 * width, 2 * width, width],
            uno_n_modes=[fine, coarse, coarse, coarse, fine],
            uno_scalings=[[scale] * spec.axes for scale in (1, 0.5, 1, 1, 2)],
            positional_embedding="grid" if position else None,
            channel_mlp_skip="linear",
            domain_padding=padding if padding and not all(spec.periodic) else None,
        )
    return External(network)


def _pdetransformer() -> Any:
    """The module of the network, of a package whose own `__init__` files do not run."""
    name = "pdetransformer"
    module = f"{name}.core.mixed_channels.pde_transformer"
    if module in sys.modules:
        return sys.modules[module]
    found = importlib.util.find_spec(name)
    if found is None or found.submodule_search_locations is None:
        raise UsageError(
            "pdetransformer is not installed; pip install -c constraints.txt 'ups[bench]', "
            "then pip install --no-deps pdetransformer==0.1.11"
        )
    root = Path(next(iter(found.submodule_search_locations)))
    importlib.import_module("diffusers")  # before the stand-ins below: it looks for timm
    for part in (name, f"{name}.core", f"{name}.core.mixed_channels"):
        _stand_in(part, root.joinpath(*part.split(".")[1:]))
    for part in ("timm", "timm.models", "timm.models.layers"):
        _stand_in(part).__dict__["DropPath"] = nn.Identity
    return importlib.import_module(module)


def _stand_in(name: str, folder: Path | None = None) -> types.ModuleType:
    """An empty package in the place of one whose `__init__` shall not run."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = [] if folder is None else [str(folder)]
    sys.modules[name] = module
    return module


def make_pdetransformer(
    spec: TaskSpec,
    channels_in: int,
    channels_out: int,
    *,
    width: int,
    blocks: int = 1,
    levels: int = 2,
    patch: int = 4,
) -> nn.Module:
    """PDE-Transformer (Holzschuh et al. 2025), mixed channels: `blocks` per level, `levels` halvings of the tokens."""
    network = _pdetransformer().PDEImpl(
        in_channels=channels_in,
        out_channels=channels_out,
        window_size=8,
        patch_size=patch,
        hidden_size=width,
        depth=[blocks] * (2 * levels + 1),
        num_heads=4,
        num_classes=1,
        periodic=all(spec.periodic),
    )
    return External(network, lambda net, u: net(u, None, None))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "neuralop_fno": make_neuralop_fno,
    "neuralop_uno": make_neuralop_uno,
    "pdetransformer": make_pdetransformer,
}
"""By architecture."""
