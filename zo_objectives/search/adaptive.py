"""Where layer sizes come from: MeZO's appendix B, with what made it collapse mended.

Sizes come from parameter norms, from zeroth-order gradient norms (Proposition 1, but the root mean square over several
directions: a single one is ten times too small in 8 % of draws, and its inverse is a leap) or from a backprop gradient where
the objective has one. They are floored, brought to geometric mean 1, and measured once, every so many steps, or as a moving
average. The journal keeps them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zo_objectives.errors import InputError
from zo_objectives.search.estimators import Evaluator, Probe, scores_of
from zo_objectives.search.keys import fold_in
from zo_objectives.search.layers import Layers
from zo_objectives.search.weights import Weights

Sizes = NDArray[np.float64]
Source = Callable[[Weights, Evaluator, int, int], Sizes]
"""(weights at rest, evaluator, step, key) -> a norm for each group."""

NORM_STREAM = 0x4E4F524D  # folded into a step's key: directions that measure are not those that step


def normalised(norms: Sizes, floor: float = 0.1) -> NDArray[np.float32]:
    """Sizes d from norms: at least `floor` of the largest, and of geometric mean 1. All 1 where no norm says anything."""
    if not np.all(np.isfinite(norms)) or not norms.max(initial=0.0) > 0:
        return np.ones(len(norms), dtype=np.float32)
    d = np.maximum(norms / norms.max(), floor)
    found: NDArray[np.float32] = (d / np.exp(np.log(d).mean())).astype(np.float32)
    return found


@dataclass(frozen=True)
class Adaptive:
    """When sizes are measured and what from: every `every` steps (only before the first for 0).

    `average` is the share of the old sizes that stays, in the logarithm, so that the geometric mean stays 1.
    """

    source: Source
    every: int = 0
    average: float = 0.0
    floor: float = 0.1

    def due(self, t: int) -> bool:
        return t % self.every == 0 if self.every else t == 0

    def measure(self, weights: Weights, evaluate: Evaluator, t: int, key: int) -> NDArray[np.float32]:
        """New sizes, [groups]."""
        fresh = normalised(self.source(weights, evaluate, t, fold_in(key, NORM_STREAM)), self.floor)
        if t == 0 or not self.average:
            return fresh
        kept = self.average * np.log(weights.sizes.astype(np.float64))
        return np.exp(kept + (1 - self.average) * np.log(fresh.astype(np.float64))).astype(np.float32)


def _by_group(weights: Weights, squares: Mapping[str, float]) -> Sizes:
    layers = _layers(weights)
    total = np.zeros(layers.count)
    for name, square in squares.items():
        total[layers.groups[name]] += square
    return np.sqrt(total)


def _layers(weights: Weights) -> Layers:
    if weights.layers is None:
        raise InputError("Layer sizes need weights with layers: Weights(..., layers=by_layer(names)).")
    return weights.layers


def parameter_norms(weights: Weights, evaluate: Evaluator, t: int, key: int) -> Sizes:
    """The Euclidean norm of each group's weights (MeZO, Table 9). No forward pass."""
    return _by_group(weights, {n: float(v.double().square().sum()) for n, v in weights.state_dict().items()})


def zeroth_order_norms(scale: float, directions: int = 8) -> Source:
    """Gradient norms from 2 * directions forwards a group (MeZO, Proposition 1, as a root mean square over directions).

    E <gradient, z>**2 is the squared norm for every z with E[z z^T] = I. Probes are at `scale`
    times the geometry's own gains, and the norm is of the gradient in those units.
    """

    def source(weights: Weights, evaluate: Evaluator, t: int, key: int) -> Sizes:
        count = _layers(weights).count
        keys = [[fold_in(fold_in(key, group), k) for k in range(directions)] for group in range(count)]
        probes = [Probe(k, s * scale, group) for group in range(count) for k in keys[group] for s in (1.0, -1.0)]
        old = weights.sizes
        weights.resize([1.0] * count)
        try:
            scores = np.array(scores_of(evaluate, probes, t)).reshape(count, directions, 2)
        finally:
            weights.resize(old.tolist())
        slopes = (scores[..., 0] - scores[..., 1]) / (2 * scale)
        found: Sizes = np.sqrt(np.mean(slopes**2, axis=1))
        return found

    return source


def backprop_norms(loss: Callable[[int], Tensor]) -> Source:
    """Gradient norms by one backward pass through `loss(step)`, a scalar tensor that depends on the weights."""

    def source(weights: Weights, evaluate: Evaluator, t: int, key: int) -> Sizes:
        parameters = [entry.parameter for entry in weights.tuned]
        wanted = [p.requires_grad for p in parameters]
        try:
            for p in parameters:
                p.requires_grad_(True)
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(t), parameters, allow_unused=True)
        finally:
            for p, before in zip(parameters, wanted, strict=True):
                p.requires_grad_(before)
        squares = (0.0 if g is None else float(g.double().square().sum()) for g in gradients)
        return _by_group(weights, dict(zip(weights.tuned_names, squares, strict=True)))

    return source
