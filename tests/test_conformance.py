"""Every estimator, geometry, update rule and store that is listed, through the conformance suites; and faults, caught."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from zo_objectives.search import estimators, journal, rules, shaping, stores
from zo_objectives.search.adaptive import Adaptive, parameter_norms, zeroth_order_norms
from zo_objectives.search.estimators import (
    Clipped,
    Es,
    Estimator,
    OnePoint,
    OneSided,
    Probe,
    ProjectedGradient,
    RoundRobin,
    Spsa,
)
from zo_objectives.search.geometry import (
    Dense,
    Geometry,
    InPart,
    Leaf,
    LowRank,
    Masked,
    Scaled,
    expectation_modified,
    largest,
    variance_modified,
)
from zo_objectives.search.layers import Modified, by_layer
from zo_objectives.search.noise import Law
from zo_objectives.search.pace import Paced
from zo_objectives.search.rules import UpdateRule
from zo_objectives.search.schedules import SCHEDULES, constant, linear, warmed_up
from zo_objectives.search.shaping import SHAPINGS, SLOPES, Floats, Shaping
from zo_objectives.search.stores import STORES, MasterStore
from zo_objectives.search.tuned import Tuned
from zo_objectives.search.weights import Weights
from zo_objectives.testing import (
    DTYPES,
    LEAVES,
    Toy,
    WeightsOf,
    check_estimator,
    check_geometry,
    check_rule,
    check_run,
    check_store,
    tuned_names,
)

NAMES = tuned_names(Toy())
TOY = {n: p for n, p in Toy().named_parameters()}
D = {leaf.name: 0.5 + i for i, leaf in enumerate(LEAVES)}
VALUES = {leaf.name: torch.arange(float(math.prod(leaf.shape))).view(leaf.shape).cos() for leaf in LEAVES}
GEOMETRIES: dict[str, Geometry] = {
    "rademacher": Dense(),
    "gaussian": Dense(Law.GAUSSIAN),
    "low-rank:1": LowRank(1),
    "low-rank:3": LowRank(3),
    "low-rank:4": LowRank(4),
    "masked": Masked(Dense(), largest(VALUES, 0.5)),
    "in a part": InPart(Dense(), 1, 2),
    "in a part, low-rank": InPart(LowRank(2), 0, 3),
    "masked low-rank": Masked(LowRank(2), {"a.weight": torch.arange(12) % 3 > 0}),
    "scaled": Scaled(Dense(Law.GAUSSIAN), D),
    "variance-modified": variance_modified(LowRank(1), D),
    "expectation-modified": expectation_modified(Dense(), D),
}
UNBIASED: dict[str, Estimator] = {
    "spsa": Spsa(0.01),
    "n-spsa": Spsa(0.01, 3),
    "growing n-spsa": Spsa(0.01, estimators.growing(4, 1000)),
    "spsa, centred": Spsa(0.01, 2, shaping.centred),
    "one-sided": OneSided(0.01, 3),
    "one-point": OnePoint(1.0),
    "es, raw": Es(1.0, 6, shaping.raw),
    "es, centred": Es(0.01, 4, shaping.centred),
    "es, growing": Es(0.01, estimators.growing(5, 1000, first=2)),
    "clipped, loosely": Clipped(Spsa(0.01, 2), 1e9),
    "paced": Paced(Spsa(0.01, 2), 3),
    "paced one-sided, clipped loosely": Clipped(Paced(OneSided(0.01, 2)), 1e9),
    "round-robin": RoundRobin(Spsa(0.01, 2), 2),
    "rows apart": Spsa(0.01, 2, parts=3),
    "rows apart, centred, growing": Spsa(0.01, estimators.growing(3, 1000), shaping.centred, parts=2),
    "rows apart, paced, round-robin, clipped loosely": Clipped(RoundRobin(Paced(Spsa(0.01, 2, parts=2), 3), 2), 1e9),
    "round-robin one-sided, clipped loosely": Clipped(RoundRobin(OneSided(0.01, 2), 2), 1e9),
}
UPHILL: dict[str, Estimator] = {
    **{f"spsa, {n}": Spsa(0.1, 3, s) for n, s in SHAPINGS.items() if n not in SLOPES},
    **{f"rows apart, {n}": Spsa(0.1, 3, s, parts=2) for n, s in SHAPINGS.items() if n not in SLOPES},
    **{f"one-sided, {n}": OneSided(0.1, 4, s) for n, s in SHAPINGS.items() if n not in SLOPES},
    **{f"es, {n}": Es(0.1, 5, s) for n, s in SHAPINGS.items() if n not in SLOPES},
    "one-point, unit": OnePoint(0.1, shaping.unit),
    "clipped": Clipped(Spsa(0.1, 3), 0.5),
    "paced": Paced(Spsa(0.1, 3, shaping.unit), 3),
}
RATE = warmed_up(linear(0.02, 50), 3)
RULES: dict[str, UpdateRule] = {
    **{name: make(RATE, 0.01) for name, make in rules.RULES.items()},
    **{f"{name}, recomputed": make(RATE, 0.01) for name, make in rules.FREE.items()},
    "adam, recomputed in full": rules.recomputed(rules.adam(RATE)),
    "anchored sgd": rules.anchored(rules.sgd(RATE), 0.5),
    "anchored adam": rules.anchored(rules.adam(RATE, 0.01), 0.5),
}
ADAPTIVE = {
    "none": None,
    "parameter norms once": Adaptive(parameter_norms),
    "zeroth-order norms, moving": Adaptive(zeroth_order_norms(0.1, 2), every=2, average=0.5),
}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
exact = pytest.mark.parametrize("store", ["inference", "master"])


def sgd(rate: float = 0.02) -> UpdateRule:
    return rules.sgd(constant(rate), 0.01)


def toy_weights(
    store: str = "inference",
    geometry: Geometry | None = None,
    rule: UpdateRule | None = None,
    modified: Modified = Modified.VARIANCE,
) -> WeightsOf:
    layers = by_layer(NAMES, modified)
    return lambda model: Weights(model, NAMES, geometry=geometry or Dense(), rule=rule or sgd(), store=store, layers=layers)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(name: str) -> None:
    check_geometry(GEOMETRIES[name])


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators(name: str) -> None:
    check_estimator(UNBIASED[name], unbiased=True)


@pytest.mark.parametrize("name", UPHILL)
def test_scale_free_estimators(name: str) -> None:
    check_estimator(UPHILL[name], unbiased=False)


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    check_rule(RULES[name])


@every_dtype
@pytest.mark.parametrize("geometry", ["rademacher", "gaussian", "low-rank:2", "masked"])
@pytest.mark.parametrize("store", [s for s in STORES if s != "in_place"])
def test_stores(store: str, geometry: str, dtype: torch.dtype) -> None:
    check_store(toy_weights(store, TOY_GEOMETRIES[geometry]), dtype)


TOY_GEOMETRIES: dict[str, Geometry] = {
    "rademacher": Dense(),
    "gaussian": Dense(Law.GAUSSIAN),
    "low-rank:2": LowRank(2),
    "masked": Masked(Dense(), largest(TOY, 0.5)),
}


@exact
@every_dtype
@pytest.mark.parametrize("rule", RULES)
def test_runs_of_every_rule(rule: str, store: str, dtype: torch.dtype, tmp_path: Path) -> None:
    check_run(toy_weights(store, rule=RULES[rule]), Spsa(0.1), tmp_path, dtype=dtype)


@exact
@every_dtype
@pytest.mark.parametrize("geometry", TOY_GEOMETRIES)
def test_runs_of_every_geometry(geometry: str, store: str, dtype: torch.dtype, tmp_path: Path) -> None:
    check_run(toy_weights(store, TOY_GEOMETRIES[geometry], rules.adam(RATE)), Spsa(0.1, 2), tmp_path, dtype=dtype)


@exact
@pytest.mark.parametrize("name", {**UNBIASED, **UPHILL})
def test_runs_of_every_estimator(name: str, store: str, tmp_path: Path) -> None:
    estimator = {**UNBIASED, **UPHILL}[name]
    check_run(toy_weights(store, rule=rules.momentum(RATE)), estimator, tmp_path, steps=6, dtype=torch.bfloat16)


@exact
@every_dtype
@pytest.mark.parametrize("modified", Modified)
@pytest.mark.parametrize("adaptive", ADAPTIVE)
def test_runs_of_every_layer_wise_form(
    adaptive: str, modified: Modified, store: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    weights_of = toy_weights(store, modified=modified)
    check_run(weights_of, Spsa(0.1, 2), tmp_path, adaptive=ADAPTIVE[adaptive], steps=5, dtype=dtype)


# The suites catch what they are there to catch.


class SubtractingStore(stores.InPlaceStore):
    """MeZO, Algorithm 1: the noise is added, and taken away again."""


class ForgetfulStore(MasterStore):
    """A missing `finally`: leaves the probe where it is."""

    def close(self) -> None:
        pass


class CleanStore(MasterStore):
    """Restores after a good forward only."""

    def __init__(self, tuned: Sequence[Tuned]) -> None:
        super().__init__(tuned)
        self.tuned, self.forwards = tuned, 0
        tuned[0].owners[0][0].register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.forwards += 1

    def close(self) -> None:
        if self.forwards % 4 != 3:
            super().close()


@dataclass(frozen=True)
class OneKey(Dense):
    """The same noise in every tensor: a generator seeded anew for each (es-at-scale, issue 46)."""

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        return super().directions(keys, leaf._replace(name=""), span, device)

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        super().axpy(out, base, key, leaf._replace(name=""), coefficient, start)


@dataclass(frozen=True)
class Unscaled(LowRank):
    """A product without its 1 / sqrt(r)."""

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        z = super().directions(keys, leaf, span, device)
        return z * math.sqrt(self.rank) if len(leaf.shape) > 1 else z


@dataclass(frozen=True)
class FromTheStart(Dense):
    """Noise that is drawn in the order of asking: a slice is the beginning of the whole."""

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        return super().directions(keys, leaf, range(len(span)), device)


@dataclass(frozen=True)
class NotTheProbe(LowRank):
    """Steps along another direction than it probes (LOZO, on refresh steps)."""

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        super().axpy(out, base, key ^ 1, leaf, coefficient, start)


@pytest.mark.parametrize("faulty", [OneKey(), Unscaled(3), FromTheStart(), NotTheProbe(1)])
def test_a_faulty_geometry_is_caught(faulty: Geometry) -> None:
    with pytest.raises(AssertionError):
        check_geometry(faulty)


@pytest.mark.parametrize("faulty", [SubtractingStore, ForgetfulStore, CleanStore])
def test_a_faulty_store_is_caught(faulty: type[stores.Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stores.STORES, "faulty", faulty)
    with pytest.raises(AssertionError):
        check_store(toy_weights("faulty"), torch.bfloat16)


def argsort_ranks(scores: Floats) -> Floats:
    """evotorch's ranking: equal scores get different ranks, a gradient made of nothing."""
    return np.argsort(np.argsort(scores)) / (len(scores) - 1) - 0.5


