"""Laws 2, 7 and 8 of estimators: the mean estimate is the gradient; equal scores move nothing."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from zo_objectives.conformance.geometry_laws import drawn
from zo_objectives.search.estimators import Estimator, Memory, Part, Probe, ProjectedGradient, count_at
from zo_objectives.search.geometry import Dense, Leaf
from zo_objectives.search.keys import direction_keys, fold_in


def keys_of(estimator: Estimator, key: int, t: int) -> tuple[int, ...]:
    """The keys of a step's directions."""
    return direction_keys(key, count_at(estimator.counts, t) // max(estimator.parts, 1))


class _Hill:
    """f(x) = b x + x A x / 2 in the six elements of two tensors, one group each."""

    leaves = (Leaf("x", (4,)), Leaf("y", (2,)))
    point = torch.tensor([1.0, -2.0, 3.0, 0.0, 2.0, -1.0], dtype=torch.float64)
    b = torch.tensor([3.0, -1.0, 2.0, 0.5, 5.0, -4.0], dtype=torch.float64)
    a = torch.tensor([[(i * j + i + j) % 5 - 2.0 for j in range(6)] for i in range(6)], dtype=torch.float64)
    blocks = torch.tensor([0, 0, 0, 0, 1, 1])
    rows = torch.tensor([0, 1, 2, 3, 0, 1])

    def gradient(self) -> Tensor:
        return self.b + torch.mv(self.a, self.point)

    def __init__(self, estimator: Estimator, steps: int) -> None:
        keys = [k for t in range(steps) for k in keys_of(estimator, fold_in(7, t), t)]
        self.known: dict[int, Tensor] = dict(zip(keys, drawn(Dense(), keys, self.leaves).double(), strict=True))

    def moved(self, key: int, group: int | None, part: Part | None = None) -> Tensor:
        """[6]: a direction, in one group or in both, in a part of their rows or in all."""
        assert key in self.known, "a probe or a gradient is along a direction that is not one of the step's"
        z = self.known[key]
        z = z if group is None else torch.mul(z, self.blocks == group)
        return z if part is None else torch.mul(z, self.rows % part.of == part.first)

    def moves(self, found: ProjectedGradient) -> Tensor:
        """[coefficients, 6]: what each coefficient of a gradient is of."""
        parts = tuple(Part(i, found.parts) for i in range(found.parts)) or (None,)
        return torch.stack([self.moved(k, found.group, part) for k in found.keys for part in parts])

    def at(self, probe: Probe) -> float:
        x = self.point + probe.scale * self.moved(probe.key, probe.group, probe.part)
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
        yield found, torch.from_numpy(found.coefficients).double() @ hill.moves(found)


def check_estimator(estimator: Estimator, *, unbiased: bool, steps: int = 1000) -> None:
    """Laws 2, 7 and 8. `unbiased`: the mean of estimates is the gradient; else it points that way (cosine above 0.8)."""
    hill = _Hill(estimator, steps)
    samples = []
    for t, (found, estimate) in enumerate(_estimates(estimator, hill, steps)):
        assert found.coefficients.dtype == np.float32 and np.isfinite(found.coefficients).all()
        assert len(found.coefficients) == len(found.keys) * max(found.parts, 1) == count_at(estimator.counts, t)
        assert found.parts == estimator.parts
        assert found.keys == keys_of(estimator, fold_in(7, t), t)  # a journal stores coefficients only
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
        keys = keys_of(estimator, 9, t)
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
        keys = keys_of(estimator, 11, t)
        assert {p.key for p in probes} == set(keys)
        assert all(math.isfinite(p.scale) for p in probes)
