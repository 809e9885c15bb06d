"""Commands about what there is: tasks ls, show and validate, and objectives ls."""

from typing import Annotated

import typer

from zo_objectives.cli.options import DataDir, Include
from zo_objectives.cli.session import quiet_libraries
from zo_objectives.errors import InputError


def tasks_ls(include_path: Include = None) -> None:
    """Every task: its form, metric and what it is."""
    from rich.table import Table

    from zo_objectives.language.tasks import read_task, task_files
    from zo_objectives.results import console

    table = Table("task", "form", "metric", "about", box=None)
    for name, path in task_files(include_path).items():
        try:
            spec = read_task(path)
        except InputError as error:
            table.add_row(name, "[red]broken", "", str(error))
            continue
        form = "choice" if spec.output_type == "multiple_choice" else "generation"
        table.add_row(name, form, (spec.metrics or (spec.zo.objective or "",))[0], str(spec.metadata.get("about", "")))
    console().print(table)


def tasks_show(name: str, include_path: Include = None) -> None:
    """A task's file."""
    from zo_objectives.language.tasks import find_task

    path = find_task(name, include_path)
    typer.echo(f"# {path}\n{path.read_text(encoding='utf-8').rstrip()}")


def tasks_validate(
    names: Annotated[
        list[str] | None, typer.Argument(help="Task names or YAML files; all tasks where none is given.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer and context to check with.")] = "reviews-1m",
    data_dir: DataDir = None,
    include_path: Include = None,
) -> None:
    """Load every task's data, render and tokenise it, and say what is wrong."""
    from zo_objectives.language.hf import load
    from zo_objectives.language.tasks import task_files
    from zo_objectives.validate import validate

    quiet_libraries()
    problems = 0
    lm = load(model)
    for name in names or task_files(include_path):
        for line, good in validate(name, lm, data_dir, include_path):
            problems += not good
            typer.echo(line, err=not good)
    if problems:
        raise typer.Exit(2)


def objectives_ls() -> None:
    """Every objective that has a name: its definition, range and source. All are better the higher they are."""
    from rich.table import Table

    from zo_objectives.language.listing import OTHERS, rows
    from zo_objectives.results import console

    table = Table("objective", "what it is", "range", "source", box=None)
    for row in rows():
        name = f"{row.name} ({row.aliases})" if row.aliases else row.name
        table.add_row(name, row.about, row.bounds, row.source)
    console().print(table)
    typer.echo(f"\n{OTHERS}")
