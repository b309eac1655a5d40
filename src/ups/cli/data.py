"""Commands that make and look at data files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ups.cli.shared import LARGEST_SEED, app, print_lines, telling
from ups.errors import UsageError
from ups.files import require_files
from ups.terminal import tree

data_app = typer.Typer(help="Make and look at data files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


def _parameters(pairs: Sequence[str]) -> dict[str, float]:
    """Numbers given as `name=value`.

    Raises:
        UsageError: a pair is not of that form, or names a parameter again.
    """
    values: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            number = float(text)
        except ValueError as error:
            raise UsageError(f"{pair!r} is not a parameter; write it as name=number, such as nu=0.01") from error
        if not name or name in values:
            raise UsageError(f"{pair!r} " + ("names no parameter" if not name else "gives that parameter twice"))
        values[name] = number
    return values


@data_app.command("make")
def data_make(
    equation: Annotated[
        str, typer.Argument(metavar="EQUATION", help="Name of the equation, such as burgers1d.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="HDF5 file to write.")],
    samples: Annotated[int, typer.Option(min=1, help="Trajectories.")],
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the initial conditions.")],
    params: Annotated[
        list[str] | None, typer.Argument(metavar="PARAM=VALUE", help="PDE parameters, such as nu=0.01.")
    ] = None,
    resolution: Annotated[int | None, typer.Option(min=8, help="Points per axis.")] = None,
    frames: Annotated[int | None, typer.Option(min=2, help="Frames, the first included.")] = None,
    duration: Annotated[float | None, typer.Option("--time", help="Time of the last frame.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Make a file in PDEBench's layout with the reference solver."""
    values = _parameters(params or ())
    if out.is_file() and not overwrite:
        raise UsageError(f"{out} exists; give --overwrite to replace it, or another name to --out")
    from ups.physics.names import require_equation
    from ups.pipeline.before import require_hdf5_name, require_output

    require_equation(equation)
    require_output(out)
    require_hdf5_name(out)
    from ups.data.generate import generate

    with telling() as progress:
        generate(
            equation,
            out,
            samples,
            seed,
            values,
            resolution=resolution,
            frames=frames,
            time=duration,
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(str(out))


@data_app.command("inspect")
def data_inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="HDF5 file to look at.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Show what is in a file; exit 1 when something is wrong.

    Layout, fields, shapes, ranges, NaNs, parameters, content hash, and what makes it unfit for training.
    """
    require_files(file)
    from ups.data.inspect import inspect_file, readable

    summary = inspect_file(file)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(summary), indent=2, default=str))
    else:
        print_lines(tree(readable(summary)))
    raise typer.Exit(1 if summary.problems else 0)
