"""Law 5 of members: together they score what they score one after another."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zo_objectives.search.estimators import Probe
from zo_objectives.search.members import deviation
from zo_objectives.search.weights import Weights

BOUND = 1e-4  # of law 5 in float32: nats, or logits of a standard deviation above 1
Run = Callable[[int], Tensor]


def check_members(weights: Weights, probes: Sequence[Probe], rows: int, run: Run, bound: float = BOUND) -> None:
    """Law 5: `run(members)`, the model's outputs [members * rows, ...] on its rows repeated for each member, is the same
    together as one after another; members differ; and afterwards everything is as before. Raises AssertionError."""
    before, rest = {t.name: t.parameter.clone() for t in weights.tuned}, run(1)
    found = deviation(weights, probes, rows, run)
    assert found.largest <= bound, f"members together differ from those one after another: {found}"
    assert found.effect > 10 * bound, f"the probes hardly do anything: {found}"
    assert all(torch.equal(t.parameter, before[t.name]) for t in weights.tuned)
    assert torch.equal(run(1), rest)
