"""A user's function kept apart from the run: a limit on its time, processes of its own, results remembered.

timeout   seconds for one batch; beyond them a Failure. In the run's process the function is left behind in its thread
          (Python cannot stop it); with workers its process is killed and replaced
workers   so many processes that score while the model goes on with the next member (Objective.scores)
pure      what it says of an output on an example never changes: a reward is asked once for each pair, a metric once for
          each batch of outputs
"""

import math
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from zo_objectives.errors import InputError
from zo_objectives.language.limits import Runner, in_time
from zo_objectives.language.objective import Examples, Objective
from zo_objectives.language.outputs import Outputs
from zo_objectives.language.remembering import Begin, Memory
from zo_objectives.language.workers import Workers


@dataclass(frozen=True)
class Isolation:
    """How a function is kept apart; see the module's text."""

    timeout: float | None = None
    workers: int = 0
    pure: bool = False

    def __post_init__(self) -> None:
        limit = self.timeout
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < math.inf
        ):
            raise InputError(f"timeout={limit!r}: it is a number of seconds above 0.")
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or not 0 <= self.workers <= 256:
            raise InputError(f"workers={self.workers!r}: it is a number of processes, 0 to 256.")
        if not isinstance(self.pure, bool):
            raise InputError(f"pure={self.pure!r}: it is true or false.")

    @classmethod
    def of(cls, given: MutableMapping[str, Any]) -> "Isolation":
        """What of it is in a name's arguments, taken out of them."""
        return cls(**{name: given.pop(name) for name in ("timeout", "workers", "pure") if name in given})


def isolated(objective: Objective, isolation: Isolation) -> Objective:
    """The same objective, kept apart."""
    begin: Begin | None = None
    if isolation.workers:
        begin = Workers(objective, isolation.workers, isolation.timeout).begin
        objective = _elsewhere(objective, begin)
    elif isolation.timeout is not None:
        objective = _limited(objective, isolation.timeout)
    return Memory(objective, begin).objective() if isolation.pure else objective


def _elsewhere(objective: Objective, begin: Begin) -> Objective:
    return replace(
        objective,
        score=partial(_settled, begin, "score"),
        samples=partial(_settled, begin, "samples") if objective.samples is not None else None,
        bind=None,
        start=partial(begin, "score"),
        apart=True,
    )


def _settled(begin: Begin, what: str, outputs: Outputs, examples: Examples) -> Any:
    return begin(what, outputs, examples)()


def _limited(objective: Objective, seconds: float) -> Objective:
    timed = partial(partial, in_time, Runner(), seconds, objective.name)
    samples = None if objective.samples is None else timed(objective.samples)
    return replace(objective, score=timed(objective.score), samples=samples, bind=None, apart=True)
