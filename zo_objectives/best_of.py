"""Best of N: random search with the forwards of a zeroth-order run, the least that one has to beat (RandOpt).

What zo spends on N forwards goes to perturbations theta + scale * d * z(key) of the same weights, with the same noise and
scale, scored by the same objective on training batches. It is successive halving (Jamieson & Talwalkar 2016, Algorithm 1)
with a factor of 4: every round keeps the best quarter of its members and shows them twice as many batches, all of them fresh
and the same for all members. So a round costs half of the one before, and about N / 2 perturbations are tried. The last few,
as many as zo looks at validation, go to validation; the best there is kept, or the start where none is better: then the
scale is wrong, or chance does not get hold of the task.
"""

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from zo_objectives.active_run import Clock, Run
from zo_objectives.building import Search, search_seed
from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError, SkipStep
from zo_objectives.failures import Skipping
from zo_objectives.results import Components, History, HistoryRow, ResultRow, write_atomically
from zo_objectives.scoring import Pool
from zo_objectives.search.estimators import Probe
from zo_objectives.search.keys import fold_in, root_key
from zo_objectives.search.weights import Weights
from zo_objectives.searching import Watched, finish, scores_at, searched
from zo_objectives.starts import FIRST, keep_best

FACTOR = 4  # of the members that meet in a round, one in so many goes on
FINALISTS = "finalists.csv"  # of a run: perturbation (from 1), its mean score in the last round, its score on validation


@dataclass(frozen=True)
class Round:
    """How many members meet, on how many batches each."""

    members: int
    batches: int

    @property
    def forwards(self) -> int:
        return self.members * self.batches


