"""One run: a method, a task, a model and a seed, in a folder of its own that can be left and taken up again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from zo_objectives import data, hf, objectives, subsets
from zo_objectives.config import RunConfig, dump, read_config
from zo_objectives.errors import InputError, RunError, unknown
from zo_objectives.estimators import Probe, Spsa, shaping, tie_rate
from zo_objectives.geometry import Dense, Geometry, Scaled
from zo_objectives.journal import Header, Journal
from zo_objectives.loop import climb
from zo_objectives.noise import SPEC, Law
from zo_objectives.objectives import BUILTIN, Objective
from zo_objectives.outputs import Choices, Example, Generations, Outputs
from zo_objectives.results import (
    History,
    HistoryRow,
    PeakMemory,
    ResultRow,
    jsonl,
    make_folder,
    to_csv,
    versions,
    write_atomically,
)
from zo_objectives.rules import make_rule
from zo_objectives.scoring import Evaluation, Indices, Kind, Pool, Scorer, TailScorer, kind_for, scorer_for
from zo_objectives.subsets import Subset
from zo_objectives.tail import Sites
from zo_objectives.tasks import TaskSpec, load_task
from zo_objectives.weights import STORES, Weights


@dataclass
class Workbench:
    """A loaded model, a task's examples, and what was computed of them: shared by runs that begin at the same base.

    A run that changes more than the tail asks for a fresh model afterwards; tokenised examples stay.
    """

    config: RunConfig
    spec: TaskSpec
    folder: Path
    splits: data.Splits
    lm: hf.CausalLM
    pool: Pool
    sites: Sites | None = None
    stale: bool = False

    @classmethod
    def open(cls, config: RunConfig) -> "Workbench":
        """Loads model and data. Raises InputError for what cannot work."""
        include = Path(config.include_path) if config.include_path else None
        spec, path = load_task(config.task, include)
        sizes = (config.n_train, config.n_validation, config.n_test)
        splits = data.load(spec, Path(config.data_dir) if config.data_dir else None, sizes=sizes, seed=config.seed)
        lm = hf.load(config.model, dtype=config.dtype, device=config.device)
        if config.long_prompts == "drop":
            splits = drop_long(lm, spec, splits)
        pool = Pool(lm, spec, splits.train + splits.validation + splits.test)
        return cls(config, spec, path.parent, splits, lm, pool)

    def serves(self, config: RunConfig) -> bool:
        """Whether a run with `config` may use this bench."""
        shared = (
            "task",
            "include_path",
            "model",
            "data_dir",
            "dtype",
            "device",
            "n_train",
            "n_validation",
            "n_test",
            "long_prompts",
        )
        same = all(getattr(self.config, name) == getattr(config, name) for name in shared)
        return same and (config.n_train is None or config.seed == self.config.seed)

    def fresh(self) -> Pool:
        """A pool on the base model, its costs at zero."""
        if self.stale:
            self.lm = hf.load(self.config.model, dtype=self.config.dtype, device=self.config.device)
            self.sites, self.stale = None, False
        self.pool = self.pool.renewed(self.lm)
        return self.pool

    @property
    def train(self) -> Indices:
        return np.arange(len(self.splits.train))

    @property
    def validation(self) -> Indices:
        return len(self.splits.train) + np.arange(len(self.splits.validation))

    @property
    def test(self) -> Indices:
        return len(self.splits.train) + len(self.splits.validation) + np.arange(len(self.splits.test))

    @property
    def metrics(self) -> list[Objective]:
        """What is reported, the headline first: the task's metrics, else its objective."""
        names = list(self.spec.metrics) or [self.spec.zo.objective or "accuracy"]
        return [objectives.resolve(name, self.folder) for name in names]

    def objective(self, config: RunConfig) -> Objective:
        """What a zeroth-order run of `config` climbs."""
        if config.method == "mezo-ce":
            return BUILTIN["cross_entropy"]
        if config.objective is not None:
            return objectives.resolve(config.objective)
        return objectives.resolve(self.spec.zo.objective, self.folder) if self.spec.zo.objective else self.metrics[0]

    def row_tokens(self) -> list[int]:
        """The tokens whose output rows `tune: head` moves."""
        if self.spec.zo.rows:
            return sorted(
                {t for text in self.spec.zo.rows for t in hf.encode(self.lm, text)[0]} - {self.lm.tokenizer.bos_token_id}
            )
        if self.spec.output_type == "multiple_choice":
            return [int(t) for t in self.pool.choices.columns]
        if self.spec.doc_to_target is None:
            raise InputError(f"Task {self.spec.task!r} has no targets: list texts whose tokens may be tuned in zo.rows.")
        return [int(t) for t in self.pool.targets.take(self.train).columns]


