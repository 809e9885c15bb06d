"""The two ways a command can fail: the input was wrong, or the run failed."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """What the user gave cannot work; the message names the culprit and the cure. Commands exit with code 2."""


class Unfit(InputError):
    """A method that cannot work on this task with this model, where another can: a comparison goes on without it."""


class RunError(RuntimeError):
    """The run itself failed; weights and journal are intact and the message says how to go on. Exit code 1."""


class SkipStep(RunError):
    """An evaluator's word that a step is to be left out: nothing is applied, and the run goes on with the next."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An error for `name`, which is no known `kind`, with the nearest known name and the whole list."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")
