"""What the search side's tests share: a small model, and ways to look at it and run it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hypothesis import settings
from numpy.typing import NDArray
from torch import Tensor, nn

from zo_objectives.search import rules, schedules
from zo_objectives.search.estimators import Probe, Spsa
from zo_objectives.search.geometry import Dense, Geometry, Leaf
from zo_objectives.search.journal import Header, Journal, Record
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.noise import Law
from zo_objectives.search.rules import UpdateRule
from zo_objectives.search.weights import Weights
from zo_objectives.testing import CPU, DTYPES, IDS, bits, drawn, score, tuned_names
from zo_objectives.testing import Toy as Tiny

FIXED = settings(derandomize=True, max_examples=30, deadline=None, database=None)
STORES = ("inference", "master")
LAWS = tuple(Law)
__all__ = ["CPU", "DTYPES", "IDS", "Tiny", "bits", "score", "tuned_names"]


def sgd(rate: float = 0.02, weight_decay: float = 0.01) -> UpdateRule:
    return rules.sgd(schedules.constant(rate), weight_decay)


def adam(rate: float = 0.02, weight_decay: float = 0.01) -> UpdateRule:
    return rules.adam(schedules.constant(rate), weight_decay)


RULES: dict[str, Callable[..., UpdateRule]] = {"sgd": sgd, "adam": adam}


def weights_of(
    model: nn.Module, store: str = "inference", geometry: Geometry | None = None, rule: UpdateRule | None = None
) -> Weights:
    return Weights(model, tuned_names(model), geometry=geometry or Dense(), rule=rule or sgd(), store=store)


def header_of(weights: Weights, seed: int = 3, directions: int = 2) -> Header:
    return {"seed": seed, "directions": directions, "base": weights.fingerprint(), "config": {"a": {"b": 1}}}


def run(weights: Weights, model: nn.Module, path: Path, steps: int, directions: int = 2) -> list[tuple[float, ...]]:
    """Climbs, or goes on, with the journal at `path`; the scores of the steps that this call took.

    `weights` must be as the run began, as they are in a new process.
    """
    evaluate = sequential(weights, lambda t: score(model, t))
    estimator = Spsa(0.1, directions)
    with Journal.open(path, header_of(weights, directions=directions)) as journal:
        return [s.scores for s in climb(weights, estimator, evaluate, steps=steps, seed=3, journal=journal)]


def seen_by_modules(weights: Weights, model: nn.Module, probe: Probe) -> list[tuple[str, Tensor]]:
    """(tuned name, what a holder of it computed with at `probe`) for every module that holds a tuned tensor."""
    seen: list[tuple[str, Tensor]] = []

    def look(name: str, attribute: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.append((name, module._parameters[attribute].detach().clone()))

    handles = [
        module.register_forward_hook(look(entry.name, attribute))  # runs before the store's own, which is younger
        for entry in weights.tuned
        for module, attribute in entry.owners
    ]
    with weights.at(probe):
        model(IDS)
    for handle in handles:
        handle.remove()
    return seen


def records(values: NDArray[np.float32]) -> list[Record]:
    """Steps of a journal from coefficients [steps, directions]."""
    return [Record(row) for row in values]


def coefficients(found: Sequence[Record]) -> NDArray[np.float32]:
    """[steps, directions]: the coefficients of steps that have nothing else."""
    assert not any(len(r.memory) or len(r.sizes) for r in found)
    return np.stack([r.coefficients for r in found]) if found else np.zeros((0, 2), dtype=np.float32)


def correlation(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).mean())


def concatenated(geometry: Geometry, keys: Sequence[int], sizes: dict[str, int]) -> Tensor:
    """[len(keys), all elements]: the directions in several tensors side by side."""
    return drawn(geometry, keys, [Leaf(name, (size,)) for name, size in sizes.items()])
