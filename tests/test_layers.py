"""Layer-wise sizes: their groups, their sources, and what Definitions 6 and 7 do in expectation."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from small import CPU, Tiny, score, tuned_names
from torch import Tensor, nn

from zo_objectives.errors import InputError, RunError
from zo_objectives.search.adaptive import Adaptive, backprop_norms, normalised, parameter_norms, zeroth_order_norms
from zo_objectives.search.estimators import Probe, RoundRobin, Spsa
from zo_objectives.search.geometry import Dense, Leaf, Scaled
from zo_objectives.search.keys import direction_keys
from zo_objectives.search.layers import Layers, Modified, by_layer
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.rules import adam, sgd
from zo_objectives.search.schedules import constant
from zo_objectives.search.weights import Weights

OPT = [
    "model.decoder.embed_tokens.weight",
    "model.decoder.embed_positions.weight",
    "model.decoder.final_layer_norm.weight",
    *(f"model.decoder.layers.{i}.fc1.weight" for i in range(12)),
]


class Quadratic(nn.Module):
    """f = b v + v A v / 2 over three tensors, each a layer: numbers small enough for float32 to be exact."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Module() for _ in range(3)])
        for layer, values in zip(self.layers, ([1.0, -2.0], [3.0, 0.0], [2.0, -1.0]), strict=True):
            layer.register_parameter("w", nn.Parameter(torch.tensor(values), requires_grad=False))
        self.b = torch.tensor([3.0, -1.0, 2.0, 0.0, 5.0, -4.0])
        self.a = torch.tensor([[(i * j + i + j) % 5 - 2.0 for j in range(6)] for i in range(6)])

    @property
    def point(self) -> Tensor:
        return torch.cat([p for p in self.parameters()])

    def forward(self) -> Tensor:
        v = self.point
        return self.b @ v + v @ self.a @ v / 2

    def gradient(self) -> Tensor:
        return self.b + self.a @ self.point.detach()


class Flat(Quadratic):
    def forward(self) -> Tensor:
        return super().forward() * 0 + 0.5


NAMES = [f"layers.{i}.w" for i in range(3)]


def weights_of(model: nn.Module, modified: Modified = Modified.VARIANCE, gains: dict[str, float] | None = None) -> Weights:
    geometry = Scaled(Dense(), gains) if gains else Dense()
    return Weights(model, NAMES, geometry=geometry, rule=sgd(constant(1.0)), layers=by_layer(NAMES, modified))


def norms(model: Quadratic) -> np.ndarray:
    return model.gradient().double().view(3, 2).norm(dim=1).numpy()


def test_groups_are_layers_embeddings_and_the_rest_in_order() -> None:
    found = by_layer(OPT)
    assert found.count == 14
    assert found.labels == ("embedding", *(f"model.decoder.layers.{i}" for i in range(12)), "head")
    assert [found.groups[n] for n in OPT] == [0, 0, 13, *range(1, 13)]
    assert by_layer(["0.weight", "2.weight", "10.bias"]).labels == ("0", "2", "10")  # a Sequential; by number, not by letter
    gpt2 = by_layer(
        ["transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight", "transformer.ln_f.bias"]
    )
    assert gpt2.labels == ("embedding", "transformer.h.0", "head")


def test_sizes_have_geometric_mean_1_and_a_floor() -> None:
    d = normalised(np.array([8.0, 2.0, 0.0]), floor=0.1)
    assert d.dtype == np.float32 and np.prod(d.astype(float)) == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(d / d[0], [1, 0.25, 0.1], rtol=1e-6)
    for nothing in ([0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]):
        assert normalised(np.array(nothing)).tolist() == [1.0, 1.0]


def test_parameter_norms() -> None:
    model = Quadratic()
    expected = [math.sqrt(5), 3.0, math.sqrt(5)]
    np.testing.assert_allclose(parameter_norms(weights_of(model), lambda probes, t: [], 0, 1), expected)


def test_backprop_norms_are_the_gradients_and_leave_no_trace() -> None:
    model = Quadratic()
    found = backprop_norms(lambda t: model())(weights_of(model), lambda probes, t: [], 0, 1)
    np.testing.assert_allclose(found, norms(model), rtol=1e-6)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("gains", [None, {n: 0.5 + i for i, n in enumerate(NAMES)}])
