"""Estimators: MeZO's Algorithm 1 written out, shapings, ties."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from small import FIXED, LAWS, STORES, concatenated, sgd, weights_of
from torch import Tensor, nn

from zo_objectives.errors import InputError
from zo_objectives.search.estimators import Clipped, Es, OnePoint, OneSided, Spsa, count_at, growing, tie_rate
from zo_objectives.search.geometry import Dense
from zo_objectives.search.keys import direction_keys, fold_in, root_key
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.noise import Law
from zo_objectives.search.shaping import Contrast, Shaping, centred, rank, raw, shaping, sign, unit, zscore, zscore_with

Vector = NDArray[np.float64]


def loss(theta: Vector) -> float:
    return float(np.sum(np.logaddexp(theta, -theta) * np.arange(1, len(theta) + 1)) + np.prod(theta[:3]))


def mezo(theta: Vector, loss: Callable[[Vector], float], epsilon: float, rate: float, zs: list[Vector]) -> Vector:
    """Malladi et al. 2023, Algorithm 1 (and Algorithm 2 for several z), in float64 as published: a step of descent."""
    projected = []
    for z in zs:
        theta = theta + epsilon * z
        above = loss(theta)
        theta = theta - 2 * epsilon * z
        below = loss(theta)
        theta = theta + epsilon * z
        projected.append((above - below) / (2 * epsilon))
    for grad, z in zip(projected, zs, strict=True):
        theta = theta - rate / len(zs) * grad * z
    return theta


class Point(nn.Module):
    """Ten numbers in two tensors, on a grid of 2**-6, so that theta + 2**-10 z is exact for signs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.arange(-3, 4).float() / 4 + 2**-6)
        self.b = nn.Parameter(torch.tensor([0.75, -1.25, 0.5]))

    def forward(self) -> Tensor:
        return torch.cat([self.a, self.b]).detach().double()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("law", LAWS)
def test_a_step_is_mezos_algorithm_1(law: Law, directions: int, store: str) -> None:
    epsilon, rate, seed = 2**-10, 2e-3, 3
    model = Point()
    weights = weights_of(model, store, Dense(law), sgd(rate, 0.0))
    theta = model().numpy()
    keys = direction_keys(fold_in(root_key(seed), 0), directions)
    zs = [z.double().numpy() for z in concatenated(Dense(law), keys, {"a": 7, "b": 3})]
    expected = mezo(theta, loss, epsilon, rate, zs)
    evaluate = sequential(weights, lambda t: -loss(model().numpy()))
    assert len(list(climb(weights, Spsa(epsilon, directions), evaluate, steps=1, seed=seed))) == 1
    assert np.abs(expected - theta).max() > 1e-3
    # Signs: only the coefficient and the sums are rounded. Gaussian: a float32 probe is up to 2**-24 off, over 2 epsilon.
    bound = 1.5e-7 if law is Law.RADEMACHER else 5e-6
    np.testing.assert_allclose(model().numpy(), expected, rtol=0, atol=bound)


DIFFERENCES = st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=1, max_size=9)


@FIXED
@given(differences=DIFFERENCES)
def test_unit_shaping_makes_an_estimate_of_unit_size(differences: list[float]) -> None:
    d = np.array(differences)
    c = unit.weigh(d, 0.1, Contrast.PAIR)
    if d.any():
        assert float(np.sum(c**2)) == pytest.approx(1)  # the variance of an element of sum_k c_k z_k
        np.testing.assert_allclose(c * math.sqrt(np.mean(d**2)) * math.sqrt(len(d)), d)
        np.testing.assert_allclose(unit.weigh(d * 100, 7.0, Contrast.PAIR), c)  # whatever the metric's units and the scale
    else:
        assert not c.any()


def test_unit_shaping_in_a_step_has_unit_root_mean_square() -> None:
    estimator = Spsa(0.1, 4, unit)
    gradient = estimator.gradient(5, (1, 0, 3, 1, 0, 0, 2, 5))
    z = concatenated(Dense(), gradient.keys, {"a": 4000}).double()
    estimate = torch.from_numpy(gradient.coefficients).double() @ z
    assert float(estimate.square().mean().sqrt()) == pytest.approx(1, abs=0.05)


def test_raw_shaping_by_hand() -> None:
    gradient = Spsa(0.25, 2).gradient(7, (3.0, 1.0, -1.0, 0.5))
    assert gradient.coefficients.dtype == np.float32
    assert gradient.coefficients.tolist() == [2.0 / (2 * 0.25 * 2), -1.5 / (2 * 0.25 * 2)]
    assert gradient.key == 7 and gradient.keys == direction_keys(7, 2)


def test_probes_come_in_antithetic_pairs() -> None:
    probes = Spsa(0.5, 2).probes(7)
    a, b = direction_keys(7, 2)
    assert [(p.key, p.scale, p.group) for p in probes] == [(k, s, None) for k in (a, b) for s in (0.5, -0.5)]


def test_tie_rate() -> None:
    assert tie_rate(Spsa(0.1, 4).gradient(1, (1, 1, 2, 2, 1, 2, 0, 1))) == 0.5
    assert tie_rate(Spsa(0.1).gradient(1, (1, 2))) == 0
    assert tie_rate(Spsa(0.1).gradient(1, (1, 1))) == 1
    assert not Spsa(0.1, 1, unit).gradient(1, (0.3, 0.3)).coefficients.any()


