"""The workbench: a loaded model and a task's examples, shared by the runs of a comparison."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError
from zo_objectives.language import data, hf, objectives
from zo_objectives.language.objectives import BUILTIN, Objective
from zo_objectives.language.outputs import Example
from zo_objectives.language.tasks import TaskSpec, load_task
from zo_objectives.scoring import Indices, Pool
from zo_objectives.tail import Sites


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
    own: Objective | None = None  # an objective given from Python
    sites: Sites | None = None
    stale: bool = False

    @classmethod
    def open(cls, config: RunConfig, own: Objective | None = None) -> "Workbench":
        """Loads model and data. Raises InputError for what cannot work."""
        include = Path(config.include_path) if config.include_path else None
        spec, path = load_task(config.task, include)
        sizes = (config.n_train, config.n_validation, config.n_test)
        splits = data.load(spec, Path(config.data_dir) if config.data_dir else None, sizes=sizes, seed=config.seed)
        lm = hf.load(config.model, dtype=config.dtype, device=config.device)
        if config.long_prompts == "drop":
            splits = drop_long(lm, spec, splits)
        pool = Pool(lm, spec, splits.train + splits.validation + splits.test)
        return cls(config, spec, path.parent, splits, lm, pool, own)

    def serves(self, config: RunConfig) -> bool:
        """Whether a run with `config` may use this bench."""
        sizes = ("n_train", "n_validation", "n_test", "long_prompts")
        shared = ("task", "include_path", "model", "data_dir", "dtype", "device", "objective", *sizes)
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
        """What is reported, the headline first: the user's objective, then the task's metrics."""
        of_task = self.spec.metrics or (self.spec.zo.objective or "accuracy",)
        given = [self.own] if self.own else [objectives.resolve(self.config.objective)] if self.config.objective else []
        named = {o.name: o for o in (*given, *(objectives.resolve(name, self.folder) for name in of_task))}
        return list(named.values())

    def objective(self, config: RunConfig) -> Objective:
        """What a zeroth-order run of `config` climbs."""
        if config.method == "mezo-ce":
            return BUILTIN["cross_entropy"]
        if self.own is not None or config.objective is not None:
            return self.metrics[0]
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