def test_zeroth_order_norms_are_root_mean_squares(gains: dict[str, float] | None) -> None:
    """<g, z>**2 has mean |g|**2 over the sign patterns of a layer; for a single z it may be anything down to nothing."""
    model = Quadratic()
    weights = weights_of(model, gains=gains)
    evaluate = sequential(weights, lambda t: float(model()))
    expected = norms(model) * np.array(list(gains.values()) if gains else [1.0] * 3)
    single = np.array([zeroth_order_norms(0.25, 1)(weights, evaluate, 0, key) for key in range(200)])
    np.testing.assert_allclose(np.sqrt(np.mean(single**2, axis=0)), expected, rtol=0.15)
    many = zeroth_order_norms(0.25, 200)(weights, evaluate, 0, 7)
    np.testing.assert_allclose(many, expected, rtol=0.15)
    assert (single.min(axis=0) < 0.5 * expected).any()  # what made the paper's variant collapse


def test_zeroth_order_norms_look_with_sizes_of_1_and_put_the_old_ones_back() -> None:
    model = Quadratic()
    weights = weights_of(model)
    evaluate = sequential(weights, lambda t: float(model()))
    plain = zeroth_order_norms(0.25, 4)(weights, evaluate, 0, 7)
    weights.resize([2.0, 0.5, 1.0])
    assert np.array_equal(zeroth_order_norms(0.25, 4)(weights, evaluate, 0, 7), plain)
    assert weights.sizes.tolist() == [2.0, 0.5, 1.0]

    def failing(probes: Sequence[Probe], t: int) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zeroth_order_norms(0.25, 4)(weights, failing, 0, 7)
    assert weights.sizes.tolist() == [2.0, 0.5, 1.0]


def keys_of_all_signs() -> list[int]:
    """For each of the 64 sign patterns, a step key whose only direction has it."""
    found: dict[tuple[float, ...], int] = {}
    for key in itertools.count():
        (direction,) = direction_keys(key, 1)
        z = torch.cat([Dense().directions([direction], Leaf(n, (2,)), range(2), CPU) for n in NAMES], dim=1)[0]
        found.setdefault(tuple(z.tolist()), key)
        if len(found) == 64:
            return list(found.values())
    raise AssertionError


def mean_step(weights: Weights, model: nn.Module) -> Tensor:
    """The mean of SPSA's steps over all sign patterns, exact on a quadratic."""
    estimator, evaluate = Spsa(0.5), sequential(weights, lambda t: float(model()))
    origin, total = weights.state_dict(), torch.zeros(6)
    for key in keys_of_all_signs():
        weights.ascend(0, estimator.gradient(key, evaluate(estimator.probes(key), 0)))
        total += torch.cat([weights.state_dict()[n] - origin[n] for n in NAMES])
        weights.load(origin)
    return total / 64


SIZES = [2.0, 0.5, 4.0]


def test_definition_6_is_unbiased_and_definition_7_divides_by_d() -> None:
    model = Quadratic()
    d = torch.tensor(SIZES).repeat_interleave(2)
    for modified, expected in ((Modified.VARIANCE, model.gradient()), (Modified.EXPECTATION, model.gradient() / d)):
        weights = weights_of(model, modified)
        weights.resize(SIZES)
        assert torch.equal(mean_step(weights, model), expected)


def test_probes_are_along_the_inverse_of_d() -> None:
    model = Quadratic()
    weights = weights_of(model)
    weights.resize(SIZES)
    before = model.point.clone()
    with weights.at(Probe(5, 0.5)):
        live = [weights.geometry.probe_gain(n) for n in NAMES]
    assert live == [0.5, 2.0, 0.25] and torch.equal(model.point, before)
    assert [weights.geometry.step_gain(n) for n in NAMES] == SIZES


def test_relative_gains_stay_under_sizes() -> None:
    gains = {n: 0.5 + i for i, n in enumerate(NAMES)}
    weights = weights_of(Quadratic(), gains=gains)
    weights.resize(SIZES)
    assert [weights.geometry.probe_gain(n) for n in NAMES] == [g / d for g, d in zip(gains.values(), SIZES, strict=True)]
    assert [weights.geometry.step_gain(n) for n in NAMES] == [g * d for g, d in zip(gains.values(), SIZES, strict=True)]


@pytest.mark.parametrize("modified", Modified)
@pytest.mark.parametrize("source", [parameter_norms, zeroth_order_norms(0.5, 2), backprop_norms(lambda t: torch.zeros(()))])
def test_a_flat_objective_moves_nothing_and_divides_by_nothing(modified: Modified, source: object) -> None:
    model = Flat()
    if source is not parameter_norms and "backprop" in str(source):
        source = backprop_norms(lambda t: model())
    weights = weights_of(model, modified)
    before = model.point.clone()
    adaptive = Adaptive(source, every=2, average=0.5)  # type: ignore[arg-type]
    evaluate = sequential(weights, lambda t: float(model()))
    for step in climb(weights, Spsa(0.5), evaluate, steps=5, seed=0, adaptive=adaptive):
        assert not step.gradient.coefficients.any()
        assert np.isfinite(weights.sizes).all() and (weights.sizes > 0).all()
    assert torch.equal(model.point, before)


