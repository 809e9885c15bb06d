"""Estimators: which points to score, and how scores become the coefficients of a gradient estimate.

Scores are "higher is better". A gradient estimate is sum_k c_k z(key_k): a few float32 numbers, never a tensor.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import unknown
from zo_objectives.keys import direction_keys

Floats = NDArray[np.float64]
Shaping = Callable[[Floats, float], Floats]


class Probe(NamedTuple):
    """The point theta + scale * d * z(key)."""

    key: int
    scale: float


class ProjectedGradient(NamedTuple):
    """sum_k coefficients[k] * z(keys[k]), an ascent direction; `key` is the step's own key."""

    key: int
    keys: tuple[int, ...]
    coefficients: NDArray[np.float32]


class Estimator(Protocol):
    """Chooses probes from a key and turns their scores into a gradient."""

    @property
    def directions(self) -> int:
        """How many coefficients a step has."""

    def probes(self, key: int) -> tuple[Probe, ...]:
        """The points to score."""

    def gradient(self, key: int, scores: Sequence[float]) -> ProjectedGradient:
        """The estimate, from one finite score for each probe, in order."""


def raw(differences: Floats, scale: float) -> Floats:
    """(s+ - s-) / (2 scale n): the mean of n SPSA estimates (MeZO, Definition 1); unbiased as the scale goes to 0."""
    return differences / (2 * scale * len(differences))


def unit(differences: Floats, scale: float) -> Floats:
    """Differences over their root mean square and sqrt(n): each element of the estimate then has variance 1.

    The learning rate becomes the root-mean-square step of an element, whatever the metric's units. All ties stay zero.
    """
    size = math.sqrt(float(np.mean(differences**2)))
    return differences / (size * math.sqrt(len(differences))) if size > 0 else differences


SHAPINGS: dict[str, Shaping] = {"raw": raw, "unit": unit}


@dataclass(frozen=True)
class Spsa:
    """Simultaneous perturbation with `directions` antithetic pairs (n-SPSA; MeZO, Definition 1).

    Probes come as +, -, +, -, ... so that both points of a pair meet the same batch in the same order.
    """

    scale: float
    directions: int = 1
    shaping: Shaping = raw

    def probes(self, key: int) -> tuple[Probe, ...]:
        keys = direction_keys(key, self.directions)
        return tuple(Probe(k, sign * self.scale) for k in keys for sign in (1.0, -1.0))

    def gradient(self, key: int, scores: Sequence[float]) -> ProjectedGradient:
        pairs = np.asarray(scores, dtype=np.float64).reshape(self.directions, 2)
        coefficients = self.shaping(pairs[:, 0] - pairs[:, 1], self.scale)
        return ProjectedGradient(key, direction_keys(key, self.directions), coefficients.astype(np.float32))


def tie_rate(scores: Sequence[float]) -> float:
    """The share of antithetic pairs with equal scores: pairs that tell nothing."""
    pairs = np.asarray(scores, dtype=np.float64).reshape(-1, 2)
    return float(np.mean(pairs[:, 0] == pairs[:, 1]))


def shaping(name: str) -> Shaping:
    """The shaping called `name`; raises InputError with the nearest name."""
    if name not in SHAPINGS:
        raise unknown("shaping", name, SHAPINGS)
    return SHAPINGS[name]
