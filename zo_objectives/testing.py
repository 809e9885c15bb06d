"""Conformance suites: the laws of both sides, as functions that any implementation can be put through.

Each raises AssertionError where a law does not hold. Everything that this package lists goes through them in its own tests,
and so should an estimator, a geometry, an update rule, a weight store or an objective of your own:

    check_geometry(geometry)          noise is a pure function of key, tensor and element; E[z z^T] = I    (laws 1 and 2)
    check_estimator(estimator)        the mean estimate is the gradient; equal scores move nothing         (laws 2, 7 and 8)
    check_rule(rule)                  the same steps in pieces; no step from nothing                       (laws 4 and 7)
    check_store(weights_of)           leaving a probe restores every bit, whatever happened in it          (law 3)
    check_run(weights_of, estimator, folder)    live = replayed = killed and resumed, bit for bit          (law 4)
    check_members(weights, probes, rows, run)   together = one after another, up to the order of sums      (law 5)
    check_objective(objective)        equal outputs, equal scores; it looks at them; it changes nothing    (laws 7 and 8)

`Toy` is the model that stores and runs are tried on.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from zo_objectives.errors import InputError
from zo_objectives.language.examine import blind, faults
from zo_objectives.language.objective import Objective
from zo_objectives.language.outputs import Choices, Example, Generations, Outputs
from zo_objectives.search import journal
from zo_objectives.search.adaptive import Adaptive
from zo_objectives.search.estimators import Estimator, Evaluator, Memory, Probe, ProjectedGradient, count_at
from zo_objectives.search.geometry import Dense, Geometry, Leaf
from zo_objectives.search.journal import Journal, header_for
from zo_objectives.search.keys import direction_keys, fold_in
from zo_objectives.search.loop import climb
from zo_objectives.search.members import deviation
from zo_objectives.search.rules import UpdateRule
from zo_objectives.search.weights import Weights

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS = torch.tensor([[1, 2, 3], [0, 6, 2]])
LEAVES = (Leaf("a.weight", (3, 4)), Leaf("b.weight", (3, 4)), Leaf("c.bias", (5,)))
BOUND = 1e-4  # of law 5 in float32: nats, or logits of a standard deviation above 1
WeightsOf = Callable[[nn.Module], Weights]
Run = Callable[[int], Tensor]


class Toy(nn.Module):
    """Embedding, linear layer, a parameter and a buffer of its own, and a head tied to the embedding; weights by arithmetic.

    Integers [B, T] below 7 in, [B, T, 7] out.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.lin = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.emb.weight
        self.temperature = nn.Parameter(torch.empty(()))
        self.register_buffer("shift", torch.full((7,), 0.25))
        for row, parameter in enumerate(self.parameters()):
            count = torch.arange(parameter.numel()).view(parameter.shape)
            parameter.data = ((count * 37 + row * 11 + 5) % 101 - 50).double().div(60).float()
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.lin(self.emb(ids)))) * self.temperature + self.shift
        return out


def tuned_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer, bit for bit."""
    return {n: v.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, v in model.state_dict().items()}


@torch.no_grad()
def score(model: nn.Module, t: int) -> float:
    """A score of a `Toy` with ties, as metrics have: a multiple of 1/256 that depends on the step's batch."""
    return round(float(model(IDS + t % 2 * (IDS < 6)).float().square().mean()) * 256) / 256


# Geometries


def drawn(geometry: Geometry, keys: Sequence[int], leaves: Sequence[Leaf] = LEAVES) -> Tensor:
    """[len(keys), all elements]: directions in several tensors side by side."""
    return torch.cat([geometry.directions(keys, leaf, range(math.prod(leaf.shape)), CPU) for leaf in leaves], dim=1)


