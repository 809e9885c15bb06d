"""How sure it is that one set of outputs scores more than another on the same examples, for any objective.

    gain         the paired bootstrap: examples are drawn with replacement, each with what was said of it before and after,
                 and the difference of scores is looked at again (Efron & Tibshirani 1993, chapter 13: percentile intervals)
    confidence   the paired randomisation test: were it all the same, before and after could be exchanged in any example
                 (Fisher 1935; Noreen 1989). Exact in small samples, where the bootstrap is too sure of itself

The best of several looks at the same examples is the better for having been chosen on them. With `looks` both allow for that
by Bonferroni's inequality (Dunn 1961): intervals at 1 - (1 - level) / looks hold for all looks at once with probability
`level`, so for the chosen one too. Looks at weights that are alike agree, which makes them wider than they need be.

An objective is not called on every resample where it can be had from less: rewards from their mean, class metrics from the
table of labels and predictions, composites from their parts. Examples that are alike in these are counted together.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError, RunError
from zo_objectives.language.culprits import take
from zo_objectives.language.metrics import OF_TABLES, Floats
from zo_objectives.language.objective import Examples
from zo_objectives.language.objectives import BUILTIN, Objective
from zo_objectives.language.outputs import Choices, Outputs, joined

LEVEL = 0.95  # of intervals
RESAMPLES = 500  # for each look, and at the least
MOST, WORK = 10_000, 20_000_000  # resamples beyond the least, and these times the size of one
SECONDS, PATIENCE = 2.0, 30.0  # for an objective that has to be called on every resample, by gain and by confidence
ROUNDING = 1e-12  # a gain below it is none
NEVER = np.inf  # in place of a reward that does not apply

Counts = NDArray[np.int64]


class Uncertain(Exception):
    """Nothing can be said of a gain; the message, a clause, is why."""


@contextmanager
def _certain() -> Iterator[None]:
    """Failures of an objective on resamples are reasons, not ends of a run."""
    try:
        yield
    except (InputError, RunError) as error:
        raise Uncertain(f"the objective failed when it was asked again: {str(error).rstrip('.')}") from error


class Gain(NamedTuple):
    """A difference of scores, its interval, and the share of resamples in which it is above 0, those at 0 counted half."""

    value: float
    low: float
    high: float
    chance: float


class View(Protocol):
    """What of the outputs an objective is had from: `columns` [examples, k, 2], before and after."""

    @property
    def columns(self) -> Floats: ...

    def size(self, kinds: int) -> int:
        """Numbers that a resample of so many kinds of examples takes."""

    def scores(self, counts: Floats, rows: Floats) -> Floats:
        """Scores [b, 2] where rows [m, k, 2] of the columns stand counts [b, m] times; nan where there is none."""


@dataclass(frozen=True)
class _Means:
    columns: Floats  # rewards

    def size(self, kinds: int) -> int:
        return kinds

    def scores(self, counts: Floats, rows: Floats) -> Floats:
        known = rows[:, 0] != NEVER
        with np.errstate(invalid="ignore"):
            found: Floats = (counts @ np.where(known, rows[:, 0], 0.0)) / (counts @ known)
        return found


@dataclass(frozen=True)
class _Tables:
    columns: Floats  # cells of the table of labels and predictions, row by row
    metric: Callable[[Floats], float]
    classes: int

    def size(self, kinds: int) -> int:
        return kinds + 4 * self.classes**2

    def scores(self, counts: Floats, rows: Floats) -> Floats:
        cells, size = rows[:, 0].astype(np.int64), self.classes
        tables = [(counts @ np.eye(size * size)[cells[:, side]]).reshape(-1, size, size) for side in (0, 1)]
        return np.array([[self.metric(table) for table in of] for of in tables]).T


@dataclass(frozen=True)
class _Calls:
    columns: Floats  # numbers of the outputs
    objective: Objective
    outputs: Outputs
    examples: Examples

    def size(self, kinds: int) -> int:
        return kinds

    def scores(self, counts: Floats, rows: Floats) -> Floats:
        return np.array([[self._score(np.repeat(rows[:, 0, side], row.astype(int))) for side in (0, 1)] for row in counts])

    def _score(self, numbers: Floats) -> float:
        chosen = numbers.astype(int).tolist()
        return self.objective(take(self.outputs, chosen), [self.examples[i % len(self.examples)] for i in chosen])


@dataclass(frozen=True)
class _Joined:
    parts: tuple[View, ...]
    objective: Objective

    @property
    def columns(self) -> Floats:
        return np.concatenate([part.columns for part in self.parts], axis=1)

    def size(self, kinds: int) -> int:
        return sum(part.size(kinds) for part in self.parts)

    def scores(self, counts: Floats, rows: Floats) -> Floats:
        edges = np.cumsum([0, *(part.columns.shape[1] for part in self.parts)]).tolist()
        found = [p.scores(counts, rows[:, a:b]) for p, (a, b) in zip(self.parts, pairwise(edges), strict=True)]
        values, join = np.stack(found, axis=-1), self.objective.join
        assert join is not None
        scores = np.array([[join(side.tolist()) for side in row] for row in values])
        return np.where(np.isnan(values).any(axis=-1), np.nan, scores)


def view_of(objective: Objective, before: Outputs, after: Outputs, examples: Examples) -> View:
    """What the objective is had from. Raises Uncertain for one that must be called and is kept apart."""
    if objective.samples is not None:
        return _Means(_paired([_rewards(objective, said, examples) for said in (before, after)]))
    if isinstance(before, Choices) and isinstance(after, Choices) and _of_a_table(objective):
        size = before.loglikelihoods.shape[1]
        return _Tables(_paired([_cells(said, examples) for said in (before, after)]), OF_TABLES[objective.name], size)
    if objective.join is not None and not objective.apart:
        return _Joined(tuple(view_of(part, before, after, examples) for part in objective.parts), objective)
    if (why := unrepeatable(objective)) is not None:
        raise Uncertain(why)
    numbers = np.arange(2 * len(examples), dtype=np.float64).reshape(2, -1)
    return _Calls(_paired(list(numbers)), objective, joined([before, after]), examples)


def _paired(sides: list[Floats]) -> Floats:
    return np.stack(sides, axis=-1)[:, None]


def _of_a_table(objective: Objective) -> bool:
    return objective.name in OF_TABLES and BUILTIN.get(objective.name) is objective


def unrepeatable(objective: Objective) -> str | None:
    """Why an objective cannot be scored on hundreds of resamples, a clause; None where it can, or need not be called."""
    if objective.samples is not None or _of_a_table(objective):
        return None
    if objective.apart:
        return f"objective {objective.name!r} is isolated, and would be called for each of {RESAMPLES} resamples"
    return next((why for part in objective.parts if (why := unrepeatable(part)) is not None), None)


def _rewards(objective: Objective, outputs: Outputs, examples: Examples) -> Floats:
    """Each example's reward. Raises Failure as the objective does."""
    assert objective.samples is not None
    try:
        return np.array([NEVER if value is None else value for value in objective.samples(outputs, examples)], np.float64)
    except (InputError, RunError):
        raise
    except Exception as error:
        raise objective.failed(error, outputs, examples) from error


