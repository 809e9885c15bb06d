"""Shaping: from the scores of a step's probes to coefficients, in two pure functions.

`utilities` looks at all scores of a step together. The estimator forms n contrasts of them (a pair's difference, a point's
against the centre's, or a member as it is), and `weigh` turns contrasts into coefficients. Equal scores get equal shares,
and where all are equal every coefficient is 0.

    raw, centred     estimates of the gradient: contrast / (distance * n), unbiased. The learning rate is a gradient's
    zscore, rank, sign, unit    free of the score's unit: the squares of the coefficients sum to 1 or so, so that every
                     element of the estimate has variance 1 and the learning rate is its root-mean-square step
"""

import math
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError, unknown

Floats = NDArray[np.float64]


class Contrast(Enum):
    """What the n contrasts of a step compare."""

    PAIR = "a point and its mirror image, 2 * scale apart"
    CENTRE = "a point and the centre, scale apart"
    ALONE = "a member of a population, as it is"

    @property
    def points(self) -> int:
        """How many points of a direction a contrast is made of."""
        return 2 if self is Contrast.PAIR else 1


class Shaping(NamedTuple):
    """`utilities`: [probes] scores to [probes]. `weigh`: [n] contrasts, the scale, and what they compare, to [n]."""

    utilities: Callable[[Floats], Floats]
    weigh: Callable[[Floats, float, Contrast], Floats]


def _as_they_are(scores: Floats) -> Floats:
    return scores


def _centre(scores: Floats) -> Floats:
    """Scores less their mean; exactly 0 where all are equal."""
    above = scores - scores.min()
    centred: Floats = above - above.mean()
    return centred


def _zscores(floor: float) -> Callable[[Floats], Floats]:
    def utilities(scores: Floats) -> Floats:
        centred = _centre(scores)
        shaped: Floats = centred / max(math.sqrt(float(np.mean(centred**2))), floor)
        return shaped

    return utilities


def _ranks(scores: Floats) -> Floats:
    """Ranks, the mean of those they share for equal scores, centred, in units of their standard deviation without ties."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean = np.cumsum(counts) - (counts - 1) / 2
    n = len(scores)
    return (mean[inverse] - (n + 1) / 2) / math.sqrt(max(n * n - 1, 1) / 12)


def _slopes(contrasts: Floats, scale: float, kind: Contrast) -> Floats:
    return contrasts / (kind.points * scale * len(contrasts))


def _centred_slopes(contrasts: Floats, scale: float, kind: Contrast) -> Floats:
    """Slopes; a member stands against the mean of the others, not of all, so that the estimate is unbiased."""
    others = len(contrasts) / (len(contrasts) - 1) if kind is Contrast.ALONE else 1.0
    return _slopes(contrasts, scale, kind) * others


def _steps(contrasts: Floats, scale: float, kind: Contrast) -> Floats:
    return contrasts / math.sqrt(kind.points * len(contrasts))


def _unit_steps(contrasts: Floats, scale: float, kind: Contrast) -> Floats:
    told = _centre(contrasts) if kind is Contrast.ALONE else contrasts
    size = math.sqrt(float(np.mean(told**2)))
    return told / (size * math.sqrt(len(told))) if size > 0 else told


def _signs(contrasts: Floats, scale: float, kind: Contrast) -> Floats:
    told = _centre(contrasts) if kind is Contrast.ALONE else contrasts
    return np.sign(told) / math.sqrt(len(told))


def zscore_with(floor: float) -> Shaping:
    """(score - mean) / max(standard deviation, floor), in the score's unit: a population of near-ties stays quiet."""
    if not floor > 0:
        raise InputError(f"zscore:{floor}: the floor must be above 0.")
    return Shaping(_zscores(floor), _steps)


raw = Shaping(_as_they_are, _slopes)
centred = Shaping(_centre, _centred_slopes)
zscore = zscore_with(0.01)
rank = Shaping(_ranks, _steps)
sign = Shaping(_as_they_are, _signs)
unit = Shaping(_as_they_are, _unit_steps)

SHAPINGS: dict[str, Shaping] = {
    "raw": raw,
    "centred": centred,
    "zscore": zscore,
    "rank": rank,
    "sign": sign,
    "unit": unit,
}
SLOPES = ("raw", "centred")  # the others' learning rate is a step's size


def shaping(name: str) -> Shaping:
    """The shaping called `name`, or `zscore:FLOOR`. Raises InputError with the nearest name."""
    base, colon, floor = name.partition(":")
    if base not in SHAPINGS or (colon and base != "zscore"):
        raise unknown("shaping", name, (*SHAPINGS, "zscore:FLOOR"))
    if not colon:
        return SHAPINGS[base]
    try:
        number = float(floor)
    except ValueError as error:
        raise InputError(f"shaping={name}: {floor!r} is no number. Write zscore:0.01.") from error
    return zscore_with(number)
