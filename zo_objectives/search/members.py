"""Members: the probes of a step, evaluated one after another, in one batch, or on several machines.

sequential     any geometry and any store: one probe after another
batched        low-rank noise: one forward pass computes many probes (see overlay.py)
distributed    torchrun: each rank takes a share of the probes, and only scores travel
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from zo_objectives.errors import InputError, RunError
from zo_objectives.search.estimators import Evaluator, Probe
from zo_objectives.search.operators import HANDLERS
from zo_objectives.search.overlay import CURE, Overlay, own_of
from zo_objectives.search.stores import ASKS
from zo_objectives.search.weights import Weights

WORDS = 8  # 32 bits each: a fingerprint as numbers that float64 holds exactly


@contextmanager
def members(weights: Weights, probes: Sequence[Probe], rows: int) -> Iterator[Overlay]:
    """While open, the model computes for len(probes) * rows rows, the first `rows` at the first probe and so on.

    No parameter is written, and noise is drawn once, on entering. Raises InputError where the model uses a tuned parameter
    in a way that members have no rule for, or does not use it in sight.
    """
    with weights.opened(), torch.no_grad():
        overlay = Overlay(own_of(weights, probes), len(probes), rows, HANDLERS, ASKS)
        names = [own.name for own in overlay.own.values()]
        with overlay:
            yield overlay
        if missed := [n for n in names if n not in overlay.used]:
            raise InputError(f"Members cannot be batched: the model did not use parameter {missed[0]!r} in sight. {CURE}")


def sequential(weights: Weights, score: Callable[[int], float]) -> Evaluator:
    """Visits one probe after another; `score(t)` runs the model on the batch of step t and looks at it as it likes."""

    def evaluate(probes: Sequence[Probe], t: int) -> list[float]:
        scores = []
        for probe in probes:
            with weights.at(probe):
                scores.append(score(t))
        return scores

    return evaluate


def batched(
    weights: Weights, score: Callable[[int, int], Sequence[float]], rows: int, limit: int | None = None
) -> Evaluator:
    """Up to `limit` probes at once, all where it is not given.

    `score(t, members)` runs the model on the `rows` rows of step t repeated for every member, the first member's first, and
    returns a score for each. Equal to `sequential` up to the order of sums (law 5; see overlay.py). Raises InputError where
    the noise or the model does not allow it, and RunError for another number of scores.
    """

    def evaluate(probes: Sequence[Probe], t: int) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(probes), limit or max(1, len(probes))):
            part = probes[start:][:limit]
            with members(weights, part, rows):
                found = list(score(t, len(part)))
            if len(found) != len(part):
                raise RunError(f"The score function gave {len(found)} scores for {len(part)} members in step {t}.")
            scores += found
        return scores

    return evaluate


def distributed(evaluate: Evaluator, weights: Weights, every: int = 100) -> Evaluator:
    """Shares the probes out among the ranks of torch.distributed: rank r of R evaluates probes[r::R].

    Ranks exchange a vector of float64 a call, with a fingerprint of the weights in it every `every` steps, and each returns
    all scores, so that all take the same step. Plain `evaluate` for one rank, or where no process group is initialised.
    Raises RunError on all ranks where `evaluate` fails on one, or where the weights of one differ.
    """

    def shared(probes: Sequence[Probe], t: int) -> Sequence[float]:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return evaluate(probes, t)
        rank, world = dist.get_rank(), dist.get_world_size()
        share, failure, scores = probes[rank::world], None, list[float]()
        try:
            scores = list(evaluate(share, t)) if share else []
            if len(scores) != len(share):
                raise RunError(f"The evaluator gave {len(scores)} scores for {len(share)} probes.")
        except Exception as error:  # whatever it is, the others must not wait for ever
            failure, scores = error, []
        words = _words(weights.fingerprint()) if t % every == 0 else [0.0] * WORDS
        padding = [0.0] * (-(-len(probes) // world) - len(scores))
        told = _gathered([float(failure is not None), *words, *scores, *padding])
        _check_ranks(told, rank, t, failure)
        return [told[i % world][1 + WORDS + i // world] for i in range(len(probes))]

    return shared


def _words(fingerprint: str) -> list[float]:
    return [float(int(fingerprint[i : i + 8], 16)) for i in range(0, 8 * WORDS, 8)]


def _gathered(numbers: Sequence[float]) -> list[list[float]]:
    """The float64 `numbers` of every rank, equally many on each."""
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    mine = torch.tensor(numbers, dtype=torch.float64, device=device)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return [part.tolist() for part in parts]


def _check_ranks(told: Sequence[Sequence[float]], rank: int, t: int, failure: Exception | None) -> None:
    if failure is not None:
        raise RunError(f"Rank {rank} failed in step {t}: {type(failure).__name__}: {failure}") from failure
    for other, numbers in enumerate(told):
        if numbers[0]:
            raise RunError(f"Rank {other} failed in step {t}; its own output says why. Nothing was applied.")
    for other, numbers in enumerate(told):
        if numbers[1 : 1 + WORDS] != told[0][1 : 1 + WORDS]:
            raise RunError(
                f"The weights of rank {other} differ from those of rank 0 in step {t}."
                " Give all ranks the same model, settings and versions, and go on from the journal."
            )


class Deviation(NamedTuple):
    """What members compute together against what they compute one after another, over all outputs."""

    error: float  # root mean square of the difference
    effect: float  # root mean square of what sets members apart
    size: float  # root mean square of the outputs
    largest: float  # the largest absolute difference


def deviation(weights: Weights, probes: Sequence[Probe], rows: int, run: Callable[[int], Tensor]) -> Deviation:
    """Law 5 as numbers. `run(members)` gives the outputs [members * rows, ...] of the rows, repeated for each member."""
    with members(weights, probes, rows):
        together = run(len(probes)).double()
    apart = []
    for probe in probes:
        with weights.at(probe):
            apart.append(run(1).double())
    alone = torch.stack(apart)
    difference = together.view_as(alone) - alone
    error, effect, size = (float(x.square().mean().sqrt()) for x in (difference, alone - alone.mean(0), alone))
    return Deviation(error, effect, size, float(difference.abs().max()))


def verify(weights: Weights, probes: Sequence[Probe], rows: int, run: Callable[[int], Tensor]) -> None:
    """Raises InputError where members together are not what they are one after another, as far as the dtype can tell.

    For models that nobody has tried: one that puts rows in another order is found out by nothing else. Small probes can be
    lost in rounding, so larger ones are tried too.
    """
    exact = all(t.parameter.dtype == torch.float32 for t in weights.tuned)
    share, nothing = (0.05, 1e-5) if exact else (0.4, 1e-2)
    for factor in (1.0, 8.0, 64.0):
        found = deviation(weights, [p._replace(scale=p.scale * factor) for p in probes], rows, run)
        if found.error <= share * found.effect:
            return
    if not found.error <= nothing * found.size:
        raise InputError(f"Members cannot be batched: this model computes something else for them together. {CURE}")