def _cells(outputs: Choices, examples: Examples) -> Floats:
    """Of each example the label's row and the prediction's column; another right option counts as the label."""
    said = outputs.predictions
    labels = [p if p in e.also else e.label for p, e in zip(said.tolist(), examples, strict=True)]
    found: Floats = np.array(labels, np.float64) * outputs.loglikelihoods.shape[1] + said
    return found


@dataclass(frozen=True)
class _Case:
    """Two sets of outputs as an objective sees them: kinds of examples, `rows` [m, k, 2], and how many are `alike` [m]."""

    view: View
    rows: Floats
    alike: Counts
    value: float
    took: float  # seconds for it

    @classmethod
    def of(cls, objective: Objective, before: Outputs, after: Outputs, examples: Examples) -> "_Case":
        """Raises Uncertain, and what the objective raises."""
        view = view_of(objective, before, after, examples)
        columns = view.columns
        flat, alike = np.unique(columns.reshape(len(columns), -1), axis=0, return_counts=True)
        rows, begun = flat.reshape(-1, *columns.shape[1:]), time.perf_counter()
        (score,) = view.scores(alike[None].astype(np.float64), rows)
        return cls(view, rows, alike, float(score[1] - score[0]), time.perf_counter() - begun)

    def resamples(self, wanted: int, least: int, seconds: float) -> int:
        """As many as wanted, or as there is work for. Raises Uncertain where not even the least can be had in time, also at
        a second try: the first call may have had to begin with something."""
        if not self.called:
            return min(wanted, max(least, min(MOST, WORK // self.view.size(len(self.rows)))))
        if (took := self.took) * least > seconds:
            begun = time.perf_counter()
            self.view.scores(self.alike[None].astype(np.float64), self.rows)
            took = min(took, time.perf_counter() - begun)
        if took * least > seconds:
            raise Uncertain(f"{took:.2g} s for one resample, of {least}, is too slow")
        return least

    def gains(self, draw: Callable[[int], Counts], rows: Floats, count: int, seconds: float) -> Floats:
        """Gains on `count` resamples of the rows, drawn some at a time: counts [b, m]. Raises Uncertain where an objective
        that is called becomes much slower than it was."""
        begun, size, parts = time.perf_counter(), 20 if self.called else max(1, 4_000_000 // len(rows)), list[Floats]()
        for t in range(0, count, size):
            parts.append(self.view.scores(draw(min(size, count - t)).astype(np.float64), rows))
            if self.called and time.perf_counter() - begun > 2 * seconds:
                raise Uncertain(f"{t + size} of {count} resamples took {2 * seconds:g} s, which is too slow")
        before, after = np.concatenate(parts).T
        found: Floats = np.where(np.abs(after - before) < ROUNDING, 0.0, after - before)
        return found

    @property
    def called(self) -> bool:
        """Whether the objective has to be called on every resample."""
        return _calls(self.view)


def _calls(view: View) -> bool:
    return isinstance(view, _Calls) or (isinstance(view, _Joined) and any(map(_calls, view.parts)))


def gain(
    objective: Objective,
    before: Outputs,
    after: Outputs,
    examples: Examples,
    seed: int,
    level: float = LEVEL,
    *,
    looks: int = 1,
    resamples: int = RESAMPLES,
    seconds: float = SECONDS,
) -> Gain:
    """The gain of `after` over `before` with its interval, by the paired bootstrap; `after` is the best of so many looks.

    There are `resamples` for each look, so that the wider interval's ends are as well known, but of an objective that has to
    be called on each as many for one look alone. `chance` is of this look, not adjusted. Raises Uncertain for an objective
    that fails, that would take more than so many seconds, or that is kept apart from the run.
    """
    rng, n, tail = np.random.default_rng([seed & 0xFFFFFFFF, 0]), len(examples), (1 - level) / looks / 2
    with _certain():
        case = _Case.of(objective, before, after, examples)
        count = case.resamples(resamples * looks, resamples, seconds)
        found = case.gains(lambda size: rng.multinomial(n, case.alike / n, size), case.rows, count, seconds)
    found = found[~np.isnan(found)]
    if not len(found):
        raise Uncertain("the objective applies to no resample")
    low, high = np.quantile(found, [tail, 1 - tail]).tolist()
    chance = float(np.mean(found > 0) + np.mean(found == 0) / 2)
    return Gain(case.value, low, high, chance)


def confidence(
    objective: Objective,
    before: Outputs,
    after: Outputs,
    examples: Examples,
    seed: int,
    guard: float,
    *,
    looks: int = 1,
    seconds: float = PATIENCE,
) -> float:
    """1 - looks * p, at least 0, where p is of a gain as large as that of `after`, the best of so many looks, by chance.

    p counts the outputs as they are among the exchanges (Phipson & Smyth 2010), so it is valid for any number of them; there
    are enough for it to be told from `guard`. Raises Uncertain as gain does.
    """
    rng, least = np.random.default_rng([seed & 0xFFFFFFFF, 1]), max(RESAMPLES, ceil(2 * looks / (1 - guard)))
    with _certain():
        case = _Case.of(objective, before, after, examples)

        def draw(size: int) -> Counts:
            swapped = rng.binomial(case.alike, 0.5, (size, len(case.alike)))
            return np.concatenate([case.alike - swapped, swapped], axis=1)

        rows = np.concatenate([case.rows, case.rows[:, :, ::-1]])
        found = case.gains(draw, rows, case.resamples(10 * least, least, seconds), seconds)
    p = (1 + np.count_nonzero(~(found < case.value - ROUNDING))) / (1 + len(found))
    return max(0.0, 1 - looks * p)
