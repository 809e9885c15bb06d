"""Who wins, is level or loses: means over seeds with Student's t intervals, differences paired by seed, Holm's adjustment.

A score is one number a cell, method and seed. Two methods of a cell are compared on the seeds that both have, so that what
a seed does to both of them (examples, batches) cancels. The verdict is the interval's: above 0 a win, below 0 a loss, else
level; with fewer than two seeds there is no interval, and nothing is said. Nothing here looks at the clock.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95  # of every interval
EXACT = 1e-12  # a spread below it is rounding, and counts as none

Verdict = Literal["win", "level", "loss", "unknown"]
VERDICTS: tuple[Verdict, ...] = ("win", "level", "loss", "unknown")


@dataclass(frozen=True)
class Interval:
    """A mean with the half width of its interval, NaN where `n` values show no spread."""

    mean: float
    half: float
    n: int
    p: float  # two-sided, of the mean being 0

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def verdict(self) -> Verdict:
        """Where the interval lies: above 0, around it, below."""
        if math.isnan(self.half):
            return "unknown"
        return "win" if self.low > 0 else "loss" if self.high < 0 else "level"


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of a mean (Student 1908): mean ± t(n - 1) s / sqrt(n). Values that are NaN are left out.

    Without a spread (all values equal) it has no width, and p is 1 for a mean of 0 and else 0.
    """
    found = np.asarray([v for v in values if not math.isnan(v)], dtype=np.float64)
    n, mean = len(found), float(found.mean()) if len(found) else math.nan
    if n < 2:
        return Interval(mean, math.nan, n, math.nan)
    error = float(found.std(ddof=1)) / math.sqrt(n)
    if error < EXACT:
        mean = mean if abs(mean) >= EXACT else 0.0
        return Interval(mean, 0.0, n, float(mean == 0.0))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    return Interval(mean, half, n, 2 * float(stdtr(n - 1, -abs(mean) / error)))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean difference ours - theirs, of scores by seed, over the seeds that both have."""
    return interval([value - theirs[seed] for seed, value in ours.items() if seed in theirs], confidence)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for all of them by Holm's step-down method (Holm 1979); NaN stays NaN and is not counted."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=p.__getitem__)
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


CELL = ["cell", "task", "model", "metric"]
COSTS = ["forwards", "examples", "tokens", "seconds"]


def means(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a cell and method, in their order: test's mean with its half width over seeds, validation's, mean costs.

    `scores` has one row a cell, method and seed, with the columns CELL, method, seed, test, validation and COSTS.
    """
    rows = []
    for key, part in scores.groupby([*CELL, "method"], sort=False):
        of_test, of_validation = interval(part["test"].tolist()), interval(part["validation"].tolist())
        told = dict(zip([*CELL, "method"], key, strict=True))
        told |= {"n_seeds": of_test.n, "mean": of_test.mean, "half_width": of_test.half}
        told |= {"validation": of_validation.mean, "validation_half_width": of_validation.half}
        rows.append(told | part[COSTS].mean().to_dict())
    return pd.DataFrame(rows)


def differences(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One row a cell and pair that has both methods: the mean difference on test with its interval, p and verdict.

    `p_holm` is adjusted over all rows: the whole table is one family.
    """
    rows = []
    for key, part in scores.groupby(CELL, sort=False):
        by_method = {str(name): _by_seed(own) for name, own in part.groupby("method")}
        for method, against in pairs:
            if method in by_method and against in by_method:
                found = paired(by_method[method], by_method[against])
                told = dict(zip(CELL, key, strict=True)) | {"method": method, "against": against, "n_seeds": found.n}
                told |= {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
                rows.append(told | {"p_holm": math.nan, "verdict": found.verdict})
    columns = [*CELL, "method", "against", "n_seeds", "difference", "low", "high", "p", "p_holm", "verdict"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_holm=np.asarray(holm(table["p"].tolist()), dtype=np.float64))


def _by_seed(rows: pd.DataFrame) -> dict[int, float]:
    return {int(seed): float(value) for seed, value in zip(rows["seed"], rows["test"], strict=True)}


def tally(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Of a table of differences, for every pair the cells with each verdict, in the table's order."""
    found = []
    for (method, against), rows in table.groupby(["method", "against"], sort=False):
        cells = {str(verdict): rows.loc[rows["verdict"] == verdict, "cell"].tolist() for verdict in VERDICTS}
        found.append({"method": method, "against": against} | cells)
    return found
