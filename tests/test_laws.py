"""The laws of the search side: what holds for every rule, store, dtype, geometry and law of noise.

    1  noise is a pure function             here, test_noise, test_kernels; check_geometry
    2  E[z z^T] = I, unbiased estimates     here, test_layers; check_geometry, check_estimator
    3  a probe restores every bit           here, test_weights; check_store
    4  live = replayed = resumed            here, test_journal, test_run; check_run
    5  batched = sequential                 test_members, test_scoring; check_members
    6  no neighbours in a score             test_scoring, test_states
    7  ties move nothing, NaN is no step    here; check_estimator, check_rule
    8  common random numbers                here, test_scoring; check_estimator
    9  the label set is fixed               test_objectives
    10 old journals replay                  here (golden files)

The checks are public (testing.py); test_conformance runs them on all that is listed, and on planted faults.
"""

import itertools
import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import (
    CPU,
    DTYPES,
    FIXED,
    IDS,
    LAWS,
    RULES,
    STORES,
    Tiny,
    adam,
    bits,
    coefficients,
    concatenated,
    correlation,
    header_of,
    records,
    run,
    score,
    seen_by_modules,
    sgd,
    tuned_names,
    weights_of,
)
from torch import Tensor, nn

from zo_objectives.errors import RunError
from zo_objectives.search import journal, noise
from zo_objectives.search.estimators import Probe, Spsa
from zo_objectives.search.geometry import Dense, Geometry, Leaf, Scaled
from zo_objectives.search.journal import Journal
from zo_objectives.search.keys import direction_keys, fold_in
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.noise import Law
from zo_objectives.search.shaping import raw, unit
from zo_objectives.search.weights import Weights

GOLDEN = Path(__file__).parent / "golden"
KEYS = st.integers(0, 2**64 - 1)
every_law = pytest.mark.parametrize("law", LAWS)
every_store = pytest.mark.parametrize("store", STORES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_rule = pytest.mark.parametrize("rule", RULES)


def axpy(law: Law, n: int, dtype: torch.dtype = torch.float32, start: int = 0, c: float = 0.3, key: int = 5) -> Tensor:
    base = torch.linspace(-1, 1, n)
    out = torch.empty(n, dtype=dtype)
    noise.axpy(law, out, base, key, 8, c, start)
    return out


# 1. Noise is a pure function of key, tensor and index.


def check_tensors_and_keys_are_independent(geometry: Geometry) -> None:
    n = 1 << 14
    a, b = (geometry.directions([3, 4, 3 + 2**32], Leaf(name, (n,)), range(n), CPU) for name in ("a", "b"))
    for x, y in itertools.combinations([*a, *b], 2):
        assert abs(correlation(x, y)) < 5 / math.sqrt(n)


@every_law
def test_tensors_and_keys_are_independent(law: Law) -> None:
    check_tensors_and_keys_are_independent(Dense(law))


@every_law
@FIXED
@given(key=KEYS, tensor=KEYS, data=st.data())
def test_a_slice_of_a_direction_is_the_slice_of_the_whole(law: Law, key: int, tensor: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 1000))
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    whole = noise.directions(law, [key], tensor, range(n), CPU)
    assert torch.equal(noise.directions(law, [key], tensor, range(start, stop), CPU), whole[:, start:stop])


