"""What a command does around its work: libraries kept quiet, Ctrl-C, the command itself in words."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


def quiet_libraries() -> None:
    """Environment of the heavy libraries, before they are imported: threads that wait do not spin, no telemetry."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine down tenfold
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextmanager
def interruptible(ending: str = "Give the same command to go on from where it stopped.") -> Iterator[None]:
    """Ctrl-C ends the command, not the run: what is written stays, and the same command goes on from there."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. {ending}", err=True)
        raise typer.Exit(130) from None


def command_line() -> str:
    """The command that is running, as a shell reads it."""
    return " ".join(["zo-objectives", *map(shlex.quote, sys.argv[1:])])
