"""The models of the bench, by name: how each becomes an emulator of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from accuracy_bench import peers
from accuracy_bench.recipes import RECIPES, TASK_RECIPES, Recipe
from ups.errors import UsageError
from ups.models.baselines import NETWORKS, LinearEmulator, MakeNetwork, NetworkEmulator, Persistence
from ups.models.emulator import Emulator, TaskSpec

PLAIN = (
    "operator.base=persistence",
    "operator.form=increment",
    "operator.moving_frame=false",
    "operator.derived_fields=false",
    "operator.symmetrize=0",
)


@dataclass(frozen=True)
class Model:
    """One model of the bench.

    Args:
        kind: `stack` is built from settings, `network` from a recipe, `fixed` is not trained.
        settings: overrides of the stack's settings.
        architecture: of a network: `fno`, `unet`, or an external one.
        structural: whether a network gets the stack's structural parts: linear base, the equation's form, moving frame,
            derived fields, changing views; its windows are then drawn as the stack's are, too.
        axes: dimensions it is there for.
    """

    kind: str
    settings: tuple[str, ...] = ()
    architecture: str = ""
    structural: bool = False
    axes: tuple[int, ...] = (1, 2)


MODELS: dict[str, Model] = {
    "ups": Model("stack"),
    "ups_stack": Model("stack", (*PLAIN, "operator.architecture_type=pdet_stack")),
    "ups_unet": Model("stack", (*PLAIN, "operator.architecture_type=pdet_unet")),
    "persistence": Model("fixed"),
    "linear": Model("fixed"),
    "fno": Model("network", architecture="fno"),
    "unet": Model("network", architecture="unet"),
    "neuralop_fno": Model("network", architecture="neuralop_fno"),
    "neuralop_uno": Model("network", architecture="neuralop_uno"),
    "pdetransformer": Model("network", architecture="pdetransformer", axes=(2,)),
    "fno+": Model("network", architecture="fno", structural=True),
    "unet+": Model("network", architecture="unet", structural=True),
}
"""By the name that the bench calls them by."""

MAKERS: dict[str, MakeNetwork] = {**NETWORKS, **peers.NETWORKS}


def get_model(name: str) -> Model:
    """The model of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in MODELS:
        raise UsageError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]


def recipe_of(model: Model, axes: int, task: str) -> Recipe:
    """The searched recipe of a network: the task's own where there is one, else that of its dimension.

    Raises:
        UsageError: the model is not there for this dimension.
    """
    if axes not in model.axes:
        raise UsageError(f"{model.architecture} is not there for {axes} dimension(s)")
    return TASK_RECIPES.get((model.architecture, task), RECIPES[model.architecture, axes])


def build_fixed(name: str, specs: Mapping[str, TaskSpec]) -> Emulator:
    """A model that has nothing to train."""
    return Persistence(specs) if name == "persistence" else LinearEmulator(specs)


def build_network(model: Model, specs: Mapping[str, TaskSpec], recipe: Recipe) -> NetworkEmulator:
    """A network as emulator, with the stack's structural parts or without."""
    maker, sizes = MAKERS[model.architecture], dict(recipe.sizes)

    def make(spec: TaskSpec, channels_in: int, channels_out: int) -> nn.Module:
        return maker(spec, channels_in, channels_out, **sizes)

    if model.structural:
        parts = {"base": "auto", "form": None, "moving_frame": True, "derived": True, "symmetrize": 1}
        return NetworkEmulator(specs, model.architecture, make, **parts)
    return NetworkEmulator(specs, model.architecture, make)
