"""A run while it is under way: what every method does with its folder, its metrics and its splits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from zo_objectives import selection, starts
from zo_objectives.adapters import forms, virtual_in
from zo_objectives.building import Search, signal_of
from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError, RunError
from zo_objectives.language.examine import notes
from zo_objectives.language.objectives import Failure, Objective, scoring
from zo_objectives.language.outputs import Outputs
from zo_objectives.predictions import records
from zo_objectives.results import PeakMemory, ResultRow, jsonl, to_csv, write_atomically
from zo_objectives.scoring import Evaluation, Indices, Kind, Scorer, kind_for
from zo_objectives.selection import Look, Selection
from zo_objectives.starts import Start
from zo_objectives.workbench import Workbench


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

    def validation(self, scorer: Scorer, metric: Objective) -> float | None:
        """The headline metric on validation; None where it failed and failures are skipped."""
        try:
            return self.headline(scorer, metric)
        except Failure:
            if self.config.on_failure == "stop":
                raise
            return None

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
        bench, config, rows = self.bench, self.config, list[ResultRow]()
        was = self.start.ended if self.start else None
        forwards, examples, tokens = (a + b for a, b in zip(spent, was.spent if was else (0, 0, 0), strict=True))
        row = partial(
            ResultRow,
            task=bench.spec.task,
            model=model_name(config.model),
            method=config.called,
            objective=objective,
            tune=tune,
            seed=config.seed,
            forwards=forwards,
            examples=examples,
            tokens=tokens,
            seconds=round(seconds + (was.seconds if was else 0.0), 2),
            parameters=parameters,
            best_step=best_step,
            dtype=config.dtype + (" autocast" if config.method == "ft" and config.ft.autocast else ""),
        )
        for split, indices in (("validation", bench.validation), ("test", bench.test)):
            values, outputs = self.watch(scorer, bench.metrics, indices)
            peak = round(max(self.memory.read(), was.peak_memory_mb if was else 0.0), 1)
            rows += [row(split=split, metric=m, value=v, n=len(indices), peak_memory_mb=peak) for m, v in values.items()]
        return rows, outputs

    def save_predictions(self, before: Outputs, after: Outputs) -> None:
        with scoring(steps=self.config.steps, tokenize=self.bench.pool.tokenize):
            rows = records(self.bench.splits.test, before, after, self.bench.metrics[0])
        write_atomically(self.output / "predictions.jsonl", jsonl(rows))

    def save(self, rows: list[ResultRow]) -> None:
        write_atomically(self.output / "results.csv", to_csv(rows, ResultRow))


def model_name(name: str) -> str:
    """A model's public name: the last part of a folder's path, or the whole name on the hub."""
    return Path(name).resolve().name if Path(name).is_dir() else name