def check_geometry(geometry: Geometry, leaves: Sequence[Leaf] = LEAVES) -> None:
    """Laws 1 and 2, on `leaves`, two of which at least should have the same shape."""
    _check_slices(geometry, leaves)
    _check_axpy(geometry, leaves)
    _check_moments(geometry, leaves)
    for leaf in leaves:
        assert geometry.probe_gain(leaf.name) > 0 and geometry.step_gain(leaf.name) > 0
        if (factors := geometry.factors([3, 4], leaf, CPU)) is not None:
            whole = geometry.directions([3, 4], leaf, range(math.prod(leaf.shape)), CPU)
            products = (factors.left @ factors.right.transpose(1, 2)).flatten(1)
            torch.testing.assert_close(products, whole)


def _check_slices(geometry: Geometry, leaves: Sequence[Leaf]) -> None:
    """A slice of a direction is the slice of the whole; a direction does not depend on what else is asked for."""
    for leaf in leaves:
        n = math.prod(leaf.shape)
        whole = geometry.directions([5, 2**63], leaf, range(n), CPU)
        assert whole.shape == (2, n) and whole.dtype == torch.float32
        for start, stop in itertools.combinations(range(n + 1), 2):
            assert torch.equal(geometry.directions([5, 2**63], leaf, range(start, stop), CPU), whole[:, start:stop])
        assert torch.equal(geometry.directions([2**63], leaf, range(n), CPU), whole[1:])


def _check_axpy(geometry: Geometry, leaves: Sequence[Leaf]) -> None:
    """axpy is the same in pieces, in place and in every dtype: the rounded float32 result."""
    for leaf, dtype in itertools.product(leaves, DTYPES):
        n = math.prod(leaf.shape)
        base = torch.linspace(-1, 1, n).to(dtype)
        z = geometry.directions([5], leaf, range(n), CPU)[0]
        expected = (base.float() + z * torch.tensor(0.3)).to(dtype)
        for cut in range(n):
            out, inside = torch.empty(n, dtype=dtype), base.clone()
            for start, stop in ((0, cut), (cut, n)):
                geometry.axpy(out[start:stop], base[start:stop], 5, leaf, 0.3, start)
                geometry.axpy(inside[start:stop], inside[start:stop], 5, leaf, 0.3, start)
            assert torch.equal(out, expected) and torch.equal(inside, expected)


def _check_moments(geometry: Geometry, leaves: Sequence[Leaf], count: int = 20_000) -> None:
    """Mean 0 and E[z z^T] = I on the elements that move at all: within a tensor, across tensors and across keys."""
    z = drawn(geometry, direction_keys(1, count), leaves).double()
    moves = (z != 0).any(0)
    assert moves.any()
    bound = 5.5 * math.sqrt(3 / count)  # products of two elements have variance 3 at most
    assert (z.T @ z / count - torch.diag(moves.double())).abs().max() < bound
    assert z.mean(0).abs().max() < bound
    assert (z[:-1].T @ z[1:] / count).abs().max() < bound
    if geometry.signs:
        assert torch.equal(z[:, moves].abs(), torch.ones_like(z[:, moves]))


# Estimators


class _Hill:
    """f(x) = b x + x A x / 2 in the six elements of two tensors, one group each."""

    leaves = (Leaf("x", (4,)), Leaf("y", (2,)))
    point = torch.tensor([1.0, -2.0, 3.0, 0.0, 2.0, -1.0], dtype=torch.float64)
    b = torch.tensor([3.0, -1.0, 2.0, 0.5, 5.0, -4.0], dtype=torch.float64)
    a = torch.tensor([[(i * j + i + j) % 5 - 2.0 for j in range(6)] for i in range(6)], dtype=torch.float64)
    blocks = torch.tensor([0, 0, 0, 0, 1, 1])

    def gradient(self) -> Tensor:
        return self.b + torch.mv(self.a, self.point)

    def __init__(self, estimator: Estimator, steps: int) -> None:
        keys = [k for t in range(steps) for k in direction_keys(fold_in(7, t), count_at(estimator.counts, t))]
        self.known: dict[int, Tensor] = dict(zip(keys, drawn(Dense(), keys, self.leaves).double(), strict=True))

    def moved(self, key: int, group: int | None) -> Tensor:
        """[6]: a direction, in one group or in both."""
        assert key in self.known, "a probe or a gradient is along a direction that is not one of the step's"
        z = self.known[key]
        return z if group is None else torch.mul(z, self.blocks == group)

    def at(self, probe: Probe) -> float:
        x = self.point + probe.scale * self.moved(probe.key, probe.group)
        return float(self.b @ x + x @ self.a @ x / 2)


