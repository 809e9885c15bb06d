"""The whole training loop, as an iterator."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zo_objectives.errors import SkipStep
from zo_objectives.search.adaptive import Adaptive
from zo_objectives.search.estimators import Estimator, Evaluator, Memory, ProjectedGradient, check_finite, scores_of
from zo_objectives.search.journal import NOTHING, Journal, Record, replay
from zo_objectives.search.keys import fold_in, root_key
from zo_objectives.search.weights import Realised, Weights


class Step(NamedTuple):
    """A step: its number from 0, what the probes scored, what was applied, and what became of it.

    `memory` is what the estimator remembers, as the journal has it. `skipped` says why a step was left
    out; then there are no scores, and nothing was applied.
    """

    t: int
    scores: tuple[float, ...]
    gradient: ProjectedGradient
    realised: Realised | None = None
    memory: Memory = ()
    skipped: str | None = None


def climb(
    weights: Weights,
    estimator: Estimator,
    evaluate: Evaluator,
    *,
    steps: int,
    seed: int,
    journal: Journal | None = None,
    adaptive: Adaptive | None = None,
    watch: int = 0,
) -> Iterator[Step]:
    """Tunes `weights` for `steps` steps, each yielded once it is applied; goes on where `journal` ends.

    `adaptive` measures layer sizes. Every `watch` steps (never for 0), `Step.realised` says how much of the step the
    weights' precision kept. Where `evaluate` raises SkipStep, the step is left out, in the journal too. Raises RunError,
    with the weights as they were, where a score is not finite.
    """
    start, memory = 0, Memory()
    if journal is not None:
        memory = replay(journal.header, journal.records, weights)
        start = len(journal.records)
    for t in range(start, steps):
        key = fold_in(root_key(seed), t)
        sizes = NOTHING
        try:
            if adaptive is not None and adaptive.due(t):
                sizes = adaptive.measure(weights, evaluate, t, key)
                weights.resize(sizes.tolist())
            scores = scores_of(evaluate, estimator.probes(key, t, memory), t)
        except SkipStep as reason:
            if journal is not None:
                journal.skip(sizes)
            yield Step(t, (), ProjectedGradient(key, (), NOTHING), memory=memory, skipped=str(reason))
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = estimator.gradient(key, scores, t, memory)
        check_finite(gradient.coefficients.tolist(), scores, t)
        memory = tuple(float(np.float32(m)) for m in estimator.remember(scores, t, memory))
        if journal is not None:
            journal.append(Record(gradient.coefficients, np.array(memory, dtype=np.float32), sizes))
        realised = weights.ascend(t, gradient, watch=watch > 0 and (t + 1) % watch == 0)
        yield Step(t, scores, gradient, realised, memory)
