"""Scorers: what a model says on some examples, at each of several probes.

    ForwardScorer   any subset: one probe after another, each a forward pass from the cut (or `generate`)
    TailScorer      nothing tuned below the final norm: all probes at once from stored hidden states

`scorer_for` picks one. Every probe of a call meets the same examples in the same order, padded the same way (law 8).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zo_objectives.draws import Signal
from zo_objectives.errors import InputError
from zo_objectives.language.generation import Sampler, generate, sampler_of, stop_tokens, text_of
from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.objectives import Needs, Objective, Scored, scoring
from zo_objectives.language.outputs import Choices, Example, Generations, Likelihoods, Outputs, joined
from zo_objectives.language.passes import Pass, plan, sheet_logits
from zo_objectives.language.sheet import Ids, Sheet
from zo_objectives.language.sheets import Reader, Scoring
from zo_objectives.language.tasks import TaskSpec, apply_filters
from zo_objectives.readout import Decoder, Rest, Still, closed_likelihoods, narrow_likelihoods, open_likelihoods
from zo_objectives.search.estimators import Probe, passes
from zo_objectives.search.weights import Weights
from zo_objectives.subsets import Subset
from zo_objectives.tail import SheetSites, Sites, Tail, is_plain
from zo_objectives.trunk import Trunk

REST = Probe(0, 0.0)  # the weights themselves
Indices = NDArray[np.int64]


class Kind(Enum):
    """What is asked of the model."""

    CHOICE = "log-likelihoods of the options"
    TEXT = "generated text"
    LIKELIHOOD = "log-likelihood of the target"


def kind_for(spec: TaskSpec, objective: Objective) -> Kind:
    """What `objective` has to see of a model on this task."""
    if spec.output_type == "multiple_choice":
        return Kind.CHOICE
    if objective.needs is Needs.FULL:
        raise InputError(f"Objective {objective.name!r} compares options, and task {spec.task!r} has none.")
    if objective.needs is Needs.LIKELIHOOD:
        if spec.doc_to_target is None:
            raise InputError(f"Objective {objective.name!r} needs doc_to_target, which task {spec.task!r} has not.")
        return Kind.LIKELIHOOD
    return Kind.TEXT


@dataclass
class Cost:
    """What has been spent: forward passes (a backward counts as two), examples and tokens scored."""

    forwards: int = 0
    examples: int = 0
    tokens: int = 0

    @property
    def spent(self) -> tuple[int, int, int]:
        """Forward passes, examples and tokens."""
        return self.forwards, self.examples, self.tokens

    def charge(self, forwards: int, examples: int, tokens: int) -> None:
        self.forwards += forwards
        self.examples += examples
        self.tokens += tokens


@dataclass(frozen=True)
class Pool:
    """All examples of a run, tokenised on demand; scorers are given indices into it."""

    lm: LanguageModel
    spec: TaskSpec
    examples: tuple[Example, ...]
    scoring: Scoring = "sum"
    cut: bool = False  # prompts that are too long lose their beginning
    exact: bool = False  # scores of options are compared with more than each other
    seed: int = 0  # of what is drawn
    temperature: float | None = None  # of drawn text; None: as the task says
    cost: Cost = field(default_factory=Cost)

    def renewed(self, lm: LanguageModel) -> "Pool":
        """The same examples, as tokenised, for another copy of the model and with no costs."""
        pool = replace(self, lm=lm, cost=Cost())
        if lm.context == self.lm.context:
            kept = ("choices", "targets", "prompts", "stops", "_lengths", "_numbers")
            pool.__dict__.update({name: self.__dict__[name] for name in kept if name in self.__dict__})
        return pool

    @property
    def reader(self) -> Reader:
        return Reader(self.lm, self.scoring, self.cut)

    @cached_property
    def choices(self) -> Sheet:
        return self.reader.choices(self.examples, exact=self.exact)

    @cached_property
    def targets(self) -> Sheet:
        until = self.spec.generation_kwargs.until
        return self.reader.targets(self.examples, self.spec.target_delimiter, until[0] if until else "")

    @cached_property
    def prompts(self) -> tuple[Ids, ...]:
        return tuple(self.reader.prompt(e, self.new_tokens) for e in self.examples)

    def sampler(self, draw: int) -> Sampler | None:
        """How text is drawn for the `draw`-th time; None: greedily."""
        return sampler_of(self.spec.generation_kwargs, self.temperature, (self.seed, draw))

    @property
    def new_tokens(self) -> int:
        return self.spec.generation_kwargs.max_gen_toks

    @cached_property
    def stops(self) -> list[int]:
        return stop_tokens(self.lm, self.spec.generation_kwargs.until)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they stand, with nothing put around them."""
        ids: list[list[int]] = self.lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return ids

    def sheet(self, kind: Kind) -> Sheet:
        return self.choices if kind is Kind.CHOICE else self.targets

    def text(self, tokens: Sequence[int]) -> str:
        raw = text_of(self.lm, tokens, self.spec.generation_kwargs.until)
        return apply_filters(self.spec.filter_list, raw)

    def at(self, indices: Indices) -> list[Example]:
        return [self.examples[i] for i in indices.tolist()]

    @cached_property
    def _lengths(self) -> dict[Kind, Indices]:
        return {}

    @cached_property
    def _numbers(self) -> dict[Kind, Indices]:
        return {}

    def tokens(self, kind: Kind, indices: Indices) -> int:
        """How many tokens a pass over some examples scores before it generates; equal sequences are run once."""
        if kind is Kind.TEXT:
            return sum(len(self.prompts[i]) for i in indices.tolist())
        sheet = self.sheet(kind)
        if kind not in self._lengths:
            first: dict[Ids, int] = {}
            self._lengths[kind] = np.array([len(ids) for ids in sheet.sequences])
            self._numbers[kind] = np.array([first.setdefault(ids, i) for i, ids in enumerate(sheet.sequences)])
        entries, _ = sheet.sequences_of.take(indices)
        return int(self._lengths[kind][np.unique(self._numbers[kind][entries])].sum())

    def charge(self, members: int, kind: Kind, indices: Indices, generated: int = 0) -> None:
        """Charges `members` passes over the examples; `generated` counts tokens of all members together."""
        self.cost.charge(members, members * len(indices), members * self.tokens(kind, indices) + generated)

    def outputs(self, kind: Kind, sheet: Sheet, likelihoods: Tensor) -> Outputs:
        values = likelihoods.float().cpu().numpy()
        return Choices(values) if kind is Kind.CHOICE else Likelihoods(values[:, 0], sheet.read_counts)


