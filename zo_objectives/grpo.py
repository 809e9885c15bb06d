"""GRPO by TRL (Shao et al. 2024, "DeepSeekMath", section 4.1): the policy gradient of a reward, where backprop can be had.

Each step draws `generations` completions of each of `batch` prompts, scores every one of them, and moves all parameters
towards those that beat the mean of their prompt's. Text is drawn as evaluation makes it: the same prompts in tokens, the
same stop strings and filters. Where a task has options, what is drawn is text too: it stands for the option that it begins
with, and for a wrong one where it begins with none. Validation and test are scored as for every other method, text greedily,
options by their likelihood.

A batch that is generated counts as one forward, as in greedy generation, a pass of the optimiser as three (and one more with
beta, for the reference policy), all with the tokens of prompts and completions.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zo_objectives import starts
from zo_objectives.active_run import Clock, Run
from zo_objectives.building import batch_of
from zo_objectives.config import Grpo
from zo_objectives.errors import InputError, RunError, Unfit
from zo_objectives.language.generation import Sampler, generate, stop_tokens, text_of
from zo_objectives.language.objective import mean_of_samples
from zo_objectives.language.objectives import Failure, Needs, Objective, scoring
from zo_objectives.language.outputs import Choices, Example, Generations, Outputs
from zo_objectives.results import History, HistoryRow, ResultRow
from zo_objectives.scoring import ForwardScorer, Pool
from zo_objectives.selection import Look

Values = dict[str, Tensor]
OPTIMISER = 3  # a forward and a backward pass, in forwards
LOOKS = 5  # at validation, as for ft


@dataclass
class Rollouts:
    """Completions, what they are worth, and what they cost; TRL's prompts are the numbers of the pool's examples."""

    pool: Pool
    objective: Objective
    settings: Grpo
    seed: int
    skip: bool  # whether a failing objective leaves a step out
    new_tokens: int
    stops: list[int]
    drawn: int = 0  # batches
    failed: int = 0  # of those
    mean: float | None = None  # reward of the last batch
    sizes: tuple[int, int] = (0, 0)  # completions and tokens of the last batch
    _prompts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, pool: Pool) -> "Rollouts":
        """Rollouts for a run. Raises Unfit for a model or an objective that cannot be drawn from or scored."""
        objective = run.bench.objective(run.config)
        if pool.lm.bidirectional:
            raise Unfit(f"grpo generates text, and {pool.lm.name} {pool.lm.form.value}.")
        if pool.lm.device.type == "cuda" and (count := torch.cuda.device_count()) > 1:
            raise InputError(f"grpo takes one GPU, and TRL sees {count}: set CUDA_VISIBLE_DEVICES to one of them.")
        if objective.samples is None or objective.needs is not Needs.PREDICTION:
            raise Unfit(
                f"grpo needs a reward for each completion, and objective {objective.name!r} is none: it is of a whole"
                " batch, or of likelihoods. Take a reward, or a builtin such as exact_match or accuracy (--objective)."
            )
        options = sorted({option for example in pool.at(run.bench.train) for option in example.options})
        new_tokens = max(map(len, pool.tokenize(options))) if options else pool.new_tokens
        stops = stop_tokens(pool.lm, () if options else pool.spec.generation_kwargs.until)
        config = run.config
        return cls(pool, objective, config.grpo, config.seed, config.on_failure == "skip-step", new_tokens, stops)

    def draw(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """TRL's rollout_func: each prompt, as often as it is there, with a completion drawn at the temperature."""
        pool, numbers = self.pool, [int(prompt) for prompt in prompts]
        ids = [self._prompt(number) for number in numbers]
        sampler = Sampler(self.settings.temperature, None, None, (self.seed, self.drawn))
        pool.lm.model.eval()
        said = generate(
            pool.lm, ids, new_tokens=self.new_tokens, stops=self.stops, sampler=sampler, examples=range(len(ids))
        )
        pool.lm.model.train()
        self.drawn, self.sizes = self.drawn + 1, (len(ids), sum(map(len, ids)) + sum(map(len, said)))
        pool.cost.charge(1, *self.sizes)
        return {"prompt_ids": [list(i) for i in ids], "completion_ids": said, "logprobs": None}

    def _prompt(self, number: int) -> tuple[int, ...]:
        if number not in self._prompts:
            self._prompts[number] = self.pool.reader.prompt(self.pool.examples[number], self.new_tokens)
        return self._prompts[number]

    def reward(self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **given: Any) -> list[float | None]:
        """TRL's reward function: the objective on each completion; None where it does not apply."""
        examples = self.pool.at(np.array([int(prompt) for prompt in prompts]))
        outputs = self.outputs(completion_ids, examples)
        try:
            with scoring(step=self.drawn, tokenize=self.pool.tokenize):
                found, self.mean = rewards(self.objective, outputs, examples)
        except Failure:
            if not self.skip:
                raise
            found, self.mean, self.failed = [None] * len(examples), None, self.failed + 1
        return found

    def outputs(self, completion_ids: Sequence[Sequence[int]], examples: Sequence[Example]) -> Outputs:
        """What was said, as an objective sees it."""
        if not examples[0].options:
            return Generations([self.pool.text(tokens) for tokens in completion_ids])
        texts = [text_of(self.pool.lm, tokens, ()) for tokens in completion_ids]
        likelihoods = np.full((len(texts), max(len(e.options) for e in examples)), -np.inf, dtype=np.float32)
        likelihoods[range(len(texts)), [meant(text, e) for text, e in zip(texts, examples, strict=True)]] = 0.0
        return Choices(likelihoods)

    def charge_step(self) -> None:
        """Charges the optimiser's pass over the last batch, and the reference policy's."""
        passes, (count, tokens) = OPTIMISER + (self.settings.beta > 0), self.sizes
        self.pool.cost.charge(passes, passes * count, passes * tokens)


