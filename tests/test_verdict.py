"""The statistics of a study: against published and scipy's figures, and what they may never say."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zo_objectives import verdict
from zo_objectives.verdict import CELL, differences, holm, interval, means, paired, tally

FIXED = settings(derandomize=True, max_examples=60, deadline=None, database=None)
SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)  # Student 1908, additional hours of sleep
scores = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def test_students_own_example() -> None:
    """R's t.test(extra ~ group, data = sleep, paired = TRUE)."""
    found = interval(SLEEP)
    assert (found.mean, found.n) == (pytest.approx(1.58), 10)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858))
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert found.verdict == "win"


@FIXED
@given(scores, st.integers(0, 2**32 - 1))
def test_a_paired_interval_is_scipys(ours: list[float], seed: int) -> None:
    theirs = np.random.default_rng(seed).random(len(ours))
    found = paired(dict(enumerate(ours)), dict(enumerate(theirs.tolist())))
    told = stats.ttest_rel(ours, theirs)
    low, high = told.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, told.pvalue), rel=1e-6, abs=1e-9)


@FIXED
@given(scores, scores)
def test_the_other_way_round_is_the_opposite(ours: list[float], theirs: list[float]) -> None:
    one, other = dict(enumerate(ours)), dict(enumerate(theirs))
    forth, back = paired(one, other), paired(other, one)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low), abs=1e-12)
    assert {forth.verdict, back.verdict} in ({"win", "loss"}, {"level"})
    assert (forth.verdict == "level") == (forth.p >= 0.05 - 1e-9)


def test_only_seeds_that_both_have_are_compared() -> None:
    found = paired({1: 0.5, 2: 0.6, 3: 0.9}, {1: 0.4, 2: 0.5, 7: 0.0})
    assert (found.n, found.mean) == (2, pytest.approx(0.1))


@pytest.mark.parametrize("values", [(), (0.3,), (0.3, math.nan)])
def test_fewer_than_two_seeds_say_nothing(values: tuple[float, ...]) -> None:
    found = interval(values)
    assert found.verdict == "unknown" and all(map(math.isnan, (found.half, found.low, found.high, found.p)))
    assert paired({1: 0.3}, {2: 0.4}).verdict == "unknown"


def test_differences_without_a_spread() -> None:
    """Methods that do not depend on the seed, and rounding of sums, which is no difference."""
    same = paired({1: 0.3, 2: 0.7}, {1: 0.1 + 0.2, 2: 0.7})
    assert (same.verdict, same.p, same.half) == ("level", 1.0, 0.0)
    ahead = paired({1: 0.5, 2: 0.75}, {1: 0.25, 2: 0.5})
    assert (ahead.verdict, ahead.p, ahead.low) == ("win", 0.0, 0.25)


def test_holms_adjustment() -> None:
    """R's p.adjust(..., "holm"); the second by hand, in another order and with a comparison that has none."""
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, math.nan, 0.001, 0.6]) == pytest.approx([0.08, math.nan, 0.003, 0.6], nan_ok=True)
    assert holm([]) == []


@FIXED
@given(st.lists(st.floats(0, 1), max_size=8))
def test_an_adjusted_p_is_no_smaller_and_in_the_same_order(p: list[float]) -> None:
    found = holm(p)
    assert all(before <= after <= 1 for before, after in zip(p, found, strict=True))
    assert all(found[i] <= found[j] for i in range(len(p)) for j in range(len(p)) if p[i] < p[j])


def frame(**methods: list[float]) -> pd.DataFrame:
    """Scores of one cell by method and seed."""
    rows = [
        {"cell": "c", "task": "t", "model": "m", "metric": "accuracy", "method": name, "seed": seed, "test": value}
        for name, values in methods.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(validation=0.5, forwards=100, examples=6400, tokens=1e5, seconds=2.0)


def test_the_tables() -> None:
    cell = frame(ce=[0.50, 0.51, 0.52], zo=[0.60, 0.61, 0.63], ft=[0.49, 0.52, 0.52], one=[0.9])
    other = cell.assign(cell="d", test=1 - cell["test"])
    scored = pd.concat([cell, other])
    table = means(scored)
    assert table[[*CELL, "method"]].drop_duplicates().shape[0] == len(table) == 8
    first = table.iloc[0]
    assert first["half_width"] == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)  # t(0.975, 2), by hand
    assert (first["n_seeds"], first["forwards"]) == (3, 100)

    pairs = [("zo", "ce"), ("ft", "ce"), ("one", "ce"), ("zo", "nobody")]
    found = differences(scored, pairs)
    assert found["verdict"].tolist() == ["win", "level", "unknown", "loss", "level", "unknown"]
    assert found["p_holm"].dropna().tolist() == pytest.approx(holm(found["p"].dropna().tolist()))
    assert found["p_holm"].isna().tolist() == [False, False, True] * 2
    expected: list[dict[str, Any]] = [
        {"method": "zo", "against": "ce", "win": ["c"], "level": [], "loss": ["d"], "unknown": []},
        {"method": "ft", "against": "ce", "win": [], "level": ["c", "d"], "loss": [], "unknown": []},
        {"method": "one", "against": "ce", "win": [], "level": [], "loss": [], "unknown": ["c", "d"]},
    ]
    assert tally(found) == expected
    assert differences(scored, []).empty and list(differences(scored, []).columns) == list(found.columns)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """95 % of intervals from 5 normal values hold the mean: 2,000 of them, within four standard errors."""
    drawn = np.random.default_rng(0).normal(0.7, 0.05, (2000, 5))
    inside = np.mean([abs(found.mean - 0.7) <= found.half for found in map(interval, drawn.tolist())])
    assert abs(inside - verdict.CONFIDENCE) < 4 * math.sqrt(0.95 * 0.05 / 2000)
