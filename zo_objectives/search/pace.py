"""Pace: how far probes go and how many examples they meet, from how often they tie.

A pair whose scores are equal tells nothing, and its forwards are lost. Where that happens often, probes go farther, and the
step with them, since a learning rate is a step in units of the scale; where it no longer happens, they come back to the
scale that was given. Where going far is not enough, batches grow. Where nothing helps, the search may stop.

For scores without ties, such as a loss, nothing ever changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zo_objectives.search.estimators import Around, Estimator, Memory, Probe, ProjectedGradient, Several, tie_rate
from zo_objectives.search.shaping import centred, raw

OFTEN, SELDOM = 0.25, 0.05  # shares of ties above which probes go farther, below which they come back
WIDER, BACK = 4, -1  # by how many sixteenths of an octave then: quickly out, slowly back
FARTHEST = 64  # sixteenths of an octave: 16 times the scale that was given
USELESS = 0.5  # the share of ties at the farthest above which a batch is doubled
DOUBLINGS = 31  # of a batch, at most
PATIENCE = 30  # steps in a row, at the farthest and with the largest batch, in which everything ties


class State(NamedTuple):
    """What is remembered: sixteenths of an octave of scale, doublings of the batch, steps in a row that told nothing."""

    octaves: int = 0
    doublings: int = 0
    idle: int = 0

    @classmethod
    def of(cls, memory: Memory) -> "State":
        """The state that one float32 number holds."""
        told = int(memory[0]) if memory else 0
        return cls(told & 0xFF, told >> 8 & 0x1F, told >> 13)

    @property
    def memory(self) -> Memory:
        return (float(self.idle << 13 | self.doublings << 8 | self.octaves),)

    @property
    def width(self) -> float:
        """Times the scale that was given."""
        return float(2.0 ** (self.octaves / 16))

    @property
    def growth(self) -> int:
        """Times the batch that was given."""
        return 1 << self.doublings

    @property
    def hopeless(self) -> bool:
        """Whether the search may as well stop."""
        return self.idle >= PATIENCE

    def after(self, ties: float, doublings: int) -> "State":
        """The state after a step with this share of ties, when a batch may be doubled so many times."""
        at_limits = self.octaves == FARTHEST and self.doublings >= doublings
        more = self.octaves == FARTHEST and ties > USELESS and not at_limits
        farther = WIDER if ties > OFTEN else BACK if ties < SELDOM else 0
        idle = min(self.idle + 1, PATIENCE) if at_limits and ties == 1 else 0
        return State(min(max(self.octaves + farther, 0), FARTHEST), self.doublings + more, idle)


def state_of(estimator: Estimator, memory: Memory) -> State:
    """The state in an estimator's memory, if something in it is paced; a state in which nothing is changed else."""
    while isinstance(estimator, Around) and not isinstance(estimator, Paced):
        estimator = estimator.inner
    return State.of(memory) if isinstance(estimator, Paced) else State()


@dataclass(frozen=True)
class Paced(Around):
    """An estimator with a scale whose probes go `State.width` times as far; batches may be doubled `doublings` times.

    Steps with a unit of their own are as much larger; estimates of the gradient stay unbiased.
    """

    doublings: int = 0

    @property
    def remembers(self) -> int:
        return 1

    def probes(self, key: int, t: int = 0, memory: Memory = ()) -> tuple[Probe, ...]:
        width = State.of(memory).width
        return tuple(p._replace(scale=p.scale * width) for p in self.inner.probes(key, t))

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> ProjectedGradient:
        width, found = State.of(memory).width, self.inner.gradient(key, scores, t)
        slopes = isinstance(self.inner, Several) and self.inner.shaping in (raw, centred)
        return found._replace(coefficients=found.coefficients * np.float32(1 / width if slopes else width))

    def remember(self, scores: Sequence[float], t: int = 0, memory: Memory = ()) -> Memory:
        ties = tie_rate(self.inner.gradient(0, scores, t))
        return State.of(memory).after(ties, min(self.doublings, DOUBLINGS)).memory
