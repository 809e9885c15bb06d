"""The command line. Thin: every command says what to do and imports the rest only when it runs.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong, 130 interrupted.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from zo_objectives.cli.catalogue import objectives_ls, tasks_ls, tasks_show, tasks_validate
from zo_objectives.cli.comparing import compare, demo, study, sweep
from zo_objectives.cli.costs import bench, memory
from zo_objectives.cli.revisiting import replay, report, verify
from zo_objectives.cli.running import probe, run
from zo_objectives.errors import InputError, RunError

app = typer.Typer(
    name="zo-objectives",
    help="Tune language models on the metric itself, with forward passes only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tasks_app = typer.Typer(help="Tasks: list, show, validate.", no_args_is_help=True)
objectives_app = typer.Typer(help="Objectives: list.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")
app.add_typer(objectives_app, name="objectives")

Command = Callable[..., None]
COMMANDS: list[Command] = [demo, compare, run, probe, sweep, study, report, replay, verify, bench, memory]
OF_TASKS: dict[str, Command] = {"ls": tasks_ls, "show": tasks_show, "validate": tasks_validate}
for each in COMMANDS:  # in the order of the help
    app.command()(each)
for name, each in OF_TASKS.items():
    tasks_app.command(name)(each)
objectives_app.command("ls")(objectives_ls)


def guarded(command: Callable[[], Any]) -> int:
    """Runs `command` and turns its outcome into a message and an exit code."""
    try:
        command()
    except InputError as error:
        typer.echo(f"Error: {error}", err=True)
        return 2
    except RunError as error:
        typer.echo(f"The run failed: {error} Give the same command to go on from where it stopped.", err=True)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; `arguments` are the command line's where not given. Ends in SystemExit."""
    sys.exit(guarded(lambda: app(args=arguments)))