class Scorer(Protocol):
    """What the model says on examples `indices` of a pool, once for each probe; sampled text is that of a `draw`."""

    pool: Pool

    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> list[Outputs]: ...

    def each(self, kind: Kind, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> Iterable[Outputs]:
        """The same, one after another where they are made so: what takes them may work on one while the next is made."""
        return self.outputs(kind, probes, indices, draw)


class ForwardScorer(Scorer):
    """One probe after another; layers below the cut from the trunk's store."""

    def __init__(self, pool: Pool, weights: Weights | None, trunk: Trunk | None) -> None:
        self.pool, self.weights, self.trunk = pool, weights, trunk

    def _at(self, probe: Probe) -> AbstractContextManager[None]:
        if probe == REST:
            return nullcontext()
        assert self.weights is not None
        return self.weights.at(probe)

    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> list[Outputs]:
        return list(self.each(kind, probes, indices, draw))

    def each(self, kind: Kind, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> Iterator[Outputs]:
        if kind is Kind.TEXT:
            yield from (self._texts(probe, indices, draw) for probe in probes)
            return
        self.pool.charge(len(probes), kind, indices)
        sheet = self.pool.sheet(kind).take(indices)
        passes = plan(self.pool.lm, sheet)
        states = [self.trunk.states(work, sheet.sequences) if self.trunk else None for work in passes]
        yield from (self._score(kind, probe, sheet, passes, states) for probe in probes)

    @torch.no_grad()
    def _score(self, kind: Kind, probe: Probe, sheet: Sheet, passes: list[Pass], states: list[Tensor | None]) -> Outputs:
        parts = []
        with self._at(probe):
            for work, state in zip(passes, states, strict=True):
                with self.trunk.given(state) if self.trunk and state is not None else nullcontext():
                    parts.append(sheet_logits(self.pool.lm, sheet, [work]))
        logits = torch.cat(parts)[torch.argsort(torch.cat([work.sites for work in passes]))]
        return self.pool.outputs(kind, sheet, sheet.likelihoods(logits, sheet.columns if sheet.closed else None))

    @torch.no_grad()
    def _texts(self, probe: Probe, indices: Indices, draw: int) -> Outputs:
        pool, numbers = self.pool, indices.tolist()
        prompts, sampler = [pool.prompts[i] for i in numbers], pool.sampler(draw)
        with self._at(probe):
            said = generate(
                pool.lm, prompts, new_tokens=pool.new_tokens, stops=pool.stops, sampler=sampler, examples=numbers
            )
        pool.charge(1, Kind.TEXT, indices, sum(map(len, said)))
        return Generations([pool.text(tokens) for tokens in said])


class TailScorer(Scorer):
    """All probes at once from the hidden states below the final norm."""

    def __init__(self, pool: Pool, weights: Weights, trunk: Trunk, names: Sequence[str], sites: Sites | None = None) -> None:
        self.pool, self.weights = pool, weights
        self.tail = Tail(pool.lm, trunk, names)
        self.sites = Sites(pool.lm, trunk) if sites is None else sites
        self.rest = Rest(self.tail, self.sites)
        self._decoded = lru_cache(maxsize=1 << 16)(pool.text)
        self._of_sheet: dict[Kind, SheetSites] = {}

    @torch.no_grad()
    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> list[Outputs]:
        stacked = self.weights.stacked(probes)
        if kind is Kind.TEXT:
            return self._texts(stacked, indices, draw)
        self.pool.charge(passes(probes), kind, indices)
        known = self._known(kind)
        numbers = known.of(indices)
        hidden = self.sites.at(numbers)
        if known.sheet.closed:
            values = closed_likelihoods(self.tail, stacked, hidden, known.options[indices]).cpu().numpy()
            return [Choices(member) for member in values]
        sheet = known.sheet.take(indices)
        if self.tail.narrow:
            still = Still(self.tail, self.weights.stacked([REST]), hidden, self.rest.at(numbers), sheet)
            found = narrow_likelihoods(still, stacked, [probe.part for probe in probes])
        else:
            found = open_likelihoods(self.tail, stacked, hidden, sheet)
        return [self.pool.outputs(kind, sheet, member) for member in found]

    def _known(self, kind: Kind) -> SheetSites:
        if kind not in self._of_sheet:
            self._of_sheet[kind] = SheetSites(self.sites, self.pool.sheet(kind))
        return self._of_sheet[kind]

    def _texts(self, stacked: dict[str, Tensor], indices: Indices, draw: int) -> list[Outputs]:
        pool, numbers = self.pool, indices.tolist()
        say = Decoder(self.tail, self.sites, pool.new_tokens, pool.stops, pool.sampler(draw))
        said = say(stacked, [pool.prompts[i] for i in numbers], numbers)
        pool.charge(len(said), Kind.TEXT, indices, sum(len(tokens) for member in said for tokens in member))
        return [Generations([self._decoded(tuple(tokens)) for tokens in member]) for member in said]


def scorer_for(
    pool: Pool, weights: Weights, subset: Subset, trunk_bytes: int = 1 << 30, sites: Sites | None = None
) -> Scorer:
    """The cheapest scorer that is exact for what is tuned; `sites` are hidden states known from an earlier run.

    At most `trunk_bytes` of hidden states are kept in memory, the others in a temporary file. What enters layer 0 is looked
    up in the embedding as fast as in a store, so cut 0 keeps nothing.
    """
    if subset.cut == 0:
        return ForwardScorer(pool, weights, None)
    trunk = Trunk(pool.lm, subset.cut, trunk_bytes)
    if subset.cut == trunk.where.depth and is_plain(pool.lm, trunk):
        return TailScorer(pool, weights, trunk, subset.names, sites)
    return ForwardScorer(pool, weights, trunk)


class Evaluation:
    """An objective on a scorer: scores of probes on a batch, and of the weights at rest on a whole split."""

    def __init__(
        self, scorer: Scorer, objective: Objective, steps: int = 0, signal: Signal | None = None, chunk: int = 512
    ) -> None:
        self.scorer, self.objective, self.steps, self.chunk = scorer, objective, steps, chunk
        self.signal = signal or Signal()
        self.kind = kind_for(scorer.pool.spec, objective)
        self.signal.check(objective, self._draws)

    @property
    def _draws(self) -> bool:
        """Whether what is scored is drawn: text by the pool, options by the signal."""
        if self.kind is Kind.TEXT:
            return self.scorer.pool.sampler(0) is not None
        return self.kind is Kind.CHOICE and bool(self.signal.temperature) and self.objective.needs is Needs.PREDICTION

    def scores(self, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> list[Scored]:
        """One score for each probe; all of them share the `draw`."""
        pool = self.scorer.pool
        examples = pool.at(indices)
        with scoring(step=draw, steps=self.steps, tokenize=pool.tokenize):
            return self.signal.values(self.objective, self._drawn(probes, indices, examples, draw), examples)

    def _drawn(
        self, probes: Sequence[Probe], indices: Indices, examples: Sequence[Example], draw: int
    ) -> Iterator[Iterable[Outputs]]:
        """What every probe says, once for each sample."""
        numbers = range(draw * self.signal.samples, (draw + 1) * self.signal.samples)
        if self.kind is Kind.TEXT:
            yield from (self.scorer.each(self.kind, probes, indices, n) for n in numbers)
        elif not self._draws:
            yield self.scorer.each(self.kind, probes, indices)
        else:
            said = [o for o in self.scorer.each(self.kind, probes, indices) if isinstance(o, Choices)]
            keys = [(self.scorer.pool.seed, n) for n in numbers]
            yield from ([self.signal.drawn(o, examples, key) for o in said] for key in keys)

    def said(self, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> list[list[Outputs]]:
        """What every probe says, [samples][probes], for the signal to score in part or whole."""
        return [list(members) for members in self._drawn(probes, indices, self.scorer.pool.at(indices), draw)]

    def value(self, indices: Indices) -> Scored:
        """The signal of the weights at rest; not charged, since it only watches."""
        with self._unpaid():
            parts = [self._drawn([REST], part, self.scorer.pool.at(part), 0) for part in self._parts(indices)]
            draws = [[joined([next(iter(outputs)) for outputs in of_draw])] for of_draw in zip(*parts, strict=True)]
            return self.signal.values(self.objective, draws, self.scorer.pool.at(indices))[0]

    def at_rest(self, indices: Indices) -> Outputs:
        """What the model says now; not charged, since it only watches."""
        with self._unpaid():
            return joined([self.scorer.outputs(self.kind, [REST], part)[0] for part in self._parts(indices)])

    def _parts(self, indices: Indices) -> list[Indices]:
        return np.split(indices, range(self.chunk, len(indices), self.chunk))

    @contextmanager
    def _unpaid(self) -> Iterator[None]:
        cost = self.scorer.pool.cost
        before = (cost.forwards, cost.examples, cost.tokens)
        yield
        cost.forwards, cost.examples, cost.tokens = before