class ForgottenBaseline(OnePoint):
    """Remembers nothing and says so nowhere."""

    def remember(self, scores: Sequence[float], t: int = 0, memory: estimators.Memory = ()) -> tuple[float, ...]:
        return (0.0,)


class MirrorlessSpsa(Spsa):
    """Forgets that a pair is two scales apart."""

    def gradient(self, key: int, scores: Sequence[float], t: int = 0, memory: estimators.Memory = ()) -> ProjectedGradient:
        found = super().gradient(key, scores, t, memory)
        return found._replace(coefficients=found.coefficients * 2)


class FreshKeys(Spsa):
    """Steps along directions that were not probed."""

    def probes(self, key: int, t: int = 0, memory: estimators.Memory = ()) -> tuple[Probe, ...]:
        return super().probes(key + 1, t)


def zscore_without_floor(scores: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (scores - scores.mean()) / scores.std()


FAULTY = {
    "argsort ranks": Es(0.1, 5, Shaping(argsort_ranks, shaping.rank.weigh)),
    "no floor": Spsa(0.1, 3, Shaping(zscore_without_floor, shaping.zscore.weigh)),
    "twice the slope": MirrorlessSpsa(0.01, 2),
    "other keys": FreshKeys(0.01, 2),
    "no baseline": ForgottenBaseline(1.0),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_estimator_is_caught(name: str) -> None:
    with pytest.raises(AssertionError):
        check_estimator(FAULTY[name], unbiased=name in ("twice the slope", "other keys", "no baseline"))


def test_a_faulty_rule_is_caught() -> None:
    def no_epsilon(age: int, t: int, gradient: Tensor, state: rules.State, past: rules.Past) -> Tensor:
        return gradient / gradient.abs()

    def whole_norm(age: int, t: int, gradient: Tensor, state: rules.State, past: rules.Past) -> Tensor:
        return gradient / (gradient.norm() + 1)

    for step in (no_epsilon, whole_norm):
        with pytest.raises(AssertionError):
            check_rule(UpdateRule(step, constant(1.0)))


def test_a_rule_that_keeps_something_beside_its_state_is_caught(tmp_path: Path) -> None:
    """Its memory is lost with the process, so a resumed run differs."""
    seen: list[int] = []

    def step(age: int, t: int, gradient: Tensor, state: rules.State, past: rules.Past) -> Tensor:
        seen.append(t)
        return gradient * 0.01 * len(seen)

    with pytest.raises(AssertionError):
        check_run(toy_weights(rule=UpdateRule(step, constant(1.0))), Spsa(0.1), tmp_path)


def takes_torn_records(sizes: list[int], body: bytes) -> list[int]:
    """Every record that has begun counts, with zeros for what is missing."""
    return [size for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True) if end - size < len(body)]


def test_a_journal_that_takes_a_torn_record_for_a_step_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout_record = journal.Layout.record

    def padded(self: journal.Layout, t: int, body: bytes) -> journal.Record:
        return layout_record(self, t, body.ljust(self.width(t), b"\0"))

    monkeypatch.setattr(journal, "_whole", takes_torn_records)
    monkeypatch.setattr(journal.Layout, "record", padded)
    with pytest.raises(AssertionError):
        check_run(toy_weights(), Spsa(0.1), tmp_path)


def test_a_rule_that_needs_signs_says_so() -> None:
    with pytest.raises(ValueError, match="directions of signs"):
        toy_weights(geometry=Dense(Law.GAUSSIAN), rule=rules.adam_of_signs(RATE))(Toy())
    weights = toy_weights(rule=rules.adam_of_signs(RATE))(Toy())
    with pytest.raises(ValueError, match=r"one direction a step, not 2.*moments=stored"):
        weights.ascend(0, Spsa(0.1, 2).gradient(1, (1.0, 0.0, 1.0, 0.0)))


def test_everything_listed_is_here() -> None:
    assert set(rules.RULES) <= set(RULES) and set(SCHEDULES) == {"constant", "linear", "cosine"}
    assert {type(e) for e in (*UNBIASED.values(), *UPHILL.values())} == {
        *(Spsa, OneSided, OnePoint, Es, Clipped, RoundRobin, Paced)
    }