def test_shapings_by_name() -> None:
    assert shaping("raw") is raw and shaping("unit") is unit
    with pytest.raises(InputError, match=r"Unknown shaping 'units'\. Did you mean 'unit'"):
        shaping("units")


def test_one_sided_by_hand() -> None:
    """FZOO: the centre first, then a point along each direction."""
    estimator = OneSided(0.5, 2)
    probes, keys = estimator.probes(7), direction_keys(7, 2)
    assert [(p.key, p.scale) for p in probes] == [(keys[0], 0.0), (keys[0], 0.5), (keys[1], 0.5)]
    assert estimator.gradient(7, (1.0, 3.0, 0.0)).coefficients.tolist() == [2.0 / (0.5 * 2), -1.0 / (0.5 * 2)]


def test_one_point_remembers_the_last_score() -> None:
    """MeZO, Definition 8: the difference to the step before, over the scale (not twice the scale)."""
    estimator = OnePoint(0.5)
    assert [p.scale for p in estimator.probes(7)] == [0.5]
    assert estimator.gradient(7, (3.0,)).coefficients.tolist() == [0.0]
    memory = estimator.remember((3.0,))
    assert estimator.gradient(8, (3.25,), 1, memory).coefficients.tolist() == [0.5]
    third = float(np.float32(1 / 3))
    assert estimator.remember((1 / 3,)) == (third,)  # what a journal can keep
    assert not estimator.gradient(8, (1 / 3,), 1, (third,)).coefficients.any()


def test_growing_directions_are_mezos_linear_schedule() -> None:
    pieces = growing(4, 10)
    assert [count_at(pieces, t) for t in range(12)] == [max(1, int(t / 10 * 4)) for t in range(10)] + [3, 3]
    assert pieces == ((0, 1), (5, 2), (8, 3)) and growing(3, 0) == ((0, 1),)
    estimator = Spsa(0.1, pieces)
    assert [len(estimator.probes(1, t)) for t in (0, 5, 8)] == [2, 4, 6]
    assert estimator.probes(1, 0) == estimator.probes(1, 8)[:2]
    for wrong in (0, (), ((1, 2),), ((0, 2), (0, 3)), ((0, 1), (5, 0))):
        with pytest.raises(InputError, match="at least 1"):
            Spsa(0.1, wrong).probes(1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 2"):
        Es(0.1, 1).probes(1)


SCORES = (0.5, 0.5, 0.75, 0.25, 0.5)


def test_shapings_of_a_population_by_hand() -> None:
    def shaped(shape: Shaping) -> list[float]:
        return Es(0.5, 5, shape).gradient(1, SCORES).coefficients.tolist()

    ranks = [0.0, 0.0, 2.0, -2.0, 0.0]  # 3 is the mean of ranks 2, 3, 4
    assert shaped(raw) == pytest.approx([s / (0.5 * 5) for s in SCORES])
    assert shaped(centred) == pytest.approx([(s - 0.5) / (0.5 * 5) * 5 / 4 for s in SCORES])
    sd = math.sqrt(2 * 0.25**2 / 5)
    assert shaped(zscore) == pytest.approx([(s - 0.5) / sd / math.sqrt(5) for s in SCORES])
    assert shaped(zscore_with(10.0)) == pytest.approx([(s - 0.5) / 10 / math.sqrt(5) for s in SCORES])
    assert shaped(rank) == pytest.approx([r / math.sqrt(2) / math.sqrt(5) for r in ranks])
    assert shaped(sign) == pytest.approx([s / math.sqrt(5) for s in (0, 0, 1, -1, 0)])
    assert float(np.sum(np.square(Es(0.5, 4, rank).gradient(1, (1, 2, 3, 4)).coefficients))) == pytest.approx(1)


@FIXED
@given(scores=st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.7]), min_size=2, max_size=8))
def test_ranks_average_ties_as_scipy_does(scores: list[float]) -> None:
    found = rank.utilities(np.array(scores))
    expected = stats.rankdata(scores) - (len(scores) + 1) / 2
    np.testing.assert_allclose(found, expected / math.sqrt((len(scores) ** 2 - 1) / 12), atol=1e-12)


def test_clipping_bounds_the_norm_and_keeps_the_direction() -> None:
    scores = (1.0, 0.0, 0.0, 0.5, 0.25, 0.5)
    free, bounded = Spsa(0.1, 3).gradient(1, scores), Clipped(Spsa(0.1, 3), 0.5).gradient(1, scores)
    assert np.linalg.norm(free.coefficients) > 0.5
    assert np.linalg.norm(bounded.coefficients) == pytest.approx(0.5)
    np.testing.assert_allclose(
        bounded.coefficients / bounded.coefficients[0], free.coefficients / free.coefficients[0], rtol=1e-6
    )
    loose = Clipped(Spsa(0.1, 3), 100.0).gradient(1, scores)
    assert np.array_equal(loose.coefficients, free.coefficients) and loose.keys == free.keys


def test_a_floor_is_read_from_the_name() -> None:
    assert shaping("zscore:0.25").utilities(np.array([0.0, 1.0])).tolist() == [-1.0, 1.0]
    assert shaping("zscore:2").utilities(np.array([0.0, 1.0])).tolist() == [-0.25, 0.25]
    for wrong in ("zscore:0", "zscore:-1"):
        with pytest.raises(InputError, match="above 0"):
            shaping(wrong)
    with pytest.raises(InputError, match="no number"):
        shaping("zscore:much")
    with pytest.raises(InputError, match="Unknown shaping 'rank:3'"):
        shaping("rank:3")