def meant(text: str, example: Example) -> int:
    """The option that a text begins with, white space aside, and of several the longest; a wrong one where it is none."""
    begun = {i: option.strip() for i, option in enumerate(example.options) if text.strip().startswith(option.strip())}
    wrong = (i for i in range(len(example.options)) if i not in (example.label, *example.also))
    return max(begun, key=lambda i: len(begun[i])) if begun else next(wrong, 0)


def rewards(objective: Objective, outputs: Outputs, examples: Sequence[Example]) -> tuple[list[float | None], float]:
    """A reward's numbers, None where it does not apply, and their mean. Raises Failure as the objective does."""
    assert objective.samples is not None
    try:
        found = objective.samples(outputs, examples)
        mean = objective.checked(mean_of_samples(objective.name, lambda *_: found, outputs, examples), outputs, examples)
    except (InputError, RunError):
        raise
    except Exception as error:
        raise objective.failed(error, outputs, examples) from error
    return [None if value is None else float(value) for value in found], float(mean)


def grpo(run: Run) -> list[ResultRow]:
    """GRPO on all parameters; the learning rate and the step are those with the best validation score, as for ft."""
    trainer, bench, settings = _trainer(), run.bench, run.config.grpo
    bench.stale = True
    pool = bench.fresh("all", run.start)
    bench.stale = True  # for whoever comes next
    rollouts, scorer = Rollouts.of(run, pool), ForwardScorer(pool, None, None)
    run.memory.restart()
    _, before = run.watch(scorer, bench.metrics[:1], bench.test)
    total = settings.steps * len(settings.learning_rates)
    with trainer.quiet(pool.lm, rollouts.stops), run.bar(total, 0) as bar:
        grid = _Grid(run, rollouts, scorer, bar)
        for rate in settings.learning_rates:
            grid.run_at(rate, trainer)
    if rollouts.failed:
        run.notes.append(f"{rollouts.failed} of {total} steps had no reward, since the objective failed.")
    return grid.finish(before)


