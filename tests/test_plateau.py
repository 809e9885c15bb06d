"""How flat an objective is: closed forms against enumeration and simulation, and what is recommended from them."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_objectives.plateau import (
    BATCHES,
    FLIPS,
    RATES,
    Floats,
    Level,
    Said,
    closed_ties,
    correlations,
    doubt,
    evidence,
    flips,
    level,
    p_value,
    pairs_for,
    predicted_ties,
    recommend,
    squared_cosine,
    ties,
)

FIXED = settings(derandomize=True, max_examples=40, deadline=None, database=None)
SURE = np.concatenate([[2.0], np.ones(FLIPS)])  # evidence beyond doubt
NONE = np.concatenate([[0.5], np.ones(FLIPS)])


def array(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def at(scale: float, signal: float, noise: float = 1.0, drop: float = 0.0, proof: Floats = SURE) -> Level:
    return Level(scale, signal, noise, 0.0, drop, 1e-6, proof)


# Ties


@FIXED
@given(st.integers(1, 7), st.floats(0, 0.5), st.floats(0, 0.5))
def test_the_trinomial_is_what_enumeration_says(batch: int, up: float, down: float) -> None:
    chances = {1: up, -1: down, 0: 1 - up - down}
    tied = [math.prod(chances[s] for s in signs) for signs in product(chances, repeat=batch) if sum(signs) == 0]
    assert ties(array(up), array(down), batch)[0] == pytest.approx(math.fsum(tied), abs=1e-12)


def test_the_trinomial_at_its_edges_and_on_large_batches() -> None:
    assert ties(array(0, 0.5, 1), array(0, 0.5, 0), 3).tolist() == [1, 0, 0]
    assert ties(array(0.5), array(0.5), 2)[0] == pytest.approx(0.5)
    assert ties(array(0.03), array(0.0), 100)[0] == pytest.approx(0.97**100)
    up, batch = 0.1, 4096  # the local limit: 1 / sqrt(2 pi B (up + down))
    assert ties(array(up), array(up), batch)[0] == pytest.approx(1 / math.sqrt(4 * math.pi * batch * up), rel=1e-3)


def test_the_closed_form_is_the_trinomial_where_it_was_made_for() -> None:
    """Independent outcomes that are right half the time: up = down = p (1 - p) (1 - rho) = 1/4."""
    assert closed_ties(0.5, 0.0, 256) == pytest.approx(float(ties(array(0.25), array(0.25), 256)[0]), rel=2e-3)
    assert closed_ties(0.5, 1.0, 256) == closed_ties(0.0, 0.0, 256) == closed_ties(0.5, 0.0, 0) == 1


def synthetic(pairs: int, examples: int, seed: int) -> tuple[Floats, Floats]:
    """Outcomes of pairs that are as unlike as those of models: from hardly any difference to many, some of one sign."""
    rng = np.random.default_rng(seed)
    changed, one_way = 0.3 * rng.random((pairs, 1)) ** 3, rng.beta(0.5, 0.5, (pairs, 1))
    right, differs = rng.random((pairs, examples)) < 0.6, rng.random((pairs, examples)) < changed
    ups = rng.random((pairs, examples)) < one_way
    plus, minus = np.where(differs, ups, right), np.where(differs, ~ups, right)
    return plus.astype(np.float64), minus.astype(np.float64)


def test_predictions_for_other_examples_beat_the_closed_form() -> None:
    ours, published = list[float](), list[float]()
    for seed in range(4):
        plus, minus = synthetic(16, 512 + 8192, seed)
        known, other = slice(0, 512), slice(512, None)
        rho = float(correlations(plus[:, known], minus[:, known]).mean())
        up, down = ((plus > minus)[:, other].mean(1), (plus < minus)[:, other].mean(1))
        for batch in (16, 64, 256, 1024):
            true = float(ties(up, down, batch).mean())
            ours.append(abs(predicted_ties(plus[:, known], minus[:, known], batch) - true))
            published.append(abs(closed_ties(float(plus[:, known].mean()), rho, batch) - true))
    assert np.mean(ours) < 0.03 < 0.06 < np.mean(published)


def test_correlations_are_numpys() -> None:
    plus, minus = synthetic(5, 200, 0)
    assert correlations(plus, minus) == pytest.approx([np.corrcoef(a, b)[0, 1] for a, b in zip(plus, minus, strict=True)])
    assert correlations(np.ones((1, 4)), np.ones((1, 4)))[0] == 1


# Whether there is a signal


def test_without_a_signal_p_values_are_even_though_pairs_agree() -> None:
    """Differences of all pairs hang on one direction, so that they are large together: by chance."""
    rng, found = np.random.default_rng(0), list[float]()
    for _ in range(150):
        common, signs = rng.standard_normal((1, 60)) * rng.choice([1, 5], (1, 60)), flips(60, rng)
        found.append(p_value(evidence(rng.standard_normal((6, 1)) * common + 0.1 * rng.standard_normal((6, 60)), signs)))
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)
    assert np.mean(np.array(found) < 0.05) < 0.1


def test_a_signal_is_seen_under_the_noise_of_a_large_direction() -> None:
    rng = np.random.default_rng(1)
    loud, quiet = rng.standard_normal((8, 1)), rng.standard_normal((8, 1))
    differences = 10 * loud * rng.standard_normal((1, 400)) + quiet * (0.5 + rng.standard_normal((1, 400)))
    assert p_value(evidence(differences, flips(400, rng))) < 0.01


def test_where_every_pair_ties_there_is_no_evidence() -> None:
    found = evidence(np.zeros((4, 50)), flips(50, np.random.default_rng(0)))
    assert found.shape == (1 + FLIPS,) and p_value(found) == 1


# A scale


def simulated(slopes: Floats, examples: int, noise: float, loss: float, rng: np.random.Generator) -> Said:
    """Scores whose pairs differ by `slopes` with a variance of `noise` for a single example, and lose `loss`."""
    pairs = len(slopes)
    difference = slopes[:, None] + math.sqrt(noise) * rng.standard_normal((pairs, examples))
    centre = rng.standard_normal(examples)
    plus, minus = centre - loss + difference / 2, centre - loss - difference / 2
    return Said(plus, minus, centre, np.stack([plus.mean(1), minus.mean(1)], 1), float(centre.mean()), examples)


def test_signal_and_noise_are_estimated_without_bias() -> None:
    rng = np.random.default_rng(2)
    found = [level(1.0, simulated(0.2 * rng.standard_normal(16), 64, 4.0, 0.3, rng), np.ones((1, 64))) for _ in range(400)]
    assert np.mean([one.noise for one in found]) == pytest.approx(4.0, rel=0.02)
    assert np.mean([one.signal for one in found]) == pytest.approx(0.04, rel=0.15)
    assert found[0].drop == pytest.approx(0.3) and found[0].error < 0.05


def test_parts_of_several_examples_say_the_same_as_examples() -> None:
    """A metric of the whole batch has a score for each of a few parts only."""
    rng = np.random.default_rng(3)
    said = simulated(0.2 * rng.standard_normal(64), 1024, 4.0, 0.3, rng)
    plus, minus, centre = (x.reshape(*x.shape[:-1], 16, 64).mean(-1) for x in (said.plus, said.minus, said.centre))
    whole = level(1.0, said, np.ones((1, 1024)))
    parts = level(1.0, Said(plus, minus, centre, said.whole, said.rest, 1024), np.ones((1, 16)))
    assert parts.noise == pytest.approx(whole.noise, rel=0.1) and parts.signal == pytest.approx(whole.signal, rel=0.1)
    assert parts.drop == whole.drop


def test_at_par_noise_is_as_large_as_the_signal() -> None:
    one = at(0.3, signal=0.01, noise=2.0)
    assert one.par == 200 and one.quality(200) == pytest.approx(0.5)
    assert one.quality(400) > 0.5 > one.quality(100) > at(0.3, 0.0).quality(100) == 0


def test_the_cosine_is_that_of_noisy_estimates_in_a_simulation() -> None:
    rng, numbers, pairs, noise = np.random.default_rng(4), 300, 8, 0.5
    along, sizes = list[float](), list[float]()
    for _ in range(300):
        gradient, z = rng.standard_normal(numbers), rng.choice([-1.0, 1.0], (pairs, numbers))
        told = z @ gradient / np.linalg.norm(gradient) + math.sqrt(noise) * rng.standard_normal(pairs)
        estimate = told @ z
        along.append(float(estimate @ gradient) / float(np.linalg.norm(gradient)))
        sizes.append(float(estimate @ estimate))
    quality = 1 / (1 + noise)
    assert np.mean(along) ** 2 / np.mean(sizes) == pytest.approx(squared_cosine(quality, numbers, pairs), rel=0.06)
    assert squared_cosine(0.0, numbers, pairs) == 0


def test_a_step_gains_on_a_quadratic_what_is_said() -> None:
    """f(x) = g.x - c |x|^2 / 2, from 0, one scale being 1: S = 4 |g|^2, b = c d / 2; differences without noise."""
    rng, numbers, pairs = np.random.default_rng(5), 400, 4
    gradient = rng.standard_normal(numbers) / math.sqrt(numbers)
    bend = 2 / numbers
    one = at(1.0, signal=4 * float(gradient @ gradient), noise=0.0, drop=bend * numbers / 2)
    gains = []
    for _ in range(400):
        z = rng.choice([-1.0, 1.0], (pairs, numbers))
        told = 2 * z @ gradient
        step = one.rate(64, pairs) * (told / np.sqrt(np.mean(told**2) * pairs)) @ z
        gains.append(gradient @ step - bend * float(step @ step) / 2)
    assert one.rate(64, pairs) == RATES[1]  # it would go farther
    assert np.mean(gains) == pytest.approx(one.gain(64, pairs), rel=0.1)


@FIXED
@given(st.floats(1e-4, 0.1), st.floats(0.01, 1), st.floats(0.001, 0.5))
def test_no_other_rate_gains_more(signal: float, noise: float, drop: float) -> None:
    one = at(0.3, signal, noise, drop)

    def gain(rate: float) -> float:
        return rate * one.slope(128, 8) - rate**2 * one.loss

    assert one.gain(128, 8) == pytest.approx(gain(one.rate(128, 8)))
    farthest = max(RATES[0], min(RATES[1], 1 / math.sqrt(8 * one.quality(128))))
    assert one.gain(128, 8) >= max(gain(rate) for rate in np.linspace(RATES[0], farthest, 50)) - 1e-12


# What is recommended


def test_the_smallest_scale_that_gains_nearly_most_is_taken() -> None:
    few = [at(0.03, 1e-5), at(0.1, 0.04), at(0.3, 0.05), at(1.0, 0.03)]
    found = recommend(few, 1024, 19_200)
    assert found is not None and found.scale == 0.1
    assert found.directions == 32 and found.steps == 300
    assert found.learning_rate == pytest.approx(1 / math.sqrt(32 * few[1].quality(256)), abs=0.01)
    assert found.batch == 256  # 8 * B* = 200


def test_a_scale_at_which_the_objective_bends_is_not_taken() -> None:
    """As cross-entropy's far out: a steep slope, but that of another function."""
    found = recommend([at(0.1, 0.04), at(3.0, 100.0, drop=40.0)], 1024, 6400)
    assert found is not None and found.scale == 0.1


def test_where_noise_hides_all_gains_the_least_doubt_decides() -> None:
    found = recommend([at(0.1, 0.0), at(0.3, 0.0, proof=2 * SURE), at(1.0, 0.0, proof=NONE)], 1024, 6400)
    assert found is not None and found.scale == 0.1 and found.batch == BATCHES[1]


def test_nothing_is_recommended_without_a_signal() -> None:
    assert recommend([at(0.1, 0.01, proof=NONE), at(0.3, 0.01, proof=np.zeros(1 + FLIPS))], 1024, 6400) is None
    assert doubt([at(0.1, 0.01, proof=NONE), at(0.3, 0.01)]) < 0.01


@FIXED
@given(st.floats(1e-6, 1), st.integers(16, 5000), st.integers(2, 40_000))
def test_what_is_recommended_can_be_run(signal: float, examples: int, budget: int) -> None:
    most = min(examples, BATCHES[1])
    found = recommend([at(0.3, signal)], most, budget)
    assert found is not None
    assert min(BATCHES[0], most) <= found.batch <= most
    assert 2 * found.directions * found.steps <= budget and 1 <= found.directions == pairs_for(budget) <= 32
    assert RATES[0] <= found.learning_rate <= RATES[1]