def test_a_moving_average_is_geometric_and_measured_when_due() -> None:
    model = Quadratic()
    weights = weights_of(model)
    told = iter([np.array([1.0, 1.0, 4.0]), np.array([4.0, 1.0, 1.0])])
    adaptive = Adaptive(lambda weights, evaluate, t, key: next(told), every=3, average=0.75)
    assert [adaptive.due(t) for t in range(7)] == [True, False, False, True, False, False, True]
    assert [Adaptive(parameter_norms).due(t) for t in range(3)] == [True, False, False]
    weights.resize(adaptive.measure(weights, lambda probes, t: [], 0, 1).tolist())
    first = weights.sizes.astype(float)
    np.testing.assert_allclose(first, normalised(np.array([1.0, 1.0, 4.0])))
    second = adaptive.measure(weights, lambda probes, t: [], 3, 1)
    np.testing.assert_allclose(second, first**0.75 * normalised(np.array([4.0, 1.0, 1.0])).astype(float) ** 0.25, rtol=1e-6)
    assert np.prod(second.astype(float)) == pytest.approx(1, rel=1e-5)


def test_round_robin_moves_one_group_a_step_and_counts_its_own_steps() -> None:
    model = Quadratic()
    layers = by_layer(NAMES)
    weights = Weights(model, NAMES, geometry=Dense(), rule=adam(constant(0.1), 0.5), layers=layers)
    estimator = RoundRobin(Spsa(0.1), layers.count)
    evaluate = sequential(weights, lambda t: float(model()))
    before = model.point.clone()
    first = None
    for step in climb(weights, estimator, evaluate, steps=9, seed=0):
        moved = (model.point != before).view(3, 2).any(1)
        assert moved.tolist() == [g == step.t % 3 for g in range(3)]  # the others do not even decay
        first = first if first is not None else (model.point - before * 0.95).abs()[:2]
        before = model.point.clone()
    assert first is not None
    torch.testing.assert_close(first, torch.full((2,), 0.1), rtol=1e-3, atol=1e-3)  # Adam's first step is its rate


def test_probes_of_a_group_leave_the_others_at_rest() -> None:
    model = Tiny()
    names = tuned_names(model)
    weights = Weights(model, names, geometry=Dense(), rule=sgd(constant(0.1)), layers=by_layer(names))
    assert weights.layers is not None and weights.layers.labels == ("embedding", "head")
    stacked = weights.stacked([Probe(3, 0.5, 0), Probe(3, 0.5, 1), Probe(3, 0.5)])
    for name, values in stacked.items():
        group = weights.layers.groups[name]
        assert not torch.equal(values[group], values[1 - group]) and torch.equal(values[group], values[2])
    rest = score(model, 0)
    with weights.at(Probe(3, 0.5, 0)):
        assert score(model, 0) != rest
    assert score(model, 0) == rest


def test_what_needs_layers_says_so() -> None:
    model = Quadratic()
    weights = Weights(model, NAMES, geometry=Dense(), rule=sgd(constant(1.0)))
    with pytest.raises(InputError, match="layers=by_layer"), weights.at(Probe(1, 0.5, 0)):
        pass
    with pytest.raises(InputError, match="layers=by_layer"):
        parameter_norms(weights, lambda probes, t: [], 0, 1)
    with pytest.raises(InputError, match="3 layer sizes for weights with 0 groups"):
        weights.resize(SIZES)
    with pytest.raises(InputError, match=r"'layers\.0\.w' is in no group"):
        Weights(model, NAMES, geometry=Dense(), rule=sgd(constant(1.0)), layers=Layers({"other": 0}, ("a",)))
    with weights.at(Probe(1, 0.5)):  # the failed probe of a group left nothing open
        pass


def test_a_score_that_is_not_finite_ends_the_measurement_too() -> None:
    model = Quadratic()
    weights = weights_of(model)
    for scores, message in ((math.nan, "step 0 is not finite"), (None, "gave 0 scores for 12 probes")):

        def evaluate(probes: Sequence[Probe], t: int, scores: float | None = scores) -> list[float]:
            return [] if scores is None else [scores] * len(probes)

        with pytest.raises(RunError, match=message):
            zeroth_order_norms(0.25, 2)(weights, evaluate, 0, 1)
    assert weights.sizes.tolist() == [1.0] * 3
