"""The whole training loop, as an iterator."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from zo_objectives.errors import RunError
from zo_objectives.estimators import Estimator, Probe, ProjectedGradient
from zo_objectives.journal import Journal, replay
from zo_objectives.keys import fold_in, root_key
from zo_objectives.weights import Weights

Evaluator = Callable[[Sequence[Probe], int], Sequence[float]]
"""(probes, step) -> one score each, higher is better, all on the same examples in the same order."""


class Step(NamedTuple):
    """A step that has been taken: its number from 0, what the probes scored, and what was applied."""

    t: int
    scores: tuple[float, ...]
    gradient: ProjectedGradient


def climb(
    weights: Weights,
    estimator: Estimator,
    evaluate: Evaluator,
    *,
    steps: int,
    seed: int,
    journal: Journal | None = None,
) -> Iterator[Step]:
    """Tunes `weights` for `steps` steps, each yielded once it is applied; goes on where `journal` ends.

    Raises RunError, with the weights as they were, where a score is not finite.
    """
    start = 0
    if journal is not None:
        replay(journal.header, journal.coefficients, weights)
        start = len(journal.coefficients)
    for t in range(start, steps):
        key = fold_in(root_key(seed), t)
        probes = estimator.probes(key)
        scores = tuple(evaluate(probes, t))
        _check(scores, len(probes), t)
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = estimator.gradient(key, scores)
        _check_finite(gradient.coefficients.tolist(), scores, t)
        if journal is not None:
            journal.append(gradient.coefficients)
        weights.ascend(t, gradient)
        yield Step(t, scores, gradient)


def _check(scores: tuple[float, ...], expected: int, t: int) -> None:
    if len(scores) != expected:
        raise RunError(f"The evaluator gave {len(scores)} scores for {expected} probes in step {t}.")
    _check_finite(scores, scores, t)


def _check_finite(numbers: Sequence[float], scores: tuple[float, ...], t: int) -> None:
    """`numbers` are the scores, or the coefficients made of them: huge finite scores overflow too."""
    if not all(math.isfinite(n) for n in numbers):
        raise RunError(
            f"A score in step {t} is not finite or is too large: {scores}."
            " The step was not taken; weights and journal are intact."
        )


def sequential(weights: Weights, score: Callable[[int], float]) -> Evaluator:
    """The evaluator that visits one probe after another; `score(step)` runs the model as it then is."""

    def evaluate(probes: Sequence[Probe], t: int) -> list[float]:
        scores = []
        for probe in probes:
            with weights.at(probe):
                scores.append(score(t))
        return scores

    return evaluate
