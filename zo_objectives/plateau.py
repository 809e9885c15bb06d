"""How flat an objective is around some weights, from what pairs of mirrored probes say of single examples. Arrays only.

A pair k scores theta + scale * z_k and theta - scale * z_k on a batch; its difference Delta_k is all that a search learns of
direction k. Where the two are equal the pair *ties* and its forwards are lost. Derived:

    ties        a sum over B examples, each +1 (only the first right), -1 (only the second) or 0, is 0 with the trinomial
                probability sum_j B! / (j! j! (B - 2j)!) up^j down^j (1 - up - down)^(B - 2j)
    signal S    the variance over directions of Delta_k without noise; E Delta_k = 0, since z and -z are as likely
    noise       N1 / B, the variance of Delta_k over batches of B examples. B* = N1 / S, where both are level, is the
                analogue of the gradient noise scale (McCandlish et al. 2018, section 2.2)
    Q           S / (S + N1 / B), the share of signal in what a pair says
    cosine      of n pairs' estimate u with the gradient g of the smoothed objective, in d numbers, its sign counted:
                (E <u, g>)^2 / (E |u|^2 |g|^2) = 1 / (1 + d / (n Q))
    step        an element-wise step of eta * scale along the estimate, shaped to unit size, gains
                eta * a * sqrt(n Q) - eta^2 * b, with a = sqrt(S) / 2, the slope along one direction in units of the scale,
                and b what is lost one scale away: best at eta = a * sqrt(n Q) / (2 b). Along the gradient the step is
                eta * sqrt(n Q) times as far as a probe, and what is farther than that nobody has seen: eta <= 1 / sqrt(n Q)
    parts       of a direction taken apart (`Spsa(parts=)`) have pairs of their own: S, N1, a and b are then a part's, d the
                numbers in one, and as gains and losses are sums over parts, the best eta is the same function of them

Fitted, on SST-2, TREC, AG News and reviews with models of a million parameters and `tune=head`: SHRINKAGE, ROOM, ENOUGH,
BEND and the bounds of a rate and of a batch. Why a step is not to go farther: on TREC with 32 pairs, where 1 / sqrt(n Q) is
0.19, a rate of 0.2 went from 0.18 to 0.32, and one of 0.4 to the plateau of one answer for all, where 98 % of pairs tie.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHRINKAGE = 0.25  # examples' worth of the mean over pairs in each pair's rates: 0.1 to 0.5 predict as well, 1 does worse
LEVEL = 0.05  # of the test for a signal, over all scales together
FLIPS = 1999  # of signs, in that test
THIN = 0.001  # share of the largest variance below which a combination of pairs is left out of it
ROOM = 8  # times B*: the noise scale is that of the start, and grows as a climb goes on
BATCHES = (64, 1024)  # the smallest and the largest batch to recommend
BEND = 1.0  # b / a at most: farther out the objective bends more than it rises, and its slope is another's
ENOUGH = 0.8  # share of the best first step's gain for which a smaller scale is taken
RATES = (0.05, 0.5)  # the smallest and the largest learning rate
STEPS = 300  # at least, as far as a budget goes
PAIRS = 32  # at most


def ties(up: Floats, down: Floats, batch: int) -> Floats:
    """The probability that a sum of `batch` independent +1 (probability `up`), -1 (`down`) and 0 is 0; [...] as `up`."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, batch + 1)))])  # log n!
    j = np.arange(1, batch // 2 + 1)
    same = np.maximum(1.0 - up - down, 0.0)
    with np.errstate(divide="ignore"):
        both, neither = np.log(up * down)[..., None], np.log(same)[..., None]
    rest = np.where(j * 2 < batch, (batch - 2 * j) * np.maximum(neither, -1e300), 0.0)
    terms = np.exp(logs[batch] - 2 * logs[j] - logs[batch - 2 * j] + j * both + rest)
    found: Floats = np.minimum(same**batch + terms.sum(-1), 1.0)
    return found


def predicted_ties(plus: Floats, minus: Floats, batch: int) -> float:
    """The share of ties on batches of other examples, from outcomes 0 or 1 of pairs [pairs, examples].

    Each pair's rates are its own, drawn by SHRINKAGE toward the mean over pairs: many pairs show no difference at all.
    """
    count = plus.shape[1] + SHRINKAGE
    up, down = ((plus > minus).sum(1), (plus < minus).sum(1))
    prior = SHRINKAGE * float((up + down).mean()) / plus.shape[1] / 2
    return float(ties((up + prior) / count, (down + prior) / count, batch).mean())


def closed_ties(centre: float, correlation: float, batch: int) -> float:
    """1 / sqrt(4 pi B p (1 - p) (1 - rho)), at most 1, for a centre that scores p and outcomes correlated by rho: what is
    published for binary rewards, the local limit of `ties` for up = down and one rho for all pairs."""
    spread = 4 * math.pi * batch * centre * (1 - centre) * (1 - correlation)
    return 1 / math.sqrt(max(spread, 1.0))


def correlations(plus: Floats, minus: Floats) -> Floats:
    """Of the two outcomes of each pair over examples, [pairs] from [pairs, examples]; 1 where neither or only one varies."""
    a, b = (x - x.mean(1, keepdims=True) for x in (plus, minus))
    size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    found: Floats = np.where(size > 0, (a * b).sum(1) / np.where(size > 0, size, 1.0), 1.0)
    return found


def flips(parts: int, rng: np.random.Generator) -> Floats:
    """Signs for the parts of some examples, [1 + FLIPS, parts]: none flipped, then by chance."""
    return np.concatenate([np.ones((1, parts)), rng.choice([-1.0, 1.0], (FLIPS, parts))])


def evidence(differences: Floats, signs: Floats) -> Floats:
    """Hotelling's T^2 of pairs' differences [pairs, parts] under flipped signs, [1 + FLIPS].

    Without a signal a part's differences are as likely with the other sign, those of all pairs together, and that all pairs
    meet the same examples, and so agree by chance, is in the test (Fisher 1935; Noreen 1989). It is made in units of the
    noise because a few directions, such as toward one answer for all, hold most of that; drawn toward equal units as pairs
    come near to parts in number, where their own would make every sign as good as any. 0 where every pair ties.
    """
    sizes = np.sqrt((differences**2).sum(1))
    told = differences[sizes > 0] / sizes[sizes > 0][:, None]
    if not len(told):
        return np.zeros(len(signs))
    variances, axes = np.linalg.eigh(told @ told.T)
    kept = variances > THIN * variances[-1]
    drawn = variances[kept] + variances.mean() * len(told) / told.shape[1]
    white = (axes[:, kept] / np.sqrt(drawn)).T @ told
    found: Floats = ((signs @ white.T) ** 2).sum(1)
    return found


def p_value(statistics: Floats) -> float:
    """The share of statistics [1 + FLIPS] that are as large as the first, that of what was seen."""
    return float(np.mean(statistics >= statistics[0] * (1 - 1e-9)))


def squared_cosine(quality: float, numbers: int, pairs: int) -> float:
    """Of an estimate from so many pairs with the smoothed gradient, in so many tuned numbers; see the module's text."""
    return 1 / (1 + numbers / (pairs * quality)) if quality > 0 else 0.0


@dataclass(frozen=True)
class Level:
    """What pairs at one scale said, no batch being thought of."""

    scale: float
    signal: float  # S, the square of the score's unit
    noise: float  # N1: the variance of a pair's difference over single examples
    correlation: float  # of a pair's outcomes over examples
    drop: float  # b: the score at the centre less the mean of the pairs'
    error: float  # the drop's standard error
    evidence: Floats = field(repr=False)  # of a signal, [1 + FLIPS]; see `evidence`

    @property
    def p(self) -> float:
        """Of differences as large as these where there is no signal."""
        return p_value(self.evidence)

    @property
    def par(self) -> float:
        """B*, the batch at which noise is as large as the signal; infinite without a signal, 0 without noise."""
        return self.noise / self.signal if self.signal > 0 else math.inf

    def quality(self, batch: int) -> float:
        """Q on batches of this size: 0 to 1."""
        return self.signal / (self.signal + self.noise / batch) if self.signal > 0 else 0.0

    def batch(self, most: int) -> int:
        """ROOM * B*, the nearest power of two, within BATCHES and at most `most`."""
        low, high = BATCHES
        wanted = min(max(ROOM * self.par, low), high)
        return min(1 << round(math.log2(wanted)), most)

    @property
    def loss(self) -> float:
        """What is lost one scale away, where it is more than two standard errors; else 0."""
        return self.drop if self.drop > 2 * self.error else 0.0

    @property
    def bends(self) -> bool:
        """Whether more is lost one scale away than a direction gains or loses, by more than two standard errors."""
        return self.drop - 2 * self.error > BEND * math.sqrt(self.signal) / 2

    def slope(self, batch: int, pairs: int) -> float:
        """The gain of a step of one scale along the estimate, if nothing curved."""
        return math.sqrt(self.signal * pairs * self.quality(batch)) / 2

    def rate(self, batch: int, pairs: int) -> float:
        """The rate that gains most in a step that goes no farther along the gradient than a probe does, within RATES."""
        (low, high), quality = RATES, self.quality(batch)
        seen = 1 / math.sqrt(pairs * quality) if quality > 0 else high
        best = self.slope(batch, pairs) / (2 * self.loss) if self.loss > 0 else high
        return max(low, min(high, seen, best))

    def gain(self, batch: int, pairs: int) -> float:
        """What one step at that rate gains."""
        rate = self.rate(batch, pairs)
        return rate * self.slope(batch, pairs) - rate**2 * self.loss


class Said(NamedTuple):
    """Scores of pairs and of the centre on `parts` that make up some examples, and on all of them at once.

    A part is one example where the score is a mean over examples, and several where it is of a whole batch (F1).
    """

    plus: Floats  # [pairs, parts]
    minus: Floats
    centre: Floats  # [parts]
    whole: Floats  # [pairs, 2]
    rest: float
    examples: int


def level(scale: float, said: Said, signs: Floats) -> Level:
    """What is known of a scale; `signs` are those of `flips`, the same for all scales."""
    pairs, parts = said.plus.shape
    differences, between = said.plus - said.minus, said.whole[:, 0] - said.whole[:, 1]
    noise = said.examples / parts * float(differences.var(1, ddof=1).mean())
    signal = max(0.0, float(np.mean(between**2)) - noise / said.examples)
    drops, by_part = said.rest - said.whole.mean(1), said.centre - (said.plus + said.minus).mean(0) / 2
    error = math.sqrt(float(by_part.var(ddof=1)) / parts + float(drops.var(ddof=1)) / pairs)
    correlation = float(correlations(said.plus, said.minus).mean())
    return Level(scale, signal, noise, correlation, float(drops.mean()), error, evidence(differences, signs))


class Recommendation(NamedTuple):
    """Settings of a run with estimator=spsa and shaping=unit: `directions` are pairs, the rate is in units of the scale."""

    scale: float
    batch: int
    directions: int
    learning_rate: float
    steps: int


def pairs_for(budget: int) -> int:
    """How many pairs a step, so that a budget of forward passes gives STEPS steps: 1 to PAIRS."""
    return min(max(budget // (2 * STEPS), 1), PAIRS)


def doubt(levels: Sequence[Level]) -> float:
    """The p-value of there being no signal at any scale, from their evidence together."""
    return p_value(np.sum([one.evidence for one in levels], axis=0))


def recommend(levels: Sequence[Level], most: int, budget: int) -> Recommendation | None:
    """Settings for a run of `budget` forward passes on at most `most` examples a step; None where there is no signal.

    Of the scales with one at which the objective does not bend, the smallest whose first step gains ENOUGH of what the best
    one's does, each with its own batch and rate; where noise hides all that steps gain, the scale with the least doubt.
    """
    if doubt(levels) >= LEVEL:
        return None
    pairs, straight = pairs_for(budget), [one for one in levels if not one.bends]

    def gain(one: Level) -> float:
        return one.gain(one.batch(most), pairs)

    def enough(some: Sequence[Level]) -> list[Level]:
        best = max(map(gain, some), default=0.0)
        return [one for one in some if best > 0 and gain(one) >= ENOUGH * best]

    found = enough([one for one in straight if one.p < LEVEL]) or enough(straight)
    chosen = min(found, key=lambda one: one.scale) if found else min(levels, key=lambda one: (one.bends, one.p))
    batch = chosen.batch(most)
    rate = float(f"{chosen.rate(batch, pairs):.2g}")
    return Recommendation(chosen.scale, batch, pairs, rate, max(1, budget // (2 * pairs)))
