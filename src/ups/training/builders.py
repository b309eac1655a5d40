"""From settings and data to models: what a model is told of each task, and the sizes it is built in."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ups.config.schema import Settings
from ups.data.normalize import FieldStatistics
from ups.data.problems import bad
from ups.data.trajectories import TrajectorySet
from ups.data.walls import first_cells
from ups.errors import UpsError, UsageError
from ups.models.architecture import Architecture
from ups.models.diffusion import DiffusionArchitecture
from ups.models.emulator import TaskSpec
from ups.models.prior import PriorArchitecture, SteadyPrior
from ups.models.pyramid import halvings
from ups.models.simulator import Simulator
from ups.physics.equations import get_equation
from ups.runtime import seed_everything

LARGEST_PATCH = {1: 8, 2: 4, 3: 2}  # lattice cells per token and axis, by dimension (bench/results/ablations.md)

BATCH_SIZES = {1: 16, 2: 4, 3: 2}  # windows, by dimension (bench/results/ablations.md; 3D is not measured)
DEEPEST = {1: 3, 2: 3, 3: 2}  # halvings of the lattice on the way to the operator's tokens, by dimension
SIZES = (0.1, 10.0)  # root mean squares of fields that may be trained on as they are


def describe_task(settings: Settings, train: TrajectorySet, statistics: FieldStatistics) -> TaskSpec:
    """What a model has to know of a task, from its train trajectories alone.

    Raises:
        BadDataError: fields are to stay as they are, and are of a size that losses do not reckon with.
    """
    equation, grid = train.equation, train.grid
    if not settings.data.normalize:
        sizes = (statistics.mean.square() + statistics.std.square()).sqrt().tolist()
        far = [
            field.name for field, size in zip(equation.fields, sizes, strict=True) if not SIZES[0] <= size <= SIZES[1]
        ]
        if far:
            what = f"data.normalize is false, but {' and '.join(far)} of {train.task} is not of the size of 1"
            raise bad("settings", f"{what} (root mean square {max(sizes):.3g})", "make data.normalize true")
    logs = tuple(parameter.scale == "log" for parameter in equation.parameters)
    params = train.params.double()
    columns = [params[:, i].log() if log else params[:, i] for i, log in enumerate(logs)]
    return TaskSpec(
        name=train.task,
        fields=tuple(field.name for field in equation.fields),
        lattice=tuple(grid.shape),
        spacing=tuple(grid.spacing),
        origin=tuple(
            low + cells * step
            for cells, step, (low, _) in zip(first_cells(train), grid.spacing, equation.domain, strict=True)
        )
        if equation.steady
        else tuple(float(axis[0]) for axis in grid.axes),
        periodic=tuple(equation.periodic),
        form=equation.form,
        conserved=tuple(field.conserved for field in equation.fields),
        context=settings.data.context,
        dt=float(train.dt),
        mean=tuple(statistics.mean.tolist()) if settings.data.normalize else (0.0,) * len(equation.fields),
        std=tuple(statistics.std.tolist()) if settings.data.normalize else (1.0,) * len(equation.fields),
        param_names=tuple(parameter.name for parameter in equation.parameters),
        param_log=logs,
        param_mean=tuple(float(column.mean()) for column in columns),
        # A spread that is only rounding is no spread: the model then treats the parameter as the constant it is.
        param_std=tuple(
            float(s) if (s := column.std(correction=0)) > 1e-6 * (1 + column.abs().max()) else 0.0 for column in columns
        ),
        param_low=tuple(float(column.min()) for column in params.T),
        param_high=tuple(float(column.max()) for column in params.T),
        galilean="galilean" in equation.symmetries,
        static=0 if equation.forcing is None else len(equation.fields),
        derived=len(equation.derived) if settings.operator.derived_fields else 0,
        given=tuple(field.name for field in equation.given),
        given_mean=tuple(statistics.given_mean.tolist()) if settings.data.normalize else (0.0,) * len(equation.given),
        given_std=tuple(statistics.given_std.tolist()) if settings.data.normalize else (1.0,) * len(equation.given),
    )


def choose_patch(wanted: int | str, latent_dim: int, specs: Mapping[str, TaskSpec]) -> int:
    """Lattice cells per token and axis: as asked, or the largest lossless power of two that divides every lattice.

    It is at most 8 in one dimension, 4 in two and 2 in three.

    Raises:
        UpsError: a token has no room for the values of a single cell.
    """
    if isinstance(wanted, int):
        return wanted
    largest = LARGEST_PATCH[max(spec.axes for spec in specs.values())]
    fits = [
        patch
        for patch in (8, 4, 2, 1)
        if patch <= largest
        and all(
            len(spec.fields) * patch**spec.axes <= latent_dim and not any(size % patch for size in spec.lattice)
            for spec in specs.values()
        )
    ]
    if not fits:
        task, spec = max(specs.items(), key=lambda item: len(item[1].fields))
        raise UpsError(
            f"latent.dim is {latent_dim} and {task} has {len(spec.fields)} fields: "
            "latent.dim must be at least the number of fields; raise it, or set latent.patch for a lossy codec"
        )
    return fits[0]


def choose_coarsen(
    wanted: int | tuple[int, ...] | str, specs: Mapping[str, TaskSpec], unit: int = 1
) -> tuple[int, ...]:
    """How the operator's levels coarsen the lattice: as asked, or as far as every lattice divides.

    Args:
        unit: what the tokens of each axis must be a multiple of, for windows and for the halvings of a U.
    """
    if isinstance(wanted, int):
        return (wanted,)
    if isinstance(wanted, tuple):
        return wanted
    axes = max(spec.axes for spec in specs.values())
    common = math.gcd(*(size for spec in specs.values() for size in spec.lattice))
    twos = halvings(math.gcd(common // unit, 2 ** DEEPEST[axes]))
    return (2 ** len(twos),) if axes == 1 and twos else twos


def choose_batch_size(wanted: int | str, specs: Mapping[str, TaskSpec]) -> int:
    """Windows per batch: as asked, or what is usual for the tasks' dimension."""
    return wanted if isinstance(wanted, int) else BATCH_SIZES[max(spec.axes for spec in specs.values())]