def _trainer() -> ModuleType:
    """The module that knows TRL. Raises InputError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from zo_objectives import grpo_trainer
    except ImportError as error:
        raise InputError("grpo needs trl. Install it with: pip install 'zo-objectives[grpo]'.") from error
    return grpo_trainer


class _Grid:
    """The runs of a grid of learning rates, each from the start, and the best step of all on validation."""

    def __init__(self, run: Run, rollouts: Rollouts, scorer: ForwardScorer, bar: Any) -> None:
        self.run, self.rollouts, self.scorer, self.bar = run, rollouts, scorer, bar
        self.parameters, self.clock = dict(rollouts.pool.lm.model.named_parameters()), Clock()
        self.score = run.validation(scorer, run.bench.metrics[0])
        run.note_start(self.score)
        self.begun, self.looks = run.said or run.saying(scorer), 0
        self.start = self.values = self._copy()
        self.best, self.step, self.kept = self.score, 0, list[HistoryRow]()

    def run_at(self, rate: float, trainer: ModuleType) -> None:
        """One learning rate's run."""
        config, pool = self.run.config, self.rollouts.pool
        self._put(self.start)
        self.rows = [HistoryRow(0, 0, 0, 0, 0.0, None, None, self.score)]
        self.kept = self.kept or self.rows
        self.spent, self.seconds, self.rollouts.drawn = pool.cost.spent, self.clock.seconds, 0
        batches = [batch_of(config.seed, config.grpo.batch, self.run.bench.train, t) for t in range(config.grpo.steps)]
        self.clock.start()
        trainer.train(
            pool.lm,
            [batch.tolist() for batch in batches],
            draw=self.rollouts.draw,
            reward=self.rollouts.reward,
            after=partial(self._after, rate),
            rate=rate,
            settings=config.grpo,
            new_tokens=self.rollouts.new_tokens,
            seed=config.seed,
            output=self.run.output,
        )
        self.clock.stop()

    def _after(self, rate: float, step: int) -> None:
        """Notes a step that was taken, and looks at validation where that is due."""
        self.clock.stop()
        self.rollouts.charge_step()
        steps, found = self.run.config.grpo.steps, None
        if step % max(1, steps // LOOKS) == 0 or step == steps:
            found = self._looked(rate, step)
        forwards, examples, tokens = (a - b for a, b in zip(self.rollouts.pool.cost.spent, self.spent, strict=True))
        seconds, mean = round(self.clock.seconds - self.seconds, 3), self.rollouts.mean
        self.rows.append(HistoryRow(step, forwards, examples, tokens, seconds, mean, None, found))
        self.bar.set_postfix(rate=rate, reward="-" if mean is None else f"{mean:.3f}")
        self.bar.update()
        self.clock.start()

    def _looked(self, rate: float, step: int) -> float | None:
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            raise RunError(f"GRPO diverged by step {step} at learning rate {rate:g}. Lower grpo.learning_rates.")
        found = self.run.validation(self.scorer, self.run.bench.metrics[0])
        self.looks += found is not None
        if found is not None and (self.best is None or found > self.best):
            self.run.best_said = self.run.said
            self.best, self.step, self.values, self.kept = found, step, self._copy(), self.rows
        return found

    def finish(self, before: Outputs) -> list[ResultRow]:
        """Puts the best parameters back, writes them with their run's history, and measures them."""
        run, pool = self.run, self.rollouts.pool
        if self.best is None:
            raise RunError("The objective failed whenever validation was looked at, so that no step can be chosen. Mend it.")
        last = Look(self.step, self.best, run.best_said or self.begun)
        steps = run.config.grpo.steps
        step = run.select(self.scorer, Look(0, self.score, self.begun), last, looks=self.looks, steps=steps).step
        values = self.values if step else self.start
        self._put(values)
        starts.keep_best(run.output, pool.lm, values)
        history = History(run.output / "history.csv", -1)
        for row in self.kept:
            history.append(row)
        spent, count, name = pool.cost.spent, sum(v.numel() for v in values.values()), self.rollouts.objective.name
        rows, after = run.measure(self.scorer, spent, self.clock.seconds, count, step, name, "all")
        run.save_predictions(before, after)
        return rows

    def _copy(self) -> Values:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _put(self, values: Values) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(values[name])
