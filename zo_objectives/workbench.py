"""The workbench: a loaded model and a task's examples, shared by the runs of a comparison."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from zo_objectives.adapters import virtual_in
from zo_objectives.config import RunConfig
from zo_objectives.demonstrations import Demonstrations
from zo_objectives.errors import InputError, Unfit
from zo_objectives.language import data, hf, objectives
from zo_objectives.language.objectives import BUILTIN, Isolation, Needs, Objective, isolated, weighted
from zo_objectives.language.outputs import Example
from zo_objectives.language.sheets import Reader
from zo_objectives.language.tasks import TaskSpec, load_task
from zo_objectives.scoring import Indices, Pool
from zo_objectives.starts import Start, begun
from zo_objectives.subsets import without_rows
from zo_objectives.tail import Sites

SCORING = ("metric", "objective", "isolation")  # settings that say what outputs are worth


@dataclass
class Workbench:
    """A loaded model, a task's examples, and what was computed of them: shared by runs on the same base.

    A run that changes more than the tail asks for a fresh model afterwards; tokenised examples stay.
    """

    config: RunConfig
    spec: TaskSpec
    folder: Path
    splits: data.Splits
    lm: hf.LanguageModel
    pool: Pool
    own: Objective | None = None  # an objective given from Python
    notes: list[str] = field(default_factory=list)  # what a reader of the results should know of the data
    seeded: bool = False  # examples depend on the seed
    sites: Sites | None = None  # hidden states below the final norm, of the base
    bases: dict[int, Tensor] = field(default_factory=dict)  # of features of the base, by their number of directions
    stale: bool = False
    at_base: bool = True  # what the head sees is what it sees in the base
    replaced: dict[str, Tensor] | None = None  # by a start that the base's `sites` serve as well; None: by another one

    @classmethod
    def open(cls, config: RunConfig, own: Objective | None = None) -> "Workbench":
        """Loads model and data. Raises InputError for what cannot work."""
        include = Path(config.include_path) if config.include_path else None
        spec, path = load_task(config.task, include)
        lm = hf.load(config.model, dtype=config.dtype, device=config.device)
        form = data.Form(spec, lm.mask, blank=config.scoring == "calibrated")
        sizes = data.Sizes(config.n_train, config.n_validation, config.n_test, config.shots, config.keep)
        splits = data.load(form, Path(config.data_dir) if config.data_dir else None, sizes, config.seed)
        lm.learn(splits.options)
        notes = [f"{splits.leaks} examples stand in two splits, and were kept in the later one."] if splits.leaks else []
        if config.long_prompts != "error":
            room = lm.context - virtual_in(config.tuned)
            splits, told = without_long(lm, spec, splits, room, drop=config.long_prompts == "drop")
            notes += told
        wanted = spec.num_fewshot if config.demonstrations is None else config.demonstrations
        if wanted:
            shown = Demonstrations.of(lm, form, splits.shown, wanted, config.seed)
            splits, note = shown.before(splits)
            notes.append(note)
        pool = Pool(
            lm,
            spec,
            splits.train + splits.validation + splits.test,
            scoring=config.scoring,
            cut=config.long_prompts == "cut",
            seed=config.seed,
            temperature=config.temperature,
        )
        seeded = bool(wanted or config.shots) or config.n_train is not None or pool.sampler(0) is not None
        bench = cls(config, spec, path.parent, splits, lm, pool, own, notes, seeded)
        bench.pool = replace(pool, exact=any(metric.needs is Needs.FULL for metric in bench.metrics))
        return bench

    def serves(self, config: RunConfig) -> bool:
        """Whether a run with `config` may use this bench."""
        sizes = ("n_train", "n_validation", "n_test", "shots", "keep")
        reading = (*sizes, "demonstrations", "scoring", "long_prompts", "temperature")
        shared = ("task", "include_path", "model", "data_dir", "dtype", "device", *SCORING, *reading)
        same = all(getattr(self.config, name) == getattr(config, name) for name in shared)
        same = same and (config.long_prompts == "error" or virtual_in(config.tuned) == virtual_in(self.config.tuned))
        return same and (not self.seeded or config.seed == self.config.seed)

    def fitted(self, config: RunConfig) -> "Workbench | None":
        """This bench for a run with `config`, if only the worth of outputs differs: it takes this one's place. Or None."""
        if self.serves(config):
            return self
        if not self.serves(config.model_copy(update={name: getattr(self.config, name) for name in SCORING})):
            return None
        bench = replace(self, config=config)
        exact = any(metric.needs is Needs.FULL for metric in bench.metrics)
        if exact != bench.pool.exact:
            bench.pool = replace(bench.pool, exact=exact)
        return bench

    def fresh(self, tune: str = "", start: Start | None = None) -> Pool:
        """A pool on the base model, or at a start, with the adapters that `tune` names, its costs at zero."""
        if self.stale:
            self.lm = hf.load(self.config.model, dtype=self.config.dtype, device=self.config.device, labels=self.lm.labels)
            self.sites, self.stale, self.bases = None, False, {}
        without_rows(self.lm)
        shallow = start is None or start.is_shallow(self.lm)
        names = start.plain if start and shallow else ()
        replaced = {name: p.clone() for name, p in self.lm.model.named_parameters() if name in names}
        lm = begun(self.lm, start, tune)
        self.stale = start is not None or lm is not self.lm
        self.at_base = lm is self.lm and not (start and start.plain)
        self.replaced = replaced if shallow and lm is self.lm else None
        if not shallow:
            self.sites = None
        self.pool = self.pool.renewed(lm)
        return self.pool

    def give_back(self) -> None:
        """The base is as it was, but for label rows, once the weights are at the start again. For shallow starts only."""
        parameters = dict(self.lm.model.named_parameters())
        for name, values in (self.replaced or {}).items():
            parameters[name].data.copy_(values)
        self.stale = False

    @property
    def train(self) -> Indices:
        return np.arange(len(self.splits.train))

    @property
    def validation(self) -> Indices:
        return len(self.splits.train) + np.arange(len(self.splits.validation))

    @property
    def test(self) -> Indices:
        return len(self.splits.train) + len(self.splits.validation) + np.arange(len(self.splits.test))

    @cached_property
    def metrics(self) -> list[Objective]:
        """What is reported, the headline first: the metric that counts, the user's objective, then the task's metrics."""
        of_task = self.spec.metrics or (self.spec.zo.objective or "accuracy",)
        climbed = [self.own] if self.own else [objectives.resolve(self.config.objective)] if self.config.objective else []
        given = [*([objectives.resolve(self.config.metric)] if self.config.metric else []), *climbed]
        named = {o.name: o for o in (*given, *(objectives.resolve(name, self.folder) for name in of_task))}
        return [self._apart(objective) for objective in named.values()]

    def objective(self, config: RunConfig) -> Objective:
        """What a zeroth-order run of `config` climbs. Raises Unfit for zo-ce where text is generated."""
        loss = BUILTIN["cross_entropy"]
        if config.method == "mezo-ce":
            return loss
        climbed = self._climbed(config)
        if config.method != "zo-ce":
            return climbed
        if self.spec.output_type != "multiple_choice":
            raise Unfit(
                f"zo-ce adds the log-likelihood of options, and task {self.spec.task!r} has none. Take mezo-ce+zo, which"
                " tunes on the targets first."
            )
        return weighted((1.0, climbed), (config.loss_weight, loss))

    def _climbed(self, config: RunConfig) -> Objective:
        if self.own is not None:
            wanted = self.own
        elif config.objective is not None:
            wanted = objectives.resolve(config.objective)
        elif self.spec.zo.objective:
            wanted = objectives.resolve(self.spec.zo.objective, self.folder)
        else:
            return self.metrics[0]
        return next((m for m in self.metrics if m.name == wanted.name), wanted)

    def _apart(self, objective: Objective) -> Objective:
        """A user's function kept apart as the configuration says; a builtin as it is."""
        ours = BUILTIN.get(objective.name) is objective
        return objective if ours else isolated(objective, Isolation(**self.config.isolation.model_dump()))

    def row_tokens(self) -> list[int]:
        """The tokens whose output rows `tune: head` moves."""
        if self.spec.zo.rows and not self.lm.bidirectional:
            return sorted(
                {t for text in self.spec.zo.rows for t in hf.encode(self.lm, text)[0]} - {self.lm.tokenizer.bos_token_id}
            )
        if self.spec.output_type == "multiple_choice":
            return [int(t) for t in self.pool.choices.columns]
        if self.spec.doc_to_target is None:
            raise InputError(f"Task {self.spec.task!r} has no targets: list texts whose tokens may be tuned in zo.rows.")
        return [int(t) for t in self.pool.targets.take(self.train).columns]


def without_long(
    lm: hf.LanguageModel, spec: TaskSpec, splits: data.Splits, room: int, *, drop: bool
) -> tuple[data.Splits, list[str]]:
    """The splits, without the examples that do not fit `room` tokens if they are to be dropped, and how many do not.

    Raises InputError if nothing is left.
    """
    reader, new_tokens = Reader(lm), spec.generation_kwargs.max_gen_toks

    def fitting(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(e for e in examples if reader.length(e, new_tokens, spec.target_delimiter) <= room)

    parts = {name: getattr(splits, name) for name in data.SPLITS}
    kept = {name: fitting(part) for name, part in parts.items()}
    count, fit = (sum(map(len, these.values())) for these in (parts, kept))
    if not (long := count - fit):
        return splits, []
    note = f"{long} of {count} examples are too long for {lm.name}, and "
    if not drop:
        return splits, [f"{note}were cut at their beginning."]
    if empty := [name for name, part in kept.items() if not part]:
        raise InputError(f"Task {spec.task!r}: no {empty[0]} example fits the {room} tokens that {lm.name} takes.")
    shown = fitting(splits.shown)
    left = replace(splits, train=kept["train"], validation=kept["validation"], test=kept["test"], shown=shown)
    return left, [f"{note}were left out."]