def drop_long(lm: hf.CausalLM, spec: TaskSpec, splits: data.Splits) -> data.Splits:
    """The splits without the examples that do not fit the model's context. Raises InputError if nothing is left."""

    def fits(example: Example) -> bool:
        ends = [example.prompt + o for o in example.options] or [
            example.prompt + spec.target_delimiter + t for t in example.targets[:1]
        ]
        room = 0 if spec.output_type == "multiple_choice" else spec.generation_kwargs.max_gen_toks
        return max(len(hf.encode(lm, text)[0]) for text in [example.prompt, *ends]) + room <= lm.context

    kept = data.Splits(*(tuple(e for e in part if fits(e)) for part in (splits.train, splits.validation, splits.test)))
    for name, part in (("train", kept.train), ("validation", kept.validation), ("test", kept.test)):
        if not part:
            raise InputError(f"Task {spec.task!r}: no {name} example fits the {lm.context} tokens that {lm.name} takes.")
    return kept


@dataclass(frozen=True)
class Search:
    """Everything the loop needs, built from a configuration."""

    weights: Weights
    estimator: Spsa
    evaluation: Evaluation
    subset: Subset


def build_weights(config: RunConfig, lm: hf.CausalLM, row_tokens: list[int]) -> tuple[Weights, Subset]:
    """The tuned weights as the configuration says, on a model at its base."""
    subset = subsets.select(lm, config.tune, row_tokens)
    if not config.relative:
        subset = subsets.with_all(subset)
    law = Law.RADEMACHER if config.noise == "rademacher" else Law.GAUSSIAN
    geometry: Geometry = Scaled(Dense(law), subset.gains)
    rule = make_rule(
        config.rule,
        learning_rate=config.learning_rate * (config.scale if config.shaping == "unit" else 1.0),
        schedule=config.schedule,
        steps=config.steps,
        weight_decay=config.weight_decay,
    )
    return Weights(lm.model, subset.names, geometry=geometry, rule=rule, store=config.store), subset


def build_search(bench: Workbench, pool: Pool, config: RunConfig) -> Search:
    """Weights, estimator and evaluation for a zeroth-order run."""
    if config.store not in STORES:
        raise unknown("weight store", config.store, STORES)
    estimator = Spsa(config.scale, config.directions, shaping(config.shaping))
    objective = bench.objective(config)
    kind_for(bench.spec, objective)
    weights, subset = build_weights(config, bench.lm, bench.row_tokens())
    scorer = scorer_for(pool, weights, subset, config.trunk_mb << 20, bench.sites)
    if isinstance(scorer, TailScorer):
        bench.sites = scorer.sites
    return Search(weights, estimator, Evaluation(scorer, objective), subset)