def _estimates(estimator: Estimator, hill: _Hill, steps: int) -> Iterator[tuple[ProjectedGradient, Tensor]]:
    """Steps on the hill that never leave its point: the gradient's coefficients, and what they stand for, [6]."""
    memory: Memory = ()
    for t in range(steps):
        key = fold_in(7, t)
        scores = [hill.at(p) for p in estimator.probes(key, t, memory)]
        found = estimator.gradient(key, scores, t, memory)
        memory = tuple(float(np.float32(m)) for m in estimator.remember(scores, t, memory))
        assert len(memory) == estimator.remembers
        z = torch.stack([hill.moved(k, found.group) for k in found.keys])
        yield found, torch.from_numpy(found.coefficients).double() @ z


def check_estimator(estimator: Estimator, *, unbiased: bool, steps: int = 1000) -> None:
    """Laws 2, 7 and 8. `unbiased`: the mean of estimates is the gradient; else it points that way (cosine above 0.8)."""
    hill = _Hill(estimator, steps)
    samples = []
    for t, (found, estimate) in enumerate(_estimates(estimator, hill, steps)):
        assert found.coefficients.dtype == np.float32 and np.isfinite(found.coefficients).all()
        assert len(found.coefficients) == len(found.keys) == count_at(estimator.counts, t)
        assert found.keys == direction_keys(fold_in(7, t), len(found.keys))  # a journal stores coefficients only
        assert found.group == (t % estimator.blocks if estimator.blocks else None)
        samples.append(estimate * max(estimator.blocks, 1))
    told = torch.stack(samples[1:])  # an estimator with memory learns nothing from its first step
    mean, error = told.mean(0), told.std(0) / math.sqrt(len(told))
    gradient = hill.gradient()
    if unbiased:
        assert ((mean - gradient).abs() < 5 * error + 1e-6).all(), (mean, gradient)
    assert torch.cosine_similarity(mean, gradient, dim=0) > 0.8, (mean, gradient)
    _check_ties(estimator)
    _check_pairs(estimator)


def _check_ties(estimator: Estimator) -> None:
    """Equal scores move nothing; directions with equal scores get equal coefficients, whatever the others got (law 7)."""
    for t, value in itertools.product((0, 1, 40), (0.0, 0.1, 0.7, -3.3)):
        probes = estimator.probes(9, t)
        same = [value] * len(probes)
        memory = tuple(float(np.float32(m)) for m in estimator.remember(same)) if t else ()
        assert not estimator.gradient(9, same, t, memory).coefficients.any()
        keys = direction_keys(9, count_at(estimator.counts, t))
        if len(keys) > 2:
            twins = dict.fromkeys(keys[:2], 0.3)
            scores = [twins.get(p.key, 0.1 * keys.index(p.key)) + p.scale * (p.key in twins) for p in probes]
            found = estimator.gradient(9, scores, t, memory).coefficients
            assert len(probes) == len(keys) + 1 or found[0] == found[1]


def _check_pairs(estimator: Estimator) -> None:
    """Probes are a pure function of key and step, on the directions that the gradient is made of (law 8)."""
    for t in (0, 1, 40):
        probes = estimator.probes(11, t)
        assert probes == estimator.probes(11, t) and probes != estimator.probes(12, t)
        keys = direction_keys(11, count_at(estimator.counts, t))
        assert {p.key for p in probes} == set(keys)
        assert all(math.isfinite(p.scale) for p in probes)


# Update rules


