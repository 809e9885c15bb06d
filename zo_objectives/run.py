"""One run: a method, a task, a model and a seed, in a folder of its own that can be left and taken up again."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from zo_objectives import probing
from zo_objectives.building import Search, batch_of, build_search, header_of, signal_of
from zo_objectives.config import HOW, RunConfig, dump, read_config
from zo_objectives.errors import InputError, RunError
from zo_objectives.failures import Skipping
from zo_objectives.language.examine import notes
from zo_objectives.language.objectives import Failure, Objective, scoring
from zo_objectives.language.outputs import Outputs
from zo_objectives.predictions import records
from zo_objectives.probing import START
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
from zo_objectives.search.journal import Journal
from zo_objectives.search.loop import climb
from zo_objectives.search.weights import Realised
from zo_objectives.workbench import Workbench

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

    def begin(self, pool: Pool) -> None:
        """Puts the run's start into the model: nothing, or the label rows of a linear probe, which are kept for replays."""
        if self.config.start == "base":
            return
        path, bench = self.output / START, self.bench
        bench.stale = True
        if not path.exists():
            save_weights(path, probing.label_rows(pool, bench.train, bench.validation, bench.metrics[0]))
        probing.put_rows(pool.lm, load_file(path))

    def headline(self, scorer: Scorer, metric: Objective) -> float:
        """What chooses: the first metric on validation."""
        return next(iter(self.watch(scorer, [metric], self.bench.validation)[0].values()))

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
        bench, config = self.bench, self.config
        pool = bench.fresh(config.tune)
        self.begin(pool)
        search = build_search(bench, pool, config)
        tail = isinstance(search.evaluation.scorer, TailScorer) and config.start == "base"
        base = search.weights.state_dict() if tail else None
        bench.stale = True  # until the base is back
        try:
            self.check_objective(search)
            return self._climb(search, pool)
        finally:
            if base is not None:
                search.weights.load(base)
                bench.stale = False

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
                    save_weights(self.output / "best.safetensors", search.weights.state_dict())
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

            if not history.rows:
                note(0, None, None, None, due=True)
            every = max(1, config.steps // config.evaluations)
            with self.bar(config.steps, len(log.records)) as bar:
                clock.start()
                evaluate = self.evaluator(search.evaluation)
                if config.on_failure == "skip-step":
                    evaluate = skipping.evaluator(evaluate)
                for step in climb(
                    search.weights,
                    search.estimator,
                    evaluate,
                    steps=config.steps,
                    seed=config.seed,
                    journal=log,
                    adaptive=search.adaptive,
                    watch=every,
                ):
                    clock.stop()
                    done = step.t + 1
                    due = done % every == 0 or done == config.steps
                    mean, ties = (None, None) if step.skipped else (float(np.mean(step.scores)), tie_rate(step.gradient))
                    components.append(done, step.scores)
                    note(done, mean, ties, step.realised, due)
                    best = history.best
                    bar.set_postfix(
                        batch="left out" if mean is None else f"{mean:.3f}",
                        best=f"{best.validation:.3f}" if best and best.validation is not None else "-",
                    )
                    bar.update()
                    clock.start()
        if (left_out := skipping.note(config.steps)) is not None:
            self.notes.append(left_out)
        return self.finish(search, pool, history, clock.seconds, before)

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

        def evaluate(probes: Sequence[Probe], t: int) -> Sequence[float]:
            return evaluation.scores(probes, batch_of(self.config.seed, self.config.batch, self.bench.train, t), t + 1)

        return evaluate

    def finish(self, search: Search, pool: Pool, history: History, seconds: float, before: Outputs) -> list[ResultRow]:
        if (best := history.best) is None:
            raise RunError("The objective failed whenever validation was looked at, so that no step can be chosen. Mend it.")
        search.weights.load(load_file(self.output / "best.safetensors"))
        spent = spent_so_far(pool)
        rows, after = self.measure(
            search.evaluation.scorer,
            spent,
            seconds,
            search.weights.count,
            best.step,
            search.evaluation.objective.name,
            self.config.tune,
        )
        self.save_predictions(before, after)
        return rows

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
        """Result rows of the weights as they are, on validation and test; the outputs on test."""
        bench, config, rows = self.bench, self.config, []
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
                        forwards=spent[0],
                        examples=spent[1],
                        tokens=spent[2],
                        seconds=round(seconds, 2),
                        peak_memory_mb=round(self.memory.read(), 1),
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


def save_weights(path: Path, values: dict[str, Tensor]) -> None:
    """Tuned tensors as safetensors, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    save_file({n: v.contiguous().cpu() for n, v in values.items()}, temporary)
    temporary.replace(path)


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


def execute(config: RunConfig, output: Path, *, bench: Workbench | None = None, show: bool = True) -> Path:
    """Runs `config` in folder `output`, or goes on with the run that is there; a finished run is left as it is.

    Returns the folder. Raises InputError for wrong input or a folder of another run, RunError where the run fails.
    """
    from zo_objectives.baselines import BASELINES

    make_folder(output)
    if begun(output):
        found = read_config(output)
        if differing := next((n for n in identity() if getattr(found, n) != getattr(config, n)), None):
            was, now = getattr(found, differing), getattr(config, differing)
            raise InputError(
                f"{output} holds another run: {differing} was {was!r} there, and is {now!r} now. Choose another --output."
            )
        if (output / "results.csv").exists():
            return output
    bench = bench if bench is not None and bench.serves(config) else Workbench.open(config)
    write_atomically(output / "config.yaml", dump(config))
    run = Run(bench, config, output, show=show)
    with torch.no_grad():
        rows = BASELINES[config.method](run) if config.method in BASELINES else run.zeroth_order()
    if run.notes:
        write_atomically(output / NOTES, "\n".join(run.notes) + "\n")
    run.save(rows)
    return output


def identity() -> list[str]:
    """The settings that make a run the run it is."""
    return [name for name in RunConfig.model_fields if name not in HOW]
