"""Estimators: which points to score, and how scores become the coefficients of a gradient estimate.

Scores are "higher is better". An estimate is sum_k c_k z(key_k): a few float32 numbers, never a tensor.

    Spsa        antithetic pairs: SPSA, n-SPSA (MeZO, Definition 1, Algorithm 2), mirrored ES; constant or growing n;
                with a direction's rows together or apart
    OneSided    one point at the centre, n around it (FZOO, Dang et al. 2025)
    OnePoint    one point a step, against the step before: residual feedback (Zhang et al. 2020; MeZO, Definition 8)
    Es          a population of independent members (Salimans et al. 2017; es-at-scale)
    Clipped, RoundRobin   another estimator, its coefficients bounded; one block of the model a step
    Paced (pace.py)       another estimator whose scale follows the ties that it meets
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError, RunError
from zo_objectives.search.keys import direction_keys
from zo_objectives.search.shaping import Contrast, Floats, Shaping, centred, raw

Pieces = tuple[tuple[int, int], ...]
Memory = tuple[float, ...]


class Part(NamedTuple):
    """Every `of`-th row of a tensor (element, where it has one dimension), from row `first` on."""

    first: int
    of: int


class Probe(NamedTuple):
    """The point theta + scale * d * z(key), in the tensors of one group and in a part of their rows only, where given."""

    key: int
    scale: float
    group: int | None = None
    part: Part | None = None


Evaluator = Callable[[Sequence[Probe], int], Sequence[float]]
"""(probes, step) -> one score each, higher is better, all on the same examples in the same order."""


class ProjectedGradient(NamedTuple):
    """sum_k coefficients[k] * z(keys[k]), an ascent direction, in one group only or in all; `key` is the step's own key.

    With `parts` a direction has a coefficient for each part of its rows, [keys * parts], those of a direction together.
    """

    key: int
    keys: tuple[int, ...]
    coefficients: NDArray[np.float32]
    group: int | None = None
    parts: int = 0


class Estimator(Protocol):
    """Chooses probes from a step's key and turns their scores into a gradient. `t` counts steps from 0.

    `memory` is what the estimator knows of the steps before: float32 numbers that the journal keeps, so that a run that is
    taken up again continues. It is () in the first step.
    """

    @property
    def counts(self) -> Pieces:
        """How many coefficients a step has: (first step, count) pieces."""

    @property
    def remembers(self) -> int:
        """How many numbers `remember` returns."""

    @property
    def blocks(self) -> int:
        """How many groups take turns, step by step; 0 where every step moves everything."""

    @property
    def parts(self) -> int:
        """Into how many parts of rows a direction is taken, with a coefficient each; 0 where it has one coefficient."""

    def probes(self, key: int, t: int = 0, memory: Memory = ()) -> tuple[Probe, ...]:
        """The points to score."""

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        """The estimate, from one finite score for each probe, in order."""

    def remember(self, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> Memory:
        """What the next step has to know of this one and of those before, whose `memory` is given."""


def pieces_of(directions: int | Pieces, least: int = 1) -> Pieces:
    """A number of directions that is the same in every step, or one that grows, as pieces. Raises InputError."""
    found = ((0, directions),) if isinstance(directions, int) else directions
    starts, counts = [s for s, _ in found], [n for _, n in found]
    if not found or starts[0] != 0 or starts != sorted(set(starts)) or min(counts) < least:
        raise InputError(
            f"directions={directions!r}: give at least {least}, or (first step, count) pieces that begin at step 0."
        )
    return found


def growing(last: int, steps: int, first: int = 1) -> Pieces:
    """max(first, floor(last * t / steps)) directions at step t: MeZO's linear schedule of n (Appendix A.2, Table 6)."""
    counts = [max(first, last * t // steps) for t in range(steps)] or [first]
    return tuple((t, n) for t, n in enumerate(counts) if t == 0 or n != counts[t - 1])


def count_at(directions: Pieces, t: int) -> int:
    """How many directions step `t` has."""
    return next(n for first, n in reversed(directions) if first <= t)


@dataclass(frozen=True)
class Several:
    """What estimators with a number of directions a step share: no memory, and everything moves in every step.

    `directions` is a number, or the pieces of `growing`.
    """

    scale: float
    directions: int | Pieces = 1
    shaping: Shaping = raw

    remembers = 0
    blocks = 0
    parts = 0

    @property
    def counts(self) -> Pieces:
        return pieces_of(self.directions)

    def keys(self, key: int, t: int) -> tuple[int, ...]:
        """The keys of step `t`'s directions."""
        return direction_keys(key, count_at(self.counts, t))

    def remember(self, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> Memory:
        return ()


def _array(scores: Sequence[float]) -> Floats:
    return np.asarray(scores, dtype=np.float64)


@dataclass(frozen=True)
class Spsa(Several):
    """Simultaneous perturbation with antithetic pairs: SPSA for one direction a step, n-SPSA for several.

    Probes come as +, -, +, -, ... so that both points of a pair meet the same batch in the same order. Shaped by ranks or
    z-scores this is mirrored ES: all 2n scores are shaped together.

    With `parts` each direction is taken apart: a pair for each part of its rows, the others at rest, and a coefficient of
    its own. The noise of an estimate is then that of a part's dimensions, not of all. It costs `parts` times the scores; no
    more forward passes where a score at a part follows from those at the whole, as in an output head (see `passes`).
    """

    parts: int = 0

    @property
    def counts(self) -> Pieces:
        return tuple((first, count * max(self.parts, 1)) for first, count in pieces_of(self.directions))

    def keys(self, key: int, t: int) -> tuple[int, ...]:
        return direction_keys(key, count_at(pieces_of(self.directions), t))

    def probes(self, key: int, t: int = 0, memory: Memory = ()) -> tuple[Probe, ...]:
        return tuple(probe for k in self.keys(key, t) for probe in mirrored(Probe(k, self.scale), self.parts))

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        pairs = self.shaping.utilities(_array(scores)).reshape(-1, 2)
        found = _estimate(key, self.shaping, pairs[:, 0] - pairs[:, 1], self.scale, Contrast.PAIR)
        if not self.parts:
            return found
        slopes = self.shaping in (raw, centred)  # an element is moved by one pair in `parts` of those that were weighed
        coefficients = found.coefficients * np.float32(self.parts if slopes else math.sqrt(self.parts))
        return ProjectedGradient(key, self.keys(key, t), coefficients, parts=self.parts)


def mirrored(probe: Probe, parts: int = 0) -> tuple[Probe, ...]:
    """A probe and its mirror image, +, -; or with `parts` those of each of its parts, one part after another."""
    taken = [probe._replace(part=Part(i, parts)) for i in range(parts)] or [probe]
    return tuple(p._replace(scale=sign * p.scale) for p in taken for sign in (1.0, -1.0))


def passes(probes: Sequence[Probe]) -> int:
    """How many forward passes tell what a head says at some probes: its logits are linear in every row by itself, so that
    two, at a direction's ends, tell them at all of its parts."""
    ends = {p._replace(part=None) for p in probes if p.part}
    return len(ends) + sum(p.part is None for p in probes)


class OneSided(Several):
    """The centre and one point along each of n directions: n + 1 forwards (FZOO, Dang et al. 2025, with unit shaping)."""

    def probes(self, key: int, t: int = 0, memory: Memory = ()) -> tuple[Probe, ...]:
        keys = self.keys(key, t)
        return (Probe(keys[0], 0.0), *(Probe(k, self.scale) for k in keys))

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        utilities = self.shaping.utilities(_array(scores))
        return _estimate(key, self.shaping, utilities[1:] - utilities[0], self.scale, Contrast.CENTRE)


@dataclass(frozen=True)
class OnePoint:
    """One forward a step: (s_t(theta_t + scale z_t) - s_{t-1}) / scale, with the last step's score as the baseline.

    Residual feedback (Zhang et al. 2020; MeZO, Definition 8). The first step has no baseline and moves nothing. There is
    nothing to rank or to centre: only the shaping's weights are used.
    """

    scale: float
    shaping: Shaping = raw

    remembers = 1
    blocks = 0
    parts = 0

    @property
    def counts(self) -> Pieces:
        return pieces_of(1)

    def probes(self, key: int, t: int = 0, memory: Memory = ()) -> tuple[Probe, ...]:
        return (Probe(direction_keys(key, 1)[0], self.scale),)

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        before = memory[0] if memory else float(np.float32(scores[0]))
        return _estimate(key, self.shaping, np.array([float(np.float32(scores[0])) - before]), self.scale, Contrast.CENTRE)

    def remember(self, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> Memory:
        return (float(np.float32(scores[0])),)


@dataclass(frozen=True)
class Es(Several):
    """A population of independent members, a direction each: no pairs, no centre. Mirrored, it is `Spsa` with its shaping.

    With `zscore` shaping and learning rate alpha / sqrt(n) this is es-at-scale's step alpha / n * sum_k z-score_k z_k.
    """

    directions: int | Pieces = 30
    shaping: Shaping = centred

    @property
    def counts(self) -> Pieces:
        return pieces_of(self.directions, least=2)

    def probes(self, key: int, t: int = 0, memory: Memory = ()) -> tuple[Probe, ...]:
        return tuple(Probe(k, self.scale) for k in self.keys(key, t))

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        values = _array(scores)
        told = np.ptp(values) > 0  # a population of equal scores moves nothing, whatever the shaping (law 7)
        utilities = self.shaping.utilities(values) if told else np.zeros_like(values)
        return _estimate(key, self.shaping, utilities, self.scale, Contrast.ALONE)


def _estimate(key: int, shaping: Shaping, contrasts: Floats, scale: float, kind: Contrast) -> ProjectedGradient:
    coefficients = shaping.weigh(contrasts, scale, kind).astype(np.float32)
    return ProjectedGradient(key, direction_keys(key, len(contrasts)), coefficients)


@dataclass(frozen=True)
class Around:
    """Another estimator, and all that it says."""

    inner: Estimator

    @property
    def counts(self) -> Pieces:
        return self.inner.counts

    @property
    def remembers(self) -> int:
        return self.inner.remembers

    @property
    def blocks(self) -> int:
        return self.inner.blocks

    @property
    def parts(self) -> int:
        return self.inner.parts

    def probes(self, key: int, t: int = 0, memory: Memory = ()) -> tuple[Probe, ...]:
        return self.inner.probes(key, t, memory)

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        return self.inner.gradient(key, scores, t, memory)

    def remember(self, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> Memory:
        return self.inner.remember(scores, t, memory)


@dataclass(frozen=True)
class Clipped(Around):
    """Another estimator whose coefficients are shrunk to a Euclidean norm of at most `limit`.

    z_k are nearly orthogonal and of norm sqrt(d), so this bounds the norm of the estimate to about limit * sqrt(d).
    """

    limit: float

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        found = self.inner.gradient(key, scores, t, memory)
        norm = math.sqrt(math.fsum(c * c for c in found.coefficients.tolist()) / max(found.parts, 1))
        if not norm > self.limit:  # a norm that is not a number is reported by the loop
            return found
        return found._replace(coefficients=(found.coefficients.astype(np.float64) * (self.limit / norm)).astype(np.float32))


@dataclass(frozen=True)
class RoundRobin(Around):
    """Another estimator on one group of tensors a step, each of `groups` in turn: block-coordinate ascent."""

    groups: int

    @property
    def blocks(self) -> int:
        return self.groups

    def probes(self, key: int, t: int = 0, memory: Memory = ()) -> tuple[Probe, ...]:
        return tuple(p._replace(group=t % self.groups) for p in self.inner.probes(key, t, memory))

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        return self.inner.gradient(key, scores, t, memory)._replace(group=t % self.groups)


def scores_of(evaluate: Evaluator, probes: Sequence[Probe], t: int) -> tuple[float, ...]:
    """What `evaluate` says of the probes of step `t`. Raises RunError for another number of scores or one not finite."""
    scores = tuple(evaluate(probes, t))
    if len(scores) != len(probes):
        raise RunError(f"The evaluator gave {len(scores)} scores for {len(probes)} probes in step {t}.")
    check_finite(scores, scores, t)
    return scores


def check_finite(numbers: Sequence[float], scores: tuple[float, ...], t: int) -> None:
    """`numbers` are the scores, or the coefficients made of them: huge finite scores overflow too. Raises RunError."""
    if not all(math.isfinite(n) for n in numbers):
        raise RunError(
            f"A score in step {t} is not finite or is too large: {scores}."
            " The step was not taken; weights and journal are intact."
        )


def tie_rate(gradient: ProjectedGradient) -> float:
    """The share of directions that told nothing: coefficients of zero, at all of its parts where it is taken apart."""
    told = gradient.coefficients.reshape(-1, max(gradient.parts, 1)).any(axis=1)
    return float(np.mean(~told))