def _gradients(steps: int, n: int) -> list[tuple[float, Tensor]]:
    """Coefficients of very different sizes, some 0, and c * z for them."""
    coefficients = [0.0 if t % 7 == 3 else (-1.0) ** t * 10.0 ** -(t % 5) * (1 + t % 3) for t in range(steps)]
    z = Dense().directions(range(steps), Leaf("w", (n,)), range(n), CPU)
    return [(c, c * row) for c, row in zip(coefficients, z, strict=True)]


def trajectory(rule: UpdateRule, gradients: Sequence[tuple[float, Tensor]], span: slice) -> Tensor:
    """[steps, len(span)]: what `rule` adds to elements `span`, step by step."""
    state = rule.init(gradients[0][1][span])
    added, past = [], list[tuple[int, Tensor]]()
    for t, (coefficient, gradient) in enumerate(gradients):
        if rule.observe is not None:
            rule.observe(coefficient, state)
        seen = [(then, g.clone()) for then, g in past][max(0, len(past) - rule.window) :]
        added.append(rule.step(t, t, gradient[span].clone(), state, iter(seen)).clone())
        past.append((t, gradient[span]))
    return torch.stack(added)


def check_rule(rule: UpdateRule, steps: int = 30) -> None:
    """Laws 4 and 7: a tensor may be handled in pieces, steps are finite, and nothing comes of nothing, not even 0 / 0."""
    n = 12
    gradients = _gradients(steps, n)
    whole = trajectory(rule, gradients, slice(0, n))
    assert whole.isfinite().all() and whole.any()
    for cut in (1, 5, n - 1):
        parts = [trajectory(rule, gradients, s) for s in (slice(0, cut), slice(cut, n))]
        assert torch.equal(torch.cat(parts, dim=1), whole)
    flat = [(0.0, torch.zeros(n))] * steps
    assert not trajectory(rule, flat, slice(0, n)).any()
    after = trajectory(rule, [*flat, *gradients], slice(0, n))[steps:]
    assert after.isfinite().all() and after.any()
    if rule.linear:
        rates = torch.tensor([rule.rate(t) for t in range(steps)])
        assert torch.equal(whole, torch.stack([g for _, g in gradients]) * rates[:, None])


# Weight stores


class _Poison(RuntimeError):
    pass


def _fail(*_: object) -> None:
    raise _Poison


def check_store(weights_of: WeightsOf, dtype: torch.dtype = torch.float32) -> None:
    """Law 3 on a `Toy`: a probe is felt, and every bit is back after it, after an exception in the model and in the body."""
    model, probe = Toy(dtype), Probe(5, 0.5)
    weights = weights_of(model)
    before, parameters, rest = bits(model), list(model.parameters()), model(IDS)
    with weights.at(probe):
        assert not torch.equal(model(IDS), rest)
        _expect(RuntimeError, lambda: weights.at(probe).__enter__())
        _expect(RuntimeError, lambda: weights.ascend(0, ProjectedGradient(1, (1,), np.ones(1, dtype=np.float32))))
    assert bits(model) == before
    handle = model.get_submodule("head").register_forward_pre_hook(_fail)
    _expect(_Poison, lambda: _forward_at(weights, model, probe))
    handle.remove()
    assert bits(model) == before
    for key in range(20):
        with weights.at(probe._replace(key=key)):
            pass
    assert bits(model) == before
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(IDS), rest)


def _forward_at(weights: Weights, model: nn.Module, probe: Probe) -> None:
    with weights.at(probe):
        model(IDS)


def _expect(kind: type[Exception], action: Callable[[], object]) -> None:
    try:
        action()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


# Runs


def probing(weights: Weights, model: nn.Module) -> Evaluator:
    """Scores of a `Toy`, one probe after another."""

    def evaluate(probes: Sequence[Probe], t: int) -> list[float]:
        scores = []
        for probe in probes:
            with weights.at(probe):
                scores.append(score(model, t))
        return scores

    return evaluate


