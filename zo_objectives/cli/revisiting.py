"""Commands about runs that are there: report, replay, verify."""

from pathlib import Path
from typing import Annotated

import typer

from zo_objectives.cli.session import quiet_libraries


def report(
    folders: Annotated[list[Path], typer.Argument(help="Comparisons or runs.")],
    output: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
) -> None:
    """Write one HTML page about several comparisons or runs."""
    from zo_objectives.report import write_report

    typer.echo(f"Report: {write_report(folders, output)}")


def replay(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    output: Annotated[Path, typer.Option(help="Where to write the model, as transformers reads it.")],
    step: Annotated[int | None, typer.Option(help="After how many steps; the best on validation where not given.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Where the base model is now, if it has moved.")] = None,
) -> None:
    """Make a model from a run's journal: no data, no forward pass."""
    from zo_objectives.replay import export

    quiet_libraries()
    found = export(folder, output, step, model)
    typer.echo(f"Model after step {found.step} of {found.steps}: {output}")


def verify(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    model: Annotated[str | None, typer.Option("--model", help="Where the base model is now, if it has moved.")] = None,
) -> None:
    """Check that a run's journal leads to the weights it saved, bit for bit."""
    from zo_objectives.replay import verify as check

    quiet_libraries()
    typer.echo(check(folder, model))