def header_of(config: RunConfig, search: Search, bench: Workbench) -> Header:
    """What a replay needs: the configuration, the base, the noise, the direction count, and who wrote it."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "directions": config.directions,
        "noise": SPEC,
        "base": search.weights.fingerprint(),
        "row_tokens": bench.row_tokens() if "head" in config.tune.split("+") else [],
        "versions": versions(),
    }


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

    @contextmanager
    def bar(self, total: int, initial: int) -> Iterator[Any]:
        name = f"{self.config.task} {self.config.method} seed {self.config.seed}"
        with tqdm(
            total=total,
            initial=initial,
            desc=name,
            unit="step",
            disable=not self.show,
            dynamic_ncols=True,
            leave=False,
        ) as bar:
            yield bar

    def watch(self, scorer: Scorer, metrics: list[Objective], indices: Indices) -> tuple[dict[str, float], Outputs]:
        """Every metric on some examples, and what the headline metric looked at."""
        examples, seen, values = scorer.pool.at(indices), dict[Kind, Outputs](), {}
        for metric in metrics:
            evaluation = Evaluation(scorer, metric)
            if evaluation.kind not in seen:
                seen[evaluation.kind] = evaluation.at_rest(indices)
            values[metric.name] = metric(seen[evaluation.kind], examples)
        return values, seen[kind_for(scorer.pool.spec, metrics[0])]

    def check_objective(self, search: Search) -> None:
        """Scores a few examples before anything is spent, so that a failing callable is wrong input, not a failed run."""
        few = self.bench.train[: min(8, len(self.bench.train))]
        try:
            search.evaluation.objective(search.evaluation.at_rest(few), search.evaluation.scorer.pool.at(few))
        except RunError as error:
            raise InputError(f"{error} Nothing was run; mend the function and try again.") from error

    def zeroth_order(self) -> list[ResultRow]:
        """Climbs, keeps the best weights on validation, and measures them."""
        bench, config = self.bench, self.config
        pool = bench.fresh()
        search = build_search(bench, pool, config)
        tail = isinstance(search.evaluation.scorer, TailScorer)
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
        with Journal.open(self.output / "journal.zoj", header_of(config, search, bench)) as journal:
            _, before = self.watch(scorer, headline, bench.test)
            history = History(self.output / "history.csv", len(journal.coefficients))
            clock = Clock(history.rows[-1].seconds if history.rows else 0.0)
            last = history.rows[-1] if history.rows else None
            if last is not None:
                pool.cost.charge(last.forwards, last.examples, last.tokens)

            def note(step: int, objective: float | None, ties: float | None, due: bool) -> float | None:
                score = self.watch(scorer, headline, bench.validation)[0][headline[0].name] if due else None
                best = history.best
                if score is not None and (best is None or best.validation is None or score > best.validation):
                    journal.sync()
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
                    )
                )
                return score

            if not history.rows:
                note(0, None, None, due=True)
            every = max(1, config.steps // config.evaluations)
            with self.bar(config.steps, len(journal.coefficients)) as bar:
                clock.start()
                evaluate = self.evaluator(search.evaluation)
                for step in climb(
                    search.weights, search.estimator, evaluate, steps=config.steps, seed=config.seed, journal=journal
                ):
                    clock.stop()
                    done = step.t + 1
                    mean = float(np.mean(step.scores))
                    note(done, mean, tie_rate(step.scores), due=done % every == 0 or done == config.steps)
                    best = history.best
                    bar.set_postfix(
                        batch=f"{mean:.3f}",
                        best=f"{best.validation:.3f}" if best and best.validation is not None else "-",
                    )
                    bar.update()
                    clock.start()
        return self.finish(search, pool, history, clock.seconds, before)

    def evaluator(self, evaluation: Evaluation) -> Callable[[Any, int], list[float]]:
        """The bridge: probes and a step's number to scores, on a batch that depends on seed and step alone."""
        train, size = self.bench.train, min(self.config.batch, len(self.bench.train))

        def evaluate(probes: tuple[Probe, ...], t: int) -> list[float]:
            chosen = np.random.default_rng([self.config.seed & 0xFFFFFFFF, t]).choice(train, size, replace=False)
            return evaluation.scores(probes, np.sort(chosen))

        return evaluate

    def finish(self, search: Search, pool: Pool, history: History, seconds: float, before: Outputs) -> list[ResultRow]:
        best = history.best
        assert best is not None
        search.weights.load(load_file(self.output / "best.safetensors"))
        spent = spent_so_far(pool)
        rows, after = self.measure(
            search.evaluation.scorer, spent, seconds, search.weights.count, best.step, search.evaluation.objective.name
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
                        method=config.method,
                        objective=objective,
                        tune=config.tune if config.method in ("zo", "mezo-ce") else "all" if parameters else "none",
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
                    )
                )
        assert outputs is not None
        return rows, outputs

    def save_predictions(self, before: Outputs, after: Outputs) -> None:
        examples = self.bench.splits.test
        metric = self.bench.metrics[0]
        records = []
        for i, example in enumerate(examples):
            a, b = describe(before, i, example, metric), describe(after, i, example, metric)
            records.append(
                {"split": "test", "id": example.id, "prompt": example.prompt, "target": target_text(example)}
                | {
                    "before": a[0],
                    "after": b[0],
                    "correct_before": a[1],
                    "correct_after": b[1],
                    "score_before": a[2],
                    "score_after": b[2],
                }
            )
        write_atomically(self.output / "predictions.jsonl", jsonl(records))

    def save(self, rows: list[ResultRow]) -> None:
        write_atomically(self.output / "results.csv", to_csv(rows, ResultRow))


