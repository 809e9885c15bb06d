"""One run: a method, a task, a model and a seed, in a folder of its own that can be left and taken up again."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from zo_objectives import selection, starts
from zo_objectives.adapters import ADAPTERS, forms, virtual_in
from zo_objectives.building import Search, batch_of, build_search, header_of, search_seed, signal_of
from zo_objectives.config import RunConfig, difference, dump, identity, read_config
from zo_objectives.errors import InputError, RunError
from zo_objectives.failures import Skipping
from zo_objectives.handover import handed_over
from zo_objectives.language.examine import notes
from zo_objectives.language.objectives import Failure, Objective, scoring
from zo_objectives.language.outputs import Outputs
from zo_objectives.predictions import records
from zo_objectives.results import (
    Components,
    History,
    HistoryRow,
    PeakMemory,
    ResultRow,
    jsonl,
    last_step,
    make_folder,
    to_csv,
    write_atomically,
)
from zo_objectives.scoring import Evaluation, Indices, Kind, Pool, Scorer, TailScorer, kind_for
from zo_objectives.search import journal
from zo_objectives.search.estimators import Evaluator, Probe, tie_rate
from zo_objectives.search.journal import Journal, memory_of
from zo_objectives.search.loop import climb
from zo_objectives.search.pace import PATIENCE, State, state_of
from zo_objectives.search.weights import Realised
from zo_objectives.selection import Look, Selection
from zo_objectives.settling import settled
from zo_objectives.starts import BEST, FIRST, Start
from zo_objectives.workbench import Workbench

FLAT = (
    "It stopped at step {done} of {steps}: all pairs tied for {patience} steps, though probes went {width:g} times as far"
    " and batches were of {batch} or all examples. The objective is flat here. `zo-objectives probe` says at what scale it"
    " is not; `mezo-ce+zo` comes to it by way of the loss; expected_accuracy and its like are never flat."
)
NOTES = "notes.txt"  # what a reader of a run's results should know


@dataclass
class Clock:
    """Seconds spent training: evaluation on validation and test is watching, and is not counted."""

    seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._since


class Run:
    """A run's folder while it is being written."""

    def __init__(self, bench: Workbench, config: RunConfig, output: Path, *, show: bool) -> None:
        self.bench, self.config, self.output, self.show = bench, config, output, show
        self.memory = PeakMemory()
        self.notes = list(bench.notes)  # what a reader of the results should know
        self.pace = State()
        self.start: Start | None = starts.start_of(output) if config.before else None  # None: the base
        self.said: Outputs | None = None  # at the last look at validation
        self.best_said: Outputs | None = None  # at the best since the start, in this process

    @contextmanager
    def bar(self, total: int, initial: int) -> Iterator[Any]:
        name = f"{self.config.task} {self.config.called} seed {self.config.seed}"
        with tqdm(
            total=total,
            initial=initial,
            desc=name,
            unit="step",
            disable=None if self.show else True,  # None: off where the output is no terminal
            dynamic_ncols=True,
            leave=False,
        ) as bar:
            yield bar

    def watch(self, scorer: Scorer, metrics: list[Objective], indices: Indices) -> tuple[dict[str, float], Outputs]:
        """Every metric on some examples, and what the headline metric looked at."""
        examples, seen, values = scorer.pool.at(indices), dict[Kind, Outputs](), {}
        with scoring(steps=self.config.steps, tokenize=scorer.pool.tokenize):
            for metric in metrics:
                evaluation = Evaluation(scorer, metric)
                if evaluation.kind not in seen:
                    seen[evaluation.kind] = evaluation.at_rest(indices)
                values[metric.name] = metric(seen[evaluation.kind], examples)
            if self.config.pass_at is not None:
                passing = Evaluation(scorer, metrics[0], self.config.steps, signal_of(self.config))
                values = {f"pass@{self.config.pass_at}": float(passing.value(indices)), **values}
        return values, seen[kind_for(scorer.pool.spec, metrics[0])]

    def note_start(self, score: float | None) -> None:
        """Notes where the score on validation at the start is not what the run before ended with, and why."""
        was, before = self.start.ended if self.start else None, self.config.before
        if not was or not before or score is None or was.metric != self.bench.metrics[0].name:
            return
        if abs(score - was.validation) > 1e-9:
            why = "scores differ in the last digits, or it read other examples"
            if virtual_in(self.config.tuned):
                why = "virtual tokens stand before the text"
            elif self.config.dtype != "float32" and "lora" in [form for form, _ in forms(before.tuned)]:
                why = f"LoRA's products were rounded to {self.config.dtype} when they were merged"
            told = f"It begins at {score:.4f} on validation, where {before.called} ended at {was.validation:.4f}"
            self.notes.append(f"{told}: {why}.")

    def headline(self, scorer: Scorer, metric: Objective) -> float:
        """What chooses: the first metric on validation."""
        values, self.said = self.watch(scorer, [metric], self.bench.validation)
        return next(iter(values.values()))

    def saying(self, scorer: Scorer) -> Outputs:
        """What the headline metric would look at on validation."""
        return Evaluation(scorer, self.bench.metrics[0]).at_rest(self.bench.validation)

    def select(self, scorer: Scorer, start: Look, best: Look, *, looks: int, steps: int) -> Selection:
        """The choice between the start and the best of so many later looks, written down and noted."""
        metric, examples = self.bench.metrics[0], scorer.pool.at(self.bench.validation)
        with scoring(steps=self.config.steps, tokenize=scorer.pool.tokenize):
            found = selection.select(self.config, metric, start, best, examples, looks=looks, steps=steps)
        selection.write(self.output, found)
        self.notes += found.notes
        return found

    def check_objective(self, search: Search) -> None:
        """Scores a few examples before anything is spent, so that a failing callable is wrong input, not a failed run.

        What is odd about it becomes a note.
        """
        few, evaluation = self.bench.train[: min(8, len(self.bench.train))], search.evaluation
        outputs, examples = evaluation.at_rest(few), evaluation.scorer.pool.at(few)
        with scoring(steps=self.config.steps, tokenize=evaluation.scorer.pool.tokenize):
            try:
                self.notes += notes(evaluation.objective, outputs, examples)
            except RunError as error:
                if self.config.on_failure == "stop":
                    raise InputError(f"{error} Nothing was run; mend the function and try again.") from error

    def zeroth_order(self) -> list[ResultRow]:
        """Climbs, keeps the best weights on validation, and measures them."""
        return self.searched(self._climb if self.config.settle == "given" else self._settled)

    def _settled(self, search: Search, pool: Pool) -> list[ResultRow]:
        """The same with settings from a survey."""
        given, bench = self.config, self.bench
        found = settled(given, search, bench.train, self.output)
        self.config = found.of(given)
        self.notes.append(f"Settled by a survey: {found.told}")
        return self._climb(build_search(bench, pool, self.config, self.output), pool)

    def searched(self, how: Callable[[Search, Pool], list[ResultRow]]) -> list[ResultRow]:
        """What `how` finds from the start on, in weights that are tuned; whoever comes next finds the base again."""
        bench, config = self.bench, self.config
        pool = bench.fresh(config.tune, self.start)
        search = build_search(bench, pool, config, self.output)
        tail = isinstance(search.evaluation.scorer, TailScorer) and bench.replaced is not None
        base = search.weights.state_dict() if tail else None
        bench.stale = True  # until the base is back
        try:
            self.check_objective(search)
            return how(search, pool)
        finally:
            if base is not None:
                search.weights.load(base)
                bench.give_back()

    def _climb(self, search: Search, pool: Pool) -> list[ResultRow]:
        bench, config, scorer = self.bench, self.config, search.evaluation.scorer
        headline = bench.metrics[:1]
        self.memory.restart()
        known = last_step(self.output / "history.csv")
        with Journal.open(self.output / "journal.zoj", header_of(config, search, bench), at_most=known) as log:
            _, before = self.watch(scorer, headline, bench.test)
            history = History(self.output / "history.csv", len(log.records))
            skipping = Skipping(self.output / "skipped.jsonl", len(log.records))
            components = Components(self.output / "components.csv", len(log.records))
            clock = Clock(history.rows[-1].seconds if history.rows else 0.0)
            last = history.rows[-1] if history.rows else None
            if last is not None:
                pool.cost.charge(last.forwards, last.examples, last.tokens)

            def note(step: int, objective: float | None, ties: float | None, realised: Realised | None, due: bool) -> None:
                score = self.validation(scorer, headline[0]) if due else None
                best = history.best
                if score is not None and (best is None or best.validation is None or score > best.validation):
                    log.sync()
                    starts.keep_best(self.output, pool.lm, search.weights.state_dict())
                    self.best_said = self.said
                history.append(
                    HistoryRow(
                        step,
                        pool.cost.forwards,
                        pool.cost.examples,
                        pool.cost.tokens,
                        round(clock.seconds, 3),
                        objective,
                        ties,
                        score,
                        realised.applied_frac if realised else None,
                        realised.cosine if realised else None,
                    )
                )

            if config.guard is not None:
                starts.keep_best(self.output, pool.lm, search.weights.state_dict(), FIRST)
            if not history.rows:
                note(0, None, None, None, due=True)
            begun = self.said or self.saying(scorer)
            every = max(1, config.steps // config.evaluations)
            with self.bar(config.steps, len(log.records)) as bar:
                clock.start()
                evaluate = self.evaluator(search.evaluation)
                if config.on_failure == "skip-step":
                    evaluate = skipping.evaluator(evaluate)
                self.pace = state_of(search.estimator, memory_of(log.records))
                for step in climb(
                    search.weights,
                    search.estimator,
                    evaluate,
                    steps=0 if self.pace.hopeless else config.steps,
                    seed=search_seed(config),
                    journal=log,
                    adaptive=search.adaptive,
                    watch=every,
                ):
                    clock.stop()
                    done = step.t + 1
                    self.pace = state_of(search.estimator, step.memory)
                    due = done % every == 0 or done == config.steps or self.pace.hopeless
                    mean, ties = (None, None) if step.skipped else (float(np.mean(step.scores)), tie_rate(step.gradient))
                    components.append(done, step.scores)
                    note(done, mean, ties, step.realised, due)
                    best = history.best
                    bar.set_postfix(
                        batch="left out" if mean is None else f"{mean:.3f}",
                        best=f"{best.validation:.3f}" if best and best.validation is not None else "-",
                    )
                    bar.update()
                    if self.pace.hopeless:
                        break
                    clock.start()
            if self.pace.hopeless:
                self.notes.append(
                    FLAT.format(
                        done=history.rows[-1].step,
                        steps=config.steps,
                        patience=PATIENCE,
                        width=self.pace.width,
                        batch=config.batch * self.pace.growth,
                    )
                )
        self.note_start(history.rows[0].validation)
        if (left_out := skipping.note(config.steps)) is not None:
            self.notes.append(left_out)
        looks = sum(row.validation is not None for row in history.rows[1:])
        return self.finish(search, pool, history, clock.seconds, before, begun, looks)

    def validation(self, scorer: Scorer, metric: Objective) -> float | None:
        """The headline metric on validation; None where it failed and failures are skipped."""
        try:
            return self.headline(scorer, metric)
        except Failure:
            if self.config.on_failure == "stop":
                raise
            return None

    def evaluator(self, evaluation: Evaluation) -> Evaluator:
        """The bridge: probes and a step's number to scores, on a batch that depends on seed and step alone."""
        seed = search_seed(self.config)

        def evaluate(probes: Sequence[Probe], t: int) -> Sequence[float]:
            size = self.config.batch * self.pace.growth
            return evaluation.scores(probes, batch_of(seed, size, self.bench.train, t), t + 1)

        return evaluate

    def finish(
        self, search: Search, pool: Pool, history: History, seconds: float, before: Outputs, begun: Outputs, looks: int
    ) -> list[ResultRow]:
        """Result rows of what is kept, of the best step or the start, which said `before` on test, `begun` on validation."""
        if (best := history.best) is None:
            raise RunError("The objective failed whenever validation was looked at, so that no step can be chosen. Mend it.")
        step = self.keep(search, history, best, begun, looks)
        spent = spent_so_far(pool)
        rows, after = self.measure(
            search.evaluation.scorer,
            spent,
            seconds,
            search.weights.count,
            step,
            search.evaluation.objective.name,
            self.config.tune,
        )
        self.save_predictions(before, after)
        return rows

    def keep(self, search: Search, history: History, best: HistoryRow, begun: Outputs, looks: int) -> int:
        """The step that is kept; its weights are put in, and are the best ones from now on."""
        steps, found = history.rows[-1].step, selection.read(self.output)
        search.weights.load(load_file(self.output / BEST))
        if found and (found.best_step, found.best, found.steps) == (best.step, best.validation, steps):
            self.notes += found.notes  # it was interrupted after that, and BEST may be the start
        else:
            scorer, start = search.evaluation.scorer, Look(0, history.rows[0].validation, begun)
            last = Look(best.step, best.validation, self.best_said or self.saying(scorer))
            found = self.select(scorer, start, last, looks=looks, steps=steps)
        first = self.output / FIRST
        if found.step == best.step:
            first.unlink(missing_ok=True)
        else:
            first.replace(self.output / BEST)
            search.weights.load(load_file(self.output / BEST))
        return found.step

    def measure(
        self,
        scorer: Scorer,
        spent: tuple[int, int, int],
        seconds: float,
        parameters: int,
        best_step: int | None,
        objective: str,
        tune: str,
    ) -> tuple[list[ResultRow], Outputs]:
        """Result rows of the weights as they are, on validation and test; the outputs on test.

        What `spent` (forwards, examples, tokens) and `seconds` say of this run, rows say of its whole chain.
        """
        bench, config, rows = self.bench, self.config, []
        was = self.start.ended if self.start else None
        forwards, examples, tokens = (a + b for a, b in zip(spent, was.spent if was else (0, 0, 0), strict=True))
        outputs: Outputs | None = None
        for split, indices in (("validation", bench.validation), ("test", bench.test)):
            values, outputs = self.watch(scorer, bench.metrics, indices)
            for metric, value in values.items():
                rows.append(
                    ResultRow(
                        task=bench.spec.task,
                        model=model_name(config.model),
                        method=config.called,
                        objective=objective,
                        tune=tune,
                        seed=config.seed,
                        split=split,
                        metric=metric,
                        value=value,
                        n=len(indices),
                        forwards=forwards,
                        examples=examples,
                        tokens=tokens,
                        seconds=round(seconds + (was.seconds if was else 0.0), 2),
                        peak_memory_mb=round(max(self.memory.read(), was.peak_memory_mb if was else 0.0), 1),
                        parameters=parameters,
                        best_step=best_step,
                        dtype=config.dtype + (" autocast" if config.method == "ft" and config.ft.autocast else ""),
                    )
                )
        assert outputs is not None
        return rows, outputs

    def save_predictions(self, before: Outputs, after: Outputs) -> None:
        with scoring(steps=self.config.steps, tokenize=self.bench.pool.tokenize):
            rows = records(self.bench.splits.test, before, after, self.bench.metrics[0])
        write_atomically(self.output / "predictions.jsonl", jsonl(rows))

    def save(self, rows: list[ResultRow]) -> None:
        write_atomically(self.output / "results.csv", to_csv(rows, ResultRow))


def spent_so_far(pool: Pool) -> tuple[int, int, int]:
    """Forward passes, examples and tokens charged until now."""
    return pool.cost.forwards, pool.cost.examples, pool.cost.tokens


def model_name(name: str) -> str:
    """A model's public name: the last part of a folder's path, or the whole name on the hub."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def begun(folder: Path) -> bool:
    """Whether anything worth keeping was written to a run's folder. Raises InputError for a half-written one."""
    if not any((folder / name).exists() for name in ("journal.zoj", "history.csv", "results.csv")):
        return False
    if not (folder / "config.yaml").exists():
        raise InputError(f"{folder} is a half-written run folder without config.yaml. Remove it or choose another --output.")
    path = folder / "journal.zoj"
    if path.exists() and not (folder / "history.csv").exists() and len(journal.read(path)[1]):
        raise InputError(
            f"{folder} has steps in its journal but no history.csv. Restore that file or choose another --output."
        )
    return True


Earlier = Callable[[RunConfig, Path], Path]  # where the run is that a run in a folder begins with


def inside(before: RunConfig, output: Path) -> Path:
    """The run before in the folder of the one that begins where it ends."""
    return output / "before"


def execute(
    config: RunConfig, output: Path, *, bench: Workbench | None = None, show: bool = True, earlier: Earlier = inside
) -> Path:
    """Runs `config` in folder `output`, or goes on with the run that is there; a finished run is left as it is.

    A run before it, which `earlier` says the place of, comes first; what it ends with is kept in `output`. Returns the
    folder. Raises InputError for wrong input or a folder of another run, RunError where the run fails.
    """
    from zo_objectives.baselines import BASELINES

    starts.check(config)
    make_folder(output)
    if begun(output):
        if differing := difference(identity(read_config(output)), identity(config)):
            name, was, now = differing
            raise InputError(
                f"{output} holds another run: {name} was {was!r} there, and is {now!r} now. Choose another --output."
            )
        if (output / "results.csv").exists():
            return output
    if bench is None or not bench.serves(config):
        bench = Workbench.open(config, bench.own if bench is not None else None)
    write_atomically(output / "config.yaml", dump(config))
    if config.before is not None and not starts.is_kept(output, config.before):
        place = earlier(config.before, output)
        execute(config.before, place, bench=bench, show=show, earlier=earlier)
        keep_start(config.before, place, output, bench)
    selection.check(config, bench.metrics[0])
    run = Run(bench, config, output, show=show)
    with torch.no_grad():
        rows = BASELINES[config.method](run) if config.method in BASELINES else run.zeroth_order()
    if run.notes:
        write_atomically(output / NOTES, "\n".join(run.notes) + "\n")
    run.save(rows)
    return output


def keep_start(before: RunConfig, place: Path, output: Path, bench: Workbench) -> None:
    """Keeps in `output` what the finished run `before` in `place` ended with."""
    pool = bench.fresh()
    bench.stale = any(form in ADAPTERS for form, _ in forms(before.tuned))  # they are merged into this model
    starts.keep_start(output, handed_over(pool, place, before), before, starts.ended(place))
