"""From what some members said on common examples to numbers: on parts of them, and how often pairs tie on a batch.

Members are the centre, then + and - of every pair; where directions are taken apart, of the pairs of all parts of the first,
then of the second, and a direction ties where all of its pairs do. Tie rates are seen on the second half of the examples and
predicted from the first, so that a prediction is one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zo_objectives.language.objectives import Failure
from zo_objectives.plateau import Floats, Said, predicted_ties

Parts = NDArray[np.int64]

DRAWS = 64  # batches on which a mean's ties are counted
CALLS = 8  # batches on which a whole batch's metric is asked for its ties, seen and predicted each
PARTS = 16  # into which examples are put for a metric of the whole batch


class Ties(NamedTuple):
    """Shares of directions; nan where they cannot be told: for a batch of more than half the examples, or a failure."""

    seen: float
    predicted: float


class Outcomes(Protocol):
    """What members said on some examples, in numbers."""

    @property
    def parts(self) -> int:
        """How many pairs a direction has."""

    def said(self) -> Said:
        """Scores on parts and on the whole."""

    def ties(self, batch: int, rng: np.random.Generator) -> Ties:
        """How often directions tie on a batch of this size."""


@dataclass(frozen=True)
class Means:
    """A score that is the mean over examples of `values` [members, examples], less those that are nan."""

    values: Floats
    parts: int = 1

    def said(self) -> Said:
        there = ~np.isnan(self.values)
        whole = np.where(there, self.values, 0.0).sum(1) / np.maximum(there.sum(1), 1)
        filled = np.where(there, self.values, whole[:, None])
        return Said(filled[1::2], filled[2::2], filled[0], whole[1:].reshape(-1, 2), float(whole[0]), filled.shape[1])

    def ties(self, batch: int, rng: np.random.Generator) -> Ties:
        first, second = np.array_split(self.values[1:], 2, axis=1)
        drawn = _without_replacement(second.shape[1], batch, rng) if batch <= second.shape[1] else None
        seen = self._tied(second, drawn) if drawn is not None else np.nan
        if self.parts == 1 and np.isin(first, (0.0, 1.0)).all():
            return Ties(seen, predicted_ties(first[::2], first[1::2], batch))
        size = first.shape[1]
        return Ties(seen, self._tied(first, rng.multinomial(batch, [1 / size] * size, DRAWS).astype(np.float64)))

    def _tied(self, values: Floats, batches: Floats) -> float:
        """The share of directions with equal means of values [2 * pairs, examples] on batches [batches, examples]."""
        there = ~np.isnan(values)
        sums = np.where(there, values, 0.0) @ batches.T
        means = sums / np.maximum(there @ batches.T, 1.0)
        close = 1e-12 * np.nanmax(np.abs(values), initial=1e-300)
        return _share(np.abs(means[::2] - means[1::2]) <= close, self.parts)


def _without_replacement(size: int, batch: int, rng: np.random.Generator) -> Floats:
    """Which of `size` examples are in each of DRAWS batches, [DRAWS, size]."""
    order = rng.permuted(np.broadcast_to(np.arange(size), (DRAWS, size)), axis=1)
    return (order < batch).astype(np.float64)


def _share(tied: NDArray[np.bool_], parts: int) -> float:
    """The share of directions that tie, from whether their pairs [directions * parts, batches] do."""
    return float(tied.reshape(-1, parts, tied.shape[1]).all(1).mean())


@dataclass(frozen=True)
class Wholes:
    """A metric of the whole batch: `score` says it of every member, [members], on some of the examples, numbered by
    chance."""

    score: Callable[[Parts], Floats]
    examples: int
    parts: int = 1

    def said(self) -> Said:
        parts = np.array_split(np.arange(self.examples), min(PARTS, self.examples // 4))
        scores = np.stack([self.score(part) for part in parts], axis=1)
        whole = self.score(np.arange(self.examples))
        return Said(scores[1::2], scores[2::2], scores[0], whole[1:].reshape(-1, 2), float(whole[0]), self.examples)

    def ties(self, batch: int, rng: np.random.Generator) -> Ties:
        first, second = np.array_split(np.arange(self.examples), 2)
        seen = [rng.choice(second, batch, replace=False) for _ in range(CALLS)] if batch <= len(second) else []
        predicted = [rng.choice(first, batch) for _ in range(CALLS)]
        return Ties(self._tied(seen), self._tied(predicted))

    def _tied(self, batches: list[Parts]) -> float:
        try:
            scores = np.array([self.score(np.sort(batch))[1:] for batch in batches])
        except Failure:
            return float("nan")
        return _share((scores[:, ::2] == scores[:, 1::2]).T, self.parts) if len(batches) else float("nan")
