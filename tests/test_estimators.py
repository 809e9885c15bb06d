"""Estimators: MeZO's Algorithm 1 written out, shapings, ties."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small import FIXED, LAWS, STORES, concatenated, sgd, weights_of
from torch import Tensor, nn

from zo_objectives.errors import InputError
from zo_objectives.estimators import Spsa, raw, shaping, tie_rate, unit
from zo_objectives.geometry import Dense
from zo_objectives.keys import direction_keys, fold_in, root_key
from zo_objectives.loop import climb, sequential
from zo_objectives.noise import Law

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
    c = unit(d, 0.1)
    if d.any():
        assert float(np.sum(c**2)) == pytest.approx(1)  # the variance of an element of sum_k c_k z_k
        np.testing.assert_allclose(c * math.sqrt(np.mean(d**2)) * math.sqrt(len(d)), d)
        np.testing.assert_allclose(unit(d * 100, 7.0), c)  # whatever the metric's units and the scale
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
    assert probes == ((a, 0.5), (a, -0.5), (b, 0.5), (b, -0.5))


def test_tie_rate() -> None:
    assert tie_rate((1, 1, 2, 2, 1, 2, 0, 1)) == 0.5
    assert tie_rate((1, 2)) == 0
    assert tie_rate((1, 1)) == 1
    assert not Spsa(0.1, 1, unit).gradient(1, (0.3, 0.3)).coefficients.any()


def test_shapings_by_name() -> None:
    assert shaping("raw") is raw and shaping("unit") is unit
    with pytest.raises(InputError, match=r"Unknown shaping 'units'\. Did you mean 'unit'"):
        shaping("units")