def rounds(members: int, finalists: int) -> tuple[Round, ...]:
    """The rounds that leave `finalists` of so many members; one round at the least."""
    found = [Round(members, 1)]
    while (left := -(-found[-1].members // FACTOR)) > finalists:
        found.append(Round(left, 2 * found[-1].batches))
    return tuple(found)


def plan(forwards: int, finalists: int) -> tuple[Round, ...]:
    """The rounds with the most members that cost at most so many forward passes. Raises InputError for none."""
    most = bisect_right(range(1, forwards + 1), forwards, key=lambda n: sum(r.forwards for r in rounds(n, finalists)))
    if not most:
        raise InputError("best-of-n has no forward pass to spend: give steps=1 or more.")
    return rounds(most, finalists)


def halving(planned: Sequence[Round], score: Callable[[Sequence[int], int], Sequence[float]]) -> Iterator[dict[int, float]]:
    """After each round its members, from 0, with their mean scores: the best first, and of equals the first.

    `score(members, batch)` gives one number each, nan for none; a member with no number at all is out.
    """
    left, batch = list(range(planned[0].members)), 0
    for now in planned:
        left = left[: now.members]
        seen = np.array([score(left, t) for t in range(batch, batch + now.batches)], dtype=np.float64)
        known = ~np.isnan(seen)
        means = np.where(known, seen, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        order = [int(i) for i in np.argsort(-means, kind="stable") if known[:, i].any()]
        left, batch = [left[i] for i in order], batch + now.batches
        yield dict(zip(left, means[order].tolist(), strict=True))


def probes(config: RunConfig, weights: Weights, members: Sequence[int]) -> list[Probe]:
    """Perturbations by their number from 0; each of one layer's tensors, in turn, where blocks=round-robin."""
    turns = weights.layers.count if config.blocks == "round-robin" and weights.layers else 0
    root = root_key(search_seed(config))
    return [Probe(fold_in(root, k), config.scale, k % turns if turns else None) for k in members]


class _Scores:
    """Scores of members on a batch, as many at a time as a step of zo has; nan where a failure is skipped."""

    def __init__(self, run: Run, search: Search) -> None:
        self.evaluate, self.weights, self.config = partial(scores_at, run, search.evaluation), search.weights, run.config
        self.width = run.config.model_copy(update={"growth": "constant"}).forwards(1)
        self.skipping, self.calls = Skipping(run.output / "skipped.jsonl", -1), 0
        self.made: list[float] = []

    def __call__(self, members: Sequence[int], batch: int) -> Sequence[float]:
        parts = [members[start : start + self.width] for start in range(0, len(members), self.width)]
        found = [score for part in parts for score in self._of(probes(self.config, self.weights, part), batch)]
        self.made += found
        return found

    def _of(self, part: Sequence[Probe], batch: int) -> Sequence[float]:
        self.calls += 1
        if self.config.on_failure == "stop":
            return self.evaluate(part, batch)
        try:
            return self.skipping.evaluator(lambda given, _: self.evaluate(given, batch))(part, self.calls - 1)
        except SkipStep:
            return [math.nan] * len(part)


def best_of_n(run: Run) -> list[ResultRow]:
    """Random search with `config.forwards(config.steps)` forwards; what it finds is a function of the seed."""
    return searched(run, _best_of)


def _best_of(run: Run, search: Search, pool: Pool) -> list[ResultRow]:
    config, scorer, headline = run.config, search.evaluation.scorer, run.bench.metrics[0]
    planned = plan(config.forwards(config.steps), config.evaluations)
    run.memory.restart()
    _, before = run.watch(scorer, [headline], run.bench.test)
    history, clock, scores = History(run.output / "history.csv", -1), Clock(), _Scores(run, search)
    history.append(HistoryRow(0, 0, 0, 0, 0.0, None, None, run.validation(scorer, headline)))
    begun = run.said or run.saying(scorer)
    run.note_start(history.rows[0].validation)
    if search.adaptive is not None:
        sizes = search.adaptive.measure(search.weights, scores.evaluate, 0, fold_in(root_key(search_seed(config)), 0))
        search.weights.resize(sizes.tolist())
    members, rows = _met(run, pool, planned, scores, clock)
    told = _looked_at(run, search, dict(list(members.items())[: config.evaluations]), history.rows[0].validation)
    best = max((value for *_, value in told if value is not None), default=None)
    for row in (*rows[:-1], replace(rows[-1], validation=best)):
        history.append(row)
    write_atomically(run.output / FINALISTS, _table(told))
    if (left_out := scores.skipping.note(scores.calls)) is not None:
        run.notes.append(left_out)
    if history.best is history.rows[0]:
        run.notes.append(
            f"None of {planned[0].members} random perturbations is better than the start on validation: the scale"
            f" ({config.scale:g}) is wrong, or chance does not get hold of the task."
        )
    looks = sum(value is not None for *_, value in told)
    return finish(run, search, pool, Watched(history, clock.seconds, before, begun, looks))


def _met(
    run: Run, pool: Pool, planned: Sequence[Round], scores: _Scores, clock: Clock
) -> tuple[Mapping[int, float], list[HistoryRow]]:
    """The members of the last round with their scores, best first, and a row of history for each round."""
    components, rows, members = Components(run.output / "components.csv", -1), list[HistoryRow](), dict[int, float]()
    with run.bar(len(planned), 0) as bar:
        clock.start()
        for number, members in enumerate(halving(planned, scores), 1):
            clock.stop()
            mean = float(np.mean(list(members.values()))) if members else None
            rows.append(HistoryRow(number, *pool.cost.spent, round(clock.seconds, 3), mean, None, None))
            components.append(number, [score for score in scores.made if not math.isnan(score)])
            scores.made = []
            bar.update()
            clock.start()
    return members, rows


def _looked_at(
    run: Run, search: Search, finalists: Mapping[int, float], best: float | None
) -> list[tuple[int, float, float | None]]:
    """(perturbation, score on train, on validation) of each; best.safetensors becomes the best, the start included."""
    weights, lm = search.weights, search.evaluation.scorer.pool.lm
    start = weights.state_dict()
    keep_best(run.output, lm, start)
    if run.config.guard is not None:
        keep_best(run.output, lm, start, FIRST)
    told = []
    for member, mean in finalists.items():
        (probe,) = probes(run.config, weights, [member])
        weights.load({name: values[0] for name, values in weights.stacked([probe]).items()})
        value = run.validation(search.evaluation.scorer, run.bench.metrics[0])
        if value is not None and (best is None or value > best):
            best = value
            keep_best(run.output, lm, weights.state_dict())
            run.best_said = run.said
        told.append((member + 1, mean, value))
        weights.load(start)
    return told


def _table(told: Sequence[tuple[int, float, float | None]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["perturbation", "score", "validation"])
    writer.writerows((n, score, "" if value is None else value) for n, score, value in told)
    return text.getvalue()