def choose_depths(wanted: int | tuple[int, ...], architecture: str) -> tuple[int, ...]:
    """Blocks per level; one number stands for a stack, or for each of two levels of a U."""
    if isinstance(wanted, tuple):
        return wanted
    return (wanted, wanted) if architecture == "pdet_unet" else (wanted,)


def require_form(settings: Settings) -> None:
    """Refuses a form of the step (`operator.form`) by which the fields of an equation cannot change as they do.

    Raises:
        UsageError: `flux` where the integral of a field is not kept; `flux_open` where there are no walls, or sources
            everywhere.
    """
    form = settings.operator.form
    for equation in map(get_equation, settings.data.task):
        if equation.steady or form in ("auto", "increment", "flux_source", equation.form):
            continue
        lost = ", ".join(field.name for field in equation.fields if not field.conserved)
        if form == "flux" and lost:
            why = f"keeps the integral of every field, but {equation.name} does not keep that of {lost}"
        elif form == "flux_open" and equation.boundary == "periodic":
            why = f"lets fluxes pass through walls, but {equation.name} is periodic and has none"
        elif form == "flux_open":
            why = f"changes fields between the walls by fluxes alone, but {equation.name} has sources there"
        else:
            continue
        raise UsageError(
            f"operator.form is {form}, which {why}; give auto ({equation.form} for {equation.name}), or increment"
        )


def build_simulator(settings: Settings, specs: Mapping[str, TaskSpec]) -> Simulator:
    """The untrained simulator that the settings describe."""
    pdet, axes = settings.operator.pdet, max(spec.axes for spec in specs.values())
    depths = choose_depths(pdet.depths, settings.operator.architecture_type)
    halved = len(depths) - 1 if settings.operator.architecture_type == "pdet_unet" else 0
    symmetrize = settings.operator.symmetrize
    return Simulator(
        specs,
        Architecture(
            latent_dim=settings.latent.dim,
            patch=choose_patch(settings.latent.patch, settings.latent.dim, specs),
            coarsen=choose_coarsen(pdet.coarsen, specs, unit=2**halved * (pdet.window or 1)),
            base=settings.operator.base,
            form=None if settings.operator.form == "auto" else settings.operator.form,
            moving_frame=settings.operator.moving_frame,
            symmetrize=int(settings.training.augment) if symmetrize == "auto" else symmetrize,
            cutoff=1.0 if settings.operator.cutoff == "auto" else settings.operator.cutoff,
            architecture=settings.operator.architecture_type,
            hidden_dim=pdet.hidden_dim,
            depths=depths,
            heads=pdet.heads,
            window=pdet.window,
            mlp_ratio=pdet.mlp_ratio,
            qk_norm=pdet.qk_norm,
            drop_path=pdet.drop_path,
            stem_width=choose_stem(pdet.stem_width, axes),
            use_activation_checkpoint=pdet.use_activation_checkpoint,
            guards=tuple(name for name, wanted in settings.guards if wanted),
            corrector_every=settings.evaluation.corrector_every,
            mode=settings.evaluation.rollout_mode,
        ),
    )


def choose_stem(wanted: int | str, axes: int) -> int:
    """Channels at full resolution: as asked, or 32 in one dimension and 16 in more."""
    return wanted if isinstance(wanted, int) else 32 if axes == 1 else 16


def add_corrector(settings: Settings, simulator: Simulator) -> None:
    """Gives the simulator the untrained residual diffusion that the settings describe, the same at every call."""
    diffusion, pdet = settings.diffusion, settings.operator.pdet
    axes = max(spec.axes for spec in simulator.tasks.values())
    device = next(simulator.parameters()).device
    seed_everything(settings.seed)
    simulator.add_corrector(
        DiffusionArchitecture(
            architecture=diffusion.architecture,
            hidden_dim=diffusion.hidden_dim,
            depth=diffusion.depth,
            sampler=diffusion.sampler,
            sampler_steps=diffusion.sampler_steps,
            student_steps=diffusion.student_steps,
            stem_width=choose_stem(pdet.stem_width if diffusion.stem_width == "auto" else diffusion.stem_width, axes),
        )
    ).to(device)


def build_prior(settings: Settings, specs: Mapping[str, TaskSpec]) -> SteadyPrior:
    """The untrained steady prior that the settings describe."""
    prior = settings.prior
    finest = max(size for spec in specs.values() for size in spec.lattice)
    return SteadyPrior(
        specs,
        PriorArchitecture(
            num_steps=prior.num_steps,
            conductivities=prior.conductivities,
            patch=prior.patch if isinstance(prior.patch, int) else 2 if finest <= 32 else 4,
            hidden_dim=prior.hidden_dim,
            depths=(prior.depth,),
            stem_width=prior.stem_width,
        ),
    )
