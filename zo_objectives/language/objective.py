"""An objective: a named number for what a model said on a batch; higher is better. One that fails is a `Failure`, never a 0.

Two kinds, which stay apart. A *metric* is one number for the whole batch of a member (F1, BLEU, a correlation) and is never
averaged from samples. A *reward* (`samples` is set) is a number for each sample, or None where it does not apply; its score
is the mean of the numbers.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from zo_objectives.errors import InputError, RunError
from zo_objectives.language.culprits import offender, short, where
from zo_objectives.language.outputs import Example, Outputs

REAL = (int, float, np.integer, np.floating)
INFINITY = math.inf


class Needs(Enum):
    """What an objective looks at."""

    PREDICTION = "the predicted option or the generated text"
    LIKELIHOOD = "log-likelihoods of the options or of the target"
    FULL = "log-likelihoods of the options among all texts, not only among each other"


class Failure(RunError):
    """An objective gave no number: which one, on which example (None: the whole batch), and why."""

    def __init__(self, message: str, objective: str = "", example: int | None = None) -> None:
        super().__init__(message)
        self.objective, self.example = objective, example

    def __reduce__(self) -> tuple[Any, ...]:
        return Failure, (str(self), self.objective, self.example)


class Scored(float):
    """A score with what it is made of: `parts` by name (components of a composite, what a reward logged) and `columns`,
    a value for each example."""

    parts: Mapping[str, float]
    columns: Mapping[str, Sequence[Any]]

    def __new__(
        cls, value: float, parts: Mapping[str, float] | None = None, columns: Mapping[str, Sequence[Any]] | None = None
    ) -> "Scored":
        self = super().__new__(cls, value)
        self.parts, self.columns = parts or {}, columns or {}
        return self


Examples = Sequence[Example]
Score = Callable[[Outputs, Examples], float]
Samples = Callable[[Outputs, Examples], Sequence[float | None]]
Bound = Callable[[Outputs], float]
Pending = Callable[[], Scored]


@dataclass(frozen=True)
class Objective:
    """A named function of a model's outputs on a batch; higher is better.

    `bind(examples)` does once what depends on the examples alone, for all members of a step; `start` begins a scoring that
    goes on elsewhere (see isolation.py). Both say what `score` says.
    """

    name: str
    score: Score
    needs: Needs = Needs.PREDICTION
    about: str = ""
    bounds: tuple[float, float] = (-INFINITY, INFINITY)
    source: str = ""
    samples: Samples | None = None
    bind: Callable[[Examples], Bound] | None = None
    start: Callable[[Outputs, Examples], Pending] | None = None
    parts: tuple["Objective", ...] = ()
    recipe: tuple[str, str] | None = None  # the name and the folder it was resolved from
    join: Callable[[Sequence[float]], float] | None = None  # from the parts' scores to this one's
    apart: bool = False  # kept apart from the run by a limit or in processes: no place for hundreds of calls

    def __call__(self, outputs: Outputs, examples: Examples) -> float:
        """The score, finite (a `Scored`). Raises Failure that names the objective and an example for anything else."""
        return self.bound(examples)(outputs)

    def bound(self, examples: Examples) -> Callable[[Outputs], Scored]:
        """This objective on one batch: outputs in, score out."""
        inner = self.bind(examples) if self.bind is not None else partial(_swapped, self.score, examples)

        def scored(outputs: Outputs) -> Scored:
            try:
                return self.checked(inner(outputs), outputs, examples)
            except (InputError, RunError):
                raise
            except Exception as error:
                raise self.failed(error, outputs, examples) from error

        return scored

    def scores(self, outputs: Iterable[Outputs], examples: Examples) -> list[Scored]:
        """One score for each member's outputs on the same examples. Where scoring goes on elsewhere, the next outputs are
        taken from the iterable meanwhile."""
        if self.start is None:
            return list(map(self.bound(examples), outputs))
        pending = [self.start(each, examples) for each in outputs]
        return [result() for result in pending]

    def checked(self, value: object, outputs: Outputs, examples: Examples) -> Scored:
        """`value` as a score. Raises Failure where it is no finite number."""
        if type(value) is not float and (isinstance(value, bool) or not isinstance(value, REAL)):
            raise self.failure(f"returned {short(value)}, not a number ({where(outputs, examples)}).", examples)
        if not math.isfinite(value):
            raise self.failure(f"returned {float(value)} ({where(outputs, examples)}).", examples)
        return value if isinstance(value, Scored) else Scored(float(value))

    def failure(self, what: str, examples: Examples, index: int = 0) -> Failure:
        return Failure(f"Objective {self.name!r} {what}", self.name, examples[index].id if examples else None)

    def failed(self, error: Exception, outputs: Outputs, examples: Examples) -> Failure:
        """What to say of an exception; the example is the first that raises it on its own, or else the batch's first."""
        index = offender(self.score, error, outputs, examples)
        place = where(outputs, examples, index or 0)
        said = " ".join(str(error).split()) or "no message"
        found = f"{type(error).__name__}: {said if len(said) <= 400 else said[:400] + '...'}"
        of = "" if index is None or len(examples) == 1 else "this one alone does it, "
        return self.failure(f"raised {found.rstrip('.')} ({of}{place}).", examples, index or 0)


def _swapped(score: Score, examples: Examples, outputs: Outputs) -> float:
    return score(outputs, examples)


def unbound(bind: Callable[[Examples], Bound], outputs: Outputs, examples: Examples) -> float:
    """`score` of an objective that is written as a `bind`."""
    return bind(examples)(outputs)


def from_bind(name: str, bind: Callable[[Examples], Bound], **given: Any) -> Objective:
    """An objective that is written as a `bind`."""
    return Objective(name, partial(unbound, bind), bind=bind, **given)


def from_samples(name: str, samples: Samples, **given: Any) -> Objective:
    """A reward: its score is the mean over the samples to which it applies."""
    return Objective(name, partial(mean_of_samples, name, samples), samples=samples, **given)


class Logged(list[float | None]):
    """A reward's samples with what it logged beside them; of columns named in `means` the mean is logged as well."""

    def __init__(
        self,
        values: Iterable[float | None],
        parts: Mapping[str, float],
        columns: Mapping[str, Sequence[Any]],
        means: Sequence[str] = (),
    ) -> None:
        super().__init__(values)
        self.columns, self.means = columns, means
        known = {name: [v for v in columns[name] if v is not None] for name in means}
        self.parts = {**parts, **{name: float(np.mean(values)) for name, values in known.items() if values}}

    def __reduce__(self) -> tuple[Any, ...]:
        return Logged, (list(self), self.parts, self.columns, self.means)


def mean_of_samples(name: str, samples: Samples, outputs: Outputs, examples: Examples) -> float:
    """The mean of the numbers. Raises Failure where nothing applies: no number is not 0."""
    found = samples(outputs, examples)
    valid = [v for v in found if v is not None]
    if not valid:
        raise Failure(f"Reward {name!r} returned None for every completion of a batch ({where(outputs, examples)}).", name)
    mean = float(np.mean(valid))
    return Scored(mean, found.parts, found.columns) if isinstance(found, Logged) else mean