@every_law
@every_dtype
def test_axpy_is_the_same_in_pieces_in_place_and_in_any_chunks(
    law: Law, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = torch.linspace(-1, 1, 1000)
    z = noise.directions(law, [5], 8, range(1000), CPU)[0]
    expected = (base + z * torch.tensor(0.3)).to(dtype)
    assert torch.equal(axpy(law, 1000, dtype), expected)  # 16-bit outputs are the rounded float32 result
    for chunk in (33, 128, 999):
        monkeypatch.setattr(noise, "CHUNK", chunk)
        assert torch.equal(axpy(law, 1000, dtype), expected)
    for cut in (0, 1, 128, 999):
        out = base.clone()
        noise.axpy(law, out[:cut], out[:cut], 5, 8, 0.3)
        noise.axpy(law, out[cut:], out[cut:], 5, 8, 0.3, start=cut)
        assert torch.equal(out.to(dtype), expected)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@every_law
def test_noise_does_not_depend_on_the_thread_count(law: Law, two_threads: None) -> None:
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append((axpy(law, 300_000), noise.rounding_bits(5, 8, range(300_000), CPU)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# 2. E[z z^T] = I, and the mean of estimates is the gradient.


def check_identity(geometry: Geometry) -> None:
    count = 20_000
    z = concatenated(geometry, direction_keys(1, count), {"a": 7, "b": 7}).double()
    gram = z.T @ z / count
    assert (gram - torch.eye(14)).abs().max() < 5.5 * math.sqrt(2 / count)  # 105 entries, variance 1 or 2
    assert (z.mean(0)).abs().max() < 5 / math.sqrt(count)


@every_law
def test_the_second_moment_is_the_identity(law: Law) -> None:
    check_identity(Dense(law))
    check_identity(Scaled(Dense(law), {"a": 3.0, "b": 0.5}))  # gains are not part of z


class Quadratic(nn.Module):
    """f = b x + x A x / 2 in six integers, so that every operation on it is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.0]))
        self.y = nn.Parameter(torch.tensor([2.0, -1.0]))
        self.b = torch.tensor([3.0, -1.0, 2.0, 0.0, 5.0, -4.0])
        self.a = torch.tensor([[(i * j + i + j) % 5 - 2.0 for j in range(6)] for i in range(6)])

    def forward(self) -> Tensor:
        v = torch.cat([self.x, self.y])
        return self.b @ v + v @ self.a @ v / 2

    def gradient(self) -> Tensor:
        v = torch.cat([self.x, self.y]).detach()
        return self.b + self.a @ v  # a is symmetric


def keys_of_all_signs() -> list[int]:
    """For each of the 64 sign patterns of `Quadratic`, a step key whose only direction has it."""
    found: dict[tuple[float, ...], int] = {}
    for key in itertools.count():
        (direction,) = direction_keys(key, 1)
        found.setdefault(tuple(concatenated(Dense(), [direction], {"x": 4, "y": 2})[0].tolist()), key)
        if len(found) == 64:
            return list(found.values())
    raise AssertionError


@every_store
def test_the_mean_estimate_over_all_signs_is_the_gradient(store: str) -> None:
    gains = {"x": 2.0, "y": 0.5}
    model = Quadratic()
    weights = weights_of(model, store, Scaled(Dense(), gains), sgd(1.0, 0.0))
    estimator, evaluate = Spsa(0.5), sequential(weights, lambda t: float(model()))
    origin, gradient, total = weights.state_dict(), model.gradient(), torch.zeros(6)
    for key in keys_of_all_signs():
        weights.ascend(0, estimator.gradient(key, evaluate(estimator.probes(key), 0)))
        total += torch.cat([(weights.state_dict()[name] - origin[name]) for name in ("x", "y")])
        weights.load(origin)
    square = torch.tensor([gains["x"] ** 2] * 4 + [gains["y"] ** 2] * 2)  # once for the probe, once for the step
    assert torch.equal(total / 64, gradient * square)


@every_law
@pytest.mark.parametrize("directions", [1, 4])
def test_the_mean_estimate_agrees_with_the_gradient(law: Law, directions: int) -> None:
    gradient, signs = Quadratic().gradient().double(), torch.tensor([1.0, -1.0], dtype=torch.float64)
    estimator, steps = Spsa(0.01, directions), 4000
    keys = [k for t in range(steps) for k in direction_keys(fold_in(1, t), directions)]
    z = concatenated(Dense(law), keys, {"x": 4, "y": 2}).double().view(steps, directions, 6)
    scores = (7.0 + 0.01 * (z @ gradient)[..., None] * signs).flatten(1).tolist()  # f at the probes, to first order
    estimates = [estimator.gradient(fold_in(1, t), scores[t]) for t in range(steps)]
    assert [k for e in estimates for k in e.keys] == keys
    coefficients = torch.tensor(np.array([e.coefficients for e in estimates]), dtype=torch.float64)
    mean = (coefficients[:, None] @ z).mean(0)[0]
    deviation = math.sqrt(2 * float(gradient @ gradient) / (directions * steps))  # an upper bound for each element
    assert (mean - gradient).abs().max() < 4.5 * deviation


# 3. Leaving a probe restores every bit.


class Poison(RuntimeError):
    pass


def fail(*_: object) -> None:
    raise Poison


def check_restored(model: nn.Module, weights: Weights, probe: Probe) -> None:
    """Law 3: after a forward, and after an exception inside the forward and inside the with-body."""
    before, parameters, rest = bits(model), list(model.parameters()), model(IDS)
    with weights.at(probe):
        assert not torch.equal(model(IDS), rest)
    assert bits(model) == before
    handle = model.get_submodule("head").register_forward_pre_hook(fail)
    with pytest.raises(Poison), weights.at(probe):
        model(IDS)
    handle.remove()
    assert bits(model) == before
    with pytest.raises(Poison), weights.at(probe):
        model(IDS)
        fail()
    assert bits(model) == before
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(IDS), rest)


@every_store
@every_dtype
@FIXED
@given(key=KEYS, scale=st.floats(0.01, 100), law=st.sampled_from(LAWS))
def test_leaving_a_probe_restores_every_bit(store: str, dtype: torch.dtype, key: int, scale: float, law: Law) -> None:
    model = Tiny(dtype)
    check_restored(model, weights_of(model, store, Dense(law)), Probe(key, scale))


@every_store
@every_dtype
def test_a_hundred_probes_move_nothing(store: str, dtype: torch.dtype) -> None:
    model = Tiny(dtype)
    weights, before = weights_of(model, store), bits(model)
    for key in range(25):
        for probe in Spsa(0.1, 2).probes(key):
            with weights.at(probe):
                pass
    assert bits(model) == before


@every_store
def test_probes_do_not_nest(store: str) -> None:
    model = Tiny()
    weights, before = weights_of(model, store), bits(model)
    with weights.at(Probe(1, 0.1)):
        inside = model(IDS)
        with pytest.raises(RuntimeError, match="nest"), weights.at(Probe(2, 0.1)):
            pass
        with pytest.raises(RuntimeError, match="leave it"):
            weights.ascend(0, Spsa(0.1).gradient(1, (1.0, 0.0)))
        assert torch.equal(model(IDS), inside)  # the outer probe is still the one
    assert bits(model) == before
    with weights.at(Probe(2, 0.1)):
        assert not torch.equal(model(IDS), inside)


@every_store
@every_dtype
@every_law
def test_tied_weights_see_the_same_noise(store: str, dtype: torch.dtype, law: Law) -> None:
    model = Tiny(dtype)
    at_rest = model.emb.weight.detach().float()
    seen = seen_by_modules(weights_of(model, store, Dense(law)), model, Probe(11, 0.5))
    both = [values for name, values in seen if name == "emb.weight"]
    z = Dense(law).directions([11], Leaf("emb.weight", (7, 4)), range(28), CPU).view(7, 4)
    assert len(both) == 2
    for values in both:
        assert torch.equal(values, (at_rest + z * 0.5).to(dtype))


@every_store
def test_a_parameter_under_two_names_of_one_module_is_tied_too(store: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(3))
            self.b = self.a

        def forward(self) -> Tensor:
            return self.a - self.b

    model = Twice()
    with weights_of(model, store).at(Probe(1, 0.5)):
        assert torch.equal(model(), torch.zeros(3))


# 4. Live = replayed = killed and resumed.

GAINS = {n: 0.5 + i / 3 for i, n in enumerate(tuned_names(Tiny()))}


@every_rule
@every_store
@every_dtype
@every_law
def test_live_is_replayed_is_killed_and_resumed(rule: str, store: str, dtype: torch.dtype, law: Law, tmp_path: Path) -> None:
    def fresh() -> tuple[Weights, Tiny]:
        model = Tiny(dtype)
        return weights_of(model, store, Scaled(Dense(law), GAINS), RULES[rule]()), model

    live, live_model = fresh()
    begin, path, steps = live.fingerprint(), tmp_path / "live", 4
    scores = run(live, live_model, path, steps)
    header, found = journal.read(path)
    assert live.fingerprint() != begin and len(found) == steps and np.count_nonzero(coefficients(found)) > steps
    replayed, replayed_model = fresh()
    journal.replay(header, found, replayed)
    assert replayed.fingerprint() == live.fingerprint() and bits(replayed_model) == bits(live_model)
    data = path.read_bytes()
    for kept in range(steps):
        killed = tmp_path / f"killed{kept}"
        killed.write_bytes(data[: len(data) - 8 * (steps - kept) + 3])  # two directions: 8 bytes a step, and a torn one
        resumed, model = fresh()
        assert run(resumed, model, killed, steps) == scores[kept:]
        assert killed.read_bytes() == data
        assert resumed.fingerprint() == live.fingerprint() and bits(model) == bits(live_model)


@every_rule
def test_a_journal_that_ends_in_ties_replays_in_full(rule: str, tmp_path: Path) -> None:
    """Adam and weight decay move the weights in a step without information as well."""
    scores = iter([(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (2.0, 2.0)])
    live, path = weights_of(Tiny(), rule=RULES[rule]()), tmp_path / "journal"
    with Journal.open(path, header_of(live, directions=1)) as opened:
        assert len(list(climb(live, Spsa(0.1), lambda probes, t: next(scores), steps=4, seed=3, journal=opened))) == 4
    replayed = weights_of(Tiny(), rule=RULES[rule]())
    journal.replay(*journal.read(path), replayed)
    assert replayed.fingerprint() == live.fingerprint()


def test_a_journal_cut_at_any_byte_is_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BLOCK", 4)
    path, cut, steps = tmp_path / "whole", tmp_path / "cut", 10
    model = Tiny()
    live = weights_of(model, rule=adam())
    run(live, model, path, steps)
    data = path.read_bytes()
    header, whole = journal.read(path)
    (length,) = struct.unpack_from("<I", data, 4)
    counts = []
    for end in range(12 + length, len(data) + 1):
        cut.write_bytes(data[:end])
        found, kept = journal.read(cut)
        assert found == header and all(
            np.array_equal(a.coefficients, b.coefficients) for a, b in zip(kept, whole, strict=False)
        )
        counts.append(len(kept))
        if end % 9 == 0:
            again = Tiny()
            resumed = weights_of(again, rule=adam())
            run(resumed, again, cut, steps)
            assert resumed.fingerprint() == live.fingerprint() and cut.read_bytes() == data
    assert counts == sorted(counts) and set(counts) == set(range(steps + 1))


@every_store
def test_a_run_killed_inside_a_probe_leaves_what_it_can_resume(store: str, tmp_path: Path) -> None:
    live_model, steps = Tiny(torch.bfloat16), 5
    live = weights_of(live_model, store)
    run(live, live_model, tmp_path / "live", steps)
    model = Tiny(torch.bfloat16)
    weights, path, forwards = weights_of(model, store), tmp_path / "killed", iter(range(10))

    def dying(t: int) -> float:
        if next(forwards) == 9:  # two directions, so inside the third step
            raise KeyboardInterrupt
        return score(model, t)

    with pytest.raises(KeyboardInterrupt), Journal.open(path, header_of(weights)) as opened:
        list(climb(weights, Spsa(0.1, 2), sequential(weights, dying), steps=steps, seed=3, journal=opened))
    model = Tiny(torch.bfloat16)
    resumed = weights_of(model, store)
    assert len(run(resumed, model, path, steps)) == 3
    assert resumed.fingerprint() == live.fingerprint()


# 7. Equal scores move nothing; what is not finite never becomes a step.


@every_rule
@every_store
@every_dtype
def test_equal_scores_move_nothing(rule: str, store: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny(dtype)
    monkeypatch.setattr(noise, "rounding_bits", lambda k, n, span, d: torch.full((len(span),), 65535, dtype=torch.int32))
    with torch.no_grad():
        model.lin.weight.mul_(2.0**-15)  # among them subnormal numbers of float16
    weights, before = weights_of(model, store, rule=RULES[rule](weight_decay=0.0)), bits(model)
    for shaping in (raw, unit):
        for step in climb(weights, Spsa(0.1, 3, shaping), lambda probes, t: [0.7] * len(probes), steps=5, seed=1):
            assert not step.gradient.coefficients.any()
    assert bits(model) == before


BAD = [(math.nan, 0.0), (0.0, math.nan), (math.inf, 0.0), (-math.inf, math.inf), (1e300, 0.0), (1e308, -1e308), (1.0,), ()]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shaping", [raw, unit])
def test_what_is_not_finite_never_becomes_a_step(bad: tuple[float, ...], shaping: object, tmp_path: Path) -> None:
    if shaping is unit and bad == (1e300, 0.0):
        pytest.skip("unit shaping has a finite answer")
    model = Tiny()
    weights, path = weights_of(model), tmp_path / "journal"
    taken, after = [], (b"", "")
    with Journal.open(path, header_of(weights, directions=1)) as opened, pytest.raises(RunError, match="step 2"):
        for step in climb(
            weights,
            Spsa(0.1, shaping=shaping),  # type: ignore[arg-type]
            lambda probes, t: (1.0, 0.5) if t < 2 else bad,
            steps=4,
            seed=3,
            journal=opened,
        ):
            taken.append(step.t)
            after = path.read_bytes(), weights.fingerprint()
    assert taken == [0, 1]
    assert (path.read_bytes(), weights.fingerprint()) == after
    assert all(p.isfinite().all() for p in model.parameters())


# 8. Both points of a pair meet the same batch.


def test_a_pair_is_probed_in_order_on_one_batch() -> None:
    model, calls, batches = Tiny(), [], []
    weights = weights_of(model)
    inner = sequential(weights, lambda t: float(batches.append(t) or t))

    def evaluate(probes: Sequence[Probe], t: int) -> Sequence[float]:
        calls.append((tuple(probes), t))
        return inner(probes, t)

    steps = list(climb(weights, Spsa(0.25, 3), evaluate, steps=4, seed=3))
    assert [t for _, t in calls] == [s.t for s in steps] == [0, 1, 2, 3]
    assert batches == [t for t in range(4) for _ in range(6)]
    for (probes, _), step in zip(calls, steps, strict=True):
        assert [p.scale for p in probes] == [0.25, -0.25] * 3
        assert [p.key for p in probes[0::2]] == [p.key for p in probes[1::2]] == list(step.gradient.keys)
    assert len({p.key for probes, _ in calls for p in probes}) == 12  # no direction comes twice


# 10. An old journal replays for ever.

GOLDEN_STORES = (("inference", 0), ("inference", 1), ("inference", 2), ("master", 1))
GOLDEN_RUNS = [(rule, *store, law) for rule in RULES for store in GOLDEN_STORES for law in LAWS]


def golden_weights(rule: str, store: str, dtype: int, law: Law) -> tuple[str, Weights]:
    weights = weights_of(Tiny(DTYPES[dtype]), store, Dense(law), RULES[rule]())
    return f"{rule} {store} {DTYPES[dtype]} {law.name.lower()}", weights


def make_golden() -> None:
    """How the golden journal was made. It is kept: never run this again, or old journals are not tested any more."""
    path, (_, weights) = GOLDEN / "v1.zoj", golden_weights("sgd", "inference", 0, Law.RADEMACHER)
    with Journal.open(path, header_of(weights, seed=20240229)) as opened:
        for t in range(70):  # a closed block and an open one
            row = [((t * 29 + 7) % 41 - 20) / 64, 0.0 if t % 5 == 0 else ((t * 17 + 3) % 23 - 11) / 32]
            opened.append(records(np.array([row], dtype=np.float32))[0])
    fingerprints = {}
    for name, weights in itertools.starmap(golden_weights, GOLDEN_RUNS):
        header, found = journal.read(path)
        journal.replay(header | {"base": weights.fingerprint()}, found, weights)
        fingerprints[name] = weights.fingerprint()
    (GOLDEN / "v1.json").write_text(json.dumps(fingerprints, indent=1) + "\n")


@pytest.mark.parametrize(("rule", "store", "dtype", "law"), GOLDEN_RUNS)
def test_the_golden_journal_replays(rule: str, store: str, dtype: int, law: Law) -> None:
    header, found = journal.read(GOLDEN / "v1.zoj")
    assert coefficients(found).shape == (70, 2)
    name, weights = golden_weights(rule, store, dtype, law)
    if (store, dtype) != ("inference", 0):  # the header names the base in float32
        header = header | {"base": weights.fingerprint()}
    journal.replay(header, found, weights)
    assert weights.fingerprint() == json.loads((GOLDEN / "v1.json").read_text())[name]