def check_run(
    weights_of: WeightsOf,
    estimator: Estimator,
    folder: Path,
    *,
    adaptive: Adaptive | None = None,
    steps: int = 4,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Law 4 on a `Toy`: a run, its replay, and the run killed in any step, mid-record, and resumed, end in the same bits."""
    path, killed = folder / "live.zoj", folder / "killed.zoj"

    def go(to: Path) -> tuple[Weights, list[tuple[float, ...]]]:
        model = Toy(dtype)
        weights = weights_of(model)
        with Journal.open(to, header_for(weights, estimator, 3, adaptive)) as log:
            run = climb(weights, estimator, probing(weights, model), steps=steps, seed=3, journal=log, adaptive=adaptive)
            return weights, [step.scores for step in run]

    live, scores = go(path)
    header, records = journal.read(path)
    assert len(records) == steps and header["base"] != live.fingerprint()
    replayed = weights_of(Toy(dtype))
    journal.replay(header, records, replayed)
    assert replayed.fingerprint() == live.fingerprint()
    data, layout = path.read_bytes(), journal.Layout.of(header)
    for kept in range(steps):
        lost = sum(layout.width(t) for t in range(kept, steps))
        killed.write_bytes(data[: len(data) - lost + 3])  # and a torn record
        resumed, rest = go(killed)
        assert rest == scores[kept:] and killed.read_bytes() == data
        assert resumed.fingerprint() == live.fingerprint()


# Members


def check_members(weights: Weights, probes: Sequence[Probe], rows: int, run: Run, bound: float = BOUND) -> None:
    """Law 5: `run(members)`, the model's outputs [members * rows, ...] on its rows repeated for each member, is the same
    together as one after another; members differ; and afterwards everything is as before. Raises AssertionError."""
    before, rest = {t.name: t.parameter.clone() for t in weights.tuned}, run(1)
    found = deviation(weights, probes, rows, run)
    assert found.largest <= bound, f"members together differ from those one after another: {found}"
    assert found.effect > 10 * bound, f"the probes hardly do anything: {found}"
    assert all(torch.equal(t.parameter, before[t.name]) for t in weights.tuned)
    assert torch.equal(run(1), rest)


# Objectives


def choice_batch(options: tuple[str, ...] = (" no", " yes"), size: int = 8) -> tuple[Outputs, list[Example]]:
    """Options' log-likelihoods, two of three right, and their examples."""
    labels = [i % len(options) for i in range(size)]
    said = [(y + (i % 3 == 0)) % len(options) for i, y in enumerate(labels)]
    values = np.log(np.full((size, len(options)), 0.5 / len(options), dtype=np.float32))
    values[np.arange(size), said] = np.linspace(-0.5, -0.2, size, dtype=np.float32)
    return Choices(values), [Example(i, f"question {i}", {"n": i}, options, y) for i, y in enumerate(labels)]


def text_batch(size: int = 8) -> tuple[Outputs, list[Example]]:
    """Generated texts, half of them right, and their examples."""
    targets = [f"the sum of {i} and {i + 1} is {2 * i + 1}" for i in range(size)]
    said = [t if i % 2 else f"{t} or {i}" for i, t in enumerate(targets)]
    return Generations(said), [Example(i, f"question {i}", {"n": i}, targets=(t,)) for i, t in enumerate(targets)]


def check_objective(objective: Objective, outputs: Outputs | None = None, examples: Sequence[Example] = ()) -> None:
    """The laws of an objective, on `outputs` and `examples` or on small batches of options and of texts.

    Finite; the same for the same outputs, whatever was asked in between and in whatever order the examples come; different
    for different outputs; within its bounds; bound to a batch, and of many members, as alone; a reward's score is the mean
    of its samples; what it is given stays as it is. Raises AssertionError.
    """
    accepted: list[str | None] = []
    for batch in [choice_batch(), text_batch()] if outputs is None else [(outputs, list(examples))]:
        try:
            found = list(faults(objective, *batch))
        except InputError as error:
            refusal = error
            continue
        assert not found, f"objective {objective.name!r}: {'; '.join(found)}"
        accepted.append(blind(objective, objective(*batch), *batch))
    assert accepted, f"objective {objective.name!r} scores neither options nor texts: {refusal}"
    assert None in accepted, accepted[0]
