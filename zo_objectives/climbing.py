"""A zeroth-order climb in a run's folder: each step journaled and noted, validation looked at now and then."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zo_objectives import starts
from zo_objectives.active_run import Clock, Run
from zo_objectives.building import Search, build_search, header_of, search_seed
from zo_objectives.failures import Skipping
from zo_objectives.results import Components, History, HistoryRow, ResultRow, last_step
from zo_objectives.scoring import Pool
from zo_objectives.search.estimators import Probe, tie_rate
from zo_objectives.search.journal import Journal, memory_of
from zo_objectives.search.loop import Step, climb
from zo_objectives.search.pace import PATIENCE, state_of
from zo_objectives.search.weights import Realised
from zo_objectives.searching import Watched, finish, scores_at, searched
from zo_objectives.settling import settled
from zo_objectives.starts import FIRST

FLAT = (
    "It stopped at step {done} of {steps}: all pairs tied for {patience} steps, though probes went {width:g} times as far"
    " and batches were of {batch} or all examples. The objective is flat here. `zo-objectives probe` says at what scale it"
    " is not; `mezo-ce+zo` comes to it by way of the loss; expected_accuracy and its like are never flat."
)


def zeroth_order(run: Run) -> list[ResultRow]:
    """Climbs, keeps the best weights on validation, and measures them."""
    return searched(run, _climbed if run.config.settle == "given" else _settled)


def _settled(run: Run, search: Search, pool: Pool) -> list[ResultRow]:
    """The same with settings from a survey."""
    given = run.config
    found = settled(given, search, run.bench.train, run.output)
    run.config = found.of(given)
    run.notes.append(f"Settled by a survey: {found.told}")
    return _climbed(run, build_search(run.bench, pool, run.config, run.output), pool)


def _climbed(run: Run, search: Search, pool: Pool) -> list[ResultRow]:
    run.memory.restart()
    known = last_step(run.output / "history.csv")
    with Journal.open(run.output / "journal.zoj", header_of(run.config, search, run.bench), at_most=known) as log:
        climbing = _Climb(run, search, pool, log)
        climbing.begin()
        climbing.go_on()
    return climbing.finish()


class _Climb:
    """The climb from where its journal ends, and what it writes beside it."""

    def __init__(self, run: Run, search: Search, pool: Pool, log: Journal) -> None:
        self.run, self.search, self.pool, self.log = run, search, pool, log
        self.scorer, self.headline, taken = search.evaluation.scorer, run.bench.metrics[0], len(log.records)
        _, self.before = run.watch(self.scorer, [self.headline], run.bench.test)
        self.history = History(run.output / "history.csv", taken)
        self.skipping = Skipping(run.output / "skipped.jsonl", taken)
        self.components = Components(run.output / "components.csv", taken)
        self.clock, self.pace = Clock(), state_of(search.estimator, memory_of(log.records))
        self.every = max(1, -(-run.config.steps // run.config.evaluations))
        if self.history.rows:
            last = self.history.rows[-1]
            self.clock.seconds = last.seconds
            pool.cost.charge(last.forwards, last.examples, last.tokens)

    def begin(self) -> None:
        """Looks at the start, and keeps it for the guard."""
        if self.run.config.guard is not None:
            starts.keep_best(self.run.output, self.pool.lm, self.search.weights.state_dict(), FIRST)
        if not self.history.rows:
            self._note(0, None, None, None, due=True)
        self.begun = self.run.said or self.run.saying(self.scorer)

    def go_on(self) -> None:
        """The loop, to the last step or until nothing helps."""
        steps = self.run.config.steps
        with self.run.bar(steps, len(self.log.records)) as bar:
            self.clock.start()
            for step in self._steps(0 if self.pace.hopeless else steps):
                self.clock.stop()
                done, self.pace = step.t + 1, state_of(self.search.estimator, step.memory)
                mean, ties = (None, None) if step.skipped else (float(np.mean(step.scores)), tie_rate(step.gradient))
                self.components.append(done, step.scores)
                self._note(
                    done, mean, ties, step.realised, due=done % self.every == 0 or done == steps or self.pace.hopeless
                )
                self._show(bar, mean)
                if self.pace.hopeless:
                    break
                self.clock.start()

    def finish(self) -> list[ResultRow]:
        """Result rows of what is kept, and notes of what a reader should know."""
        run, rows = self.run, self.history.rows
        if self.pace.hopeless:
            run.notes.append(self._flat())
        run.note_start(rows[0].validation)
        if (left_out := self.skipping.note(run.config.steps)) is not None:
            run.notes.append(left_out)
        looks = sum(row.validation is not None for row in rows[1:])
        return finish(run, self.search, self.pool, Watched(self.history, self.clock.seconds, self.before, self.begun, looks))

    def _steps(self, steps: int) -> Iterator[Step]:
        skips = self.run.config.on_failure == "skip-step"
        return climb(
            self.search.weights,
            self.search.estimator,
            self.skipping.evaluator(self._scores) if skips else self._scores,
            steps=steps,
            seed=search_seed(self.run.config),
            journal=self.log,
            adaptive=self.search.adaptive,
            watch=self.every,
        )

    def _scores(self, probes: Sequence[Probe], t: int) -> Sequence[float]:
        return scores_at(self.run, self.search.evaluation, probes, t, self.pace.growth)

    def _note(self, step: int, objective: float | None, ties: float | None, realised: Realised | None, *, due: bool) -> None:
        """A row of history; where a look at validation is due and finds the best so far, its weights are kept first."""
        score, best = self.run.validation(self.scorer, self.headline) if due else None, self.history.best
        if score is not None and (best is None or best.validation is None or score > best.validation):
            self.log.sync()
            starts.keep_best(self.run.output, self.pool.lm, self.search.weights.state_dict())
            self.run.best_said = self.run.said
        spent, seconds = self.pool.cost.spent, round(self.clock.seconds, 3)
        kept = (realised.applied_frac, realised.cosine) if realised else (None, None)
        self.history.append(HistoryRow(step, *spent, seconds, objective, ties, score, *kept))

    def _show(self, bar: Any, mean: float | None) -> None:
        best = self.history.best
        bar.set_postfix(
            batch="left out" if mean is None else f"{mean:.3f}",
            best=f"{best.validation:.3f}" if best and best.validation is not None else "-",
        )
        bar.update()

    def _flat(self) -> str:
        """That the search gave up, and what may help."""
        config, pace = self.run.config, self.pace
        return FLAT.format(
            done=self.history.rows[-1].step,
            steps=config.steps,
            patience=PATIENCE,
            width=pace.width,
            batch=config.batch * pace.growth,
        )