def spent_so_far(pool: Pool) -> tuple[int, int, int]:
    """Forward passes, examples and tokens charged until now."""
    return pool.cost.forwards, pool.cost.examples, pool.cost.tokens


def model_name(name: str) -> str:
    """A model's public name: the last part of a folder's path, or the whole name on the hub."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def save_weights(path: Path, values: dict[str, Tensor]) -> None:
    """Tuned tensors as safetensors, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    save_file({n: v.contiguous().cpu() for n, v in values.items()}, temporary)
    temporary.replace(path)


def target_text(example: Example) -> str:
    return example.options[example.label].strip() if example.options else " | ".join(example.targets)


def describe(outputs: Outputs, index: int, example: Example, metric: Objective) -> tuple[str, bool | None, float | None]:
    """What was predicted for one example, whether it is right (where that can be said), and its own score (likewise)."""
    if isinstance(outputs, Choices):
        chosen = int(outputs.predictions[index])
        return example.options[chosen].strip(), chosen == example.label, None
    if isinstance(outputs, Generations):
        text = outputs.texts[index]
        right = text.strip() in {t.strip() for t in example.targets} if example.targets and metric.name in BUILTIN else None
        return text, right, metric(Generations([text]), [example]) if right is None else None
    return "", None, float(outputs.loglikelihoods[index])


def execute(config: RunConfig, output: Path, *, bench: Workbench | None = None, show: bool = True) -> Path:
    """Runs `config` in folder `output`, or goes on with the run that is there; a finished run is left as it is.

    Returns the folder. Raises InputError for wrong input or a folder of another run, RunError where the run fails.
    """
    from zo_objectives.baselines import BASELINES

    make_folder(output)
    if (output / "config.yaml").exists():
        if (found := read_config(output)) != config:
            differing = next(n for n in RunConfig.model_fields if getattr(found, n) != getattr(config, n))
            raise InputError(
                f"{output} holds another run: {differing} was {getattr(found, differing)!r} there,"
                f" and is {getattr(config, differing)!r} now."
                " Choose another --output."
            )
        if (output / "results.csv").exists():
            return output
    elif any(p.name in ("journal.zoj", "history.csv", "results.csv") for p in output.iterdir()):
        raise InputError(f"{output} is a half-written run folder without config.yaml. Remove it or choose another --output.")
    bench = bench if bench is not None and bench.serves(config) else Workbench.open(config)
    write_atomically(output / "config.yaml", dump(config))
    run = Run(bench, config, output, show=show)
    with torch.no_grad():
        run.save(BASELINES[config.method](run) if config.method in BASELINES else run.zeroth_order())
    return output


def with_run(rows: list[ResultRow], folder: str) -> list[ResultRow]:
    """The same rows, saying which folder they came from."""
    return [replace(row, run=folder) for row in rows]
