"""Scorers: what a model says on some examples, at each of several probes.

    ForwardScorer   any subset: one probe after another, each a forward pass from the cut (or `generate`)
    TailScorer      nothing tuned below the final norm: all probes at once from stored hidden states

`scorer_for` picks one. Every probe of a call meets the same examples in the same order, padded the same way (law 8).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zo_objectives.errors import InputError
from zo_objectives.language.hf import (
    CausalLM,
    Pass,
    choice_sheet,
    generate,
    plan,
    prompt_ids,
    sheet_logits,
    stop_tokens,
    target_sheet,
    text_of,
)
from zo_objectives.language.objectives import Needs, Objective
from zo_objectives.language.outputs import Choices, Example, Generations, Likelihoods, Outputs
from zo_objectives.language.sheet import Ids, Sheet
from zo_objectives.language.tasks import TaskSpec, apply_filters
from zo_objectives.readout import closed_likelihoods, decode, open_likelihoods
from zo_objectives.search.estimators import Probe
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

    def charge(self, forwards: int, examples: int, tokens: int) -> None:
        self.forwards += forwards
        self.examples += examples
        self.tokens += tokens


@dataclass(frozen=True)
class Pool:
    """All examples of a run, tokenised on demand; scorers are given indices into it."""

    lm: CausalLM
    spec: TaskSpec
    examples: tuple[Example, ...]
    cost: Cost = field(default_factory=Cost)

    def renewed(self, lm: CausalLM) -> "Pool":
        """The same examples, as tokenised, for another copy of the model and with no costs."""
        pool = Pool(lm, self.spec, self.examples)
        kept = ("choices", "targets", "prompts", "stops", "_lengths")
        pool.__dict__.update({name: self.__dict__[name] for name in kept if name in self.__dict__})
        return pool

    @cached_property
    def choices(self) -> Sheet:
        return choice_sheet(self.lm, self.examples)

    @cached_property
    def targets(self) -> Sheet:
        until = self.spec.generation_kwargs.until
        end = until[0] if until else ""
        return target_sheet(self.lm, self.examples, self.spec.target_delimiter, end)

    @cached_property
    def prompts(self) -> tuple[Ids, ...]:
        return tuple(prompt_ids(self.lm, e, self.new_tokens) for e in self.examples)

    @property
    def new_tokens(self) -> int:
        return self.spec.generation_kwargs.max_gen_toks

    @cached_property
    def stops(self) -> list[int]:
        return stop_tokens(self.lm, self.spec.generation_kwargs.until)

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

    def lengths(self, kind: Kind) -> Indices:
        """How many tokens a pass over each example scores before it generates, [examples]."""
        if kind not in self._lengths:
            if kind is Kind.TEXT:
                self._lengths[kind] = np.array([len(p) for p in self.prompts])
            else:
                sheet = self.sheet(kind)
                tokens = np.array([len(s) for s in sheet.sequences])
                self._lengths[kind] = np.add.reduceat(tokens, sheet.sequences_of.starts[:-1])
        return self._lengths[kind]

    def charge(self, members: int, kind: Kind, indices: Indices, generated: int = 0) -> None:
        """Charges `members` passes over the examples; `generated` counts tokens of all members together."""
        tokens = int(self.lengths(kind)[indices].sum())
        self.cost.charge(members, members * len(indices), members * tokens + generated)

    def outputs(self, kind: Kind, sheet: Sheet, likelihoods: Tensor) -> Outputs:
        values = likelihoods.float().cpu().numpy()
        return Choices(values) if kind is Kind.CHOICE else Likelihoods(values[:, 0], sheet.read_counts)


class Scorer(Protocol):
    """What the model says on examples `indices` of a pool, once for each probe."""

    pool: Pool

    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices) -> list[Outputs]: ...


class ForwardScorer:
    """One probe after another; layers below the cut from the trunk's store."""

    def __init__(self, pool: Pool, weights: Weights | None, trunk: Trunk | None) -> None:
        self.pool, self.weights, self.trunk = pool, weights, trunk

    def _at(self, probe: Probe) -> AbstractContextManager[None]:
        if probe == REST:
            return nullcontext()
        assert self.weights is not None
        return self.weights.at(probe)

    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices) -> list[Outputs]:
        if kind is Kind.TEXT:
            return [self._texts(probe, indices) for probe in probes]
        self.pool.charge(len(probes), kind, indices)
        sheet = self.pool.sheet(kind).take(indices)
        passes = plan(self.pool.lm, sheet)
        states = [self.trunk.states(work, sheet.sequences) if self.trunk else None for work in passes]
        return [self._score(kind, probe, sheet, passes, states) for probe in probes]

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
    def _texts(self, probe: Probe, indices: Indices) -> Outputs:
        pool = self.pool
        with self._at(probe):
            said = generate(pool.lm, [pool.prompts[i] for i in indices], new_tokens=pool.new_tokens, stops=pool.stops)
        pool.charge(1, Kind.TEXT, indices, sum(map(len, said)))
        return Generations([pool.text(tokens) for tokens in said])


class TailScorer:
    """All probes at once from the hidden states below the final norm."""

    def __init__(self, pool: Pool, weights: Weights, trunk: Trunk, names: Sequence[str], sites: Sites | None = None) -> None:
        self.pool, self.weights = pool, weights
        self.tail = Tail(pool.lm, trunk, names)
        self.sites = Sites(pool.lm, trunk) if sites is None else sites
        self._decoded = lru_cache(maxsize=1 << 16)(pool.text)
        self._of_sheet: dict[Kind, SheetSites] = {}

    @torch.no_grad()
    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices) -> list[Outputs]:
        stacked = self.weights.stacked(probes)
        if kind is Kind.TEXT:
            return self._texts(stacked, indices)
        self.pool.charge(len(probes), kind, indices)
        known = self._known(kind)
        hidden = known.hidden(indices)
        if known.sheet.closed:
            values = closed_likelihoods(self.tail, stacked, hidden, known.options[indices]).cpu().numpy()
            return [Choices(member) for member in values]
        sheet = known.sheet.take(indices)
        return [self.pool.outputs(kind, sheet, member) for member in open_likelihoods(self.tail, stacked, hidden, sheet)]

    def _known(self, kind: Kind) -> SheetSites:
        if kind not in self._of_sheet:
            self._of_sheet[kind] = SheetSites(self.sites, self.pool.sheet(kind))
        return self._of_sheet[kind]

    def _texts(self, stacked: dict[str, Tensor], indices: Indices) -> list[Outputs]:
        pool = self.pool
        prompts = [pool.prompts[i] for i in indices]
        said = decode(self.tail, self.sites, stacked, prompts, new_tokens=pool.new_tokens, stops=pool.stops)
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

    def __init__(self, scorer: Scorer, objective: Objective, chunk: int = 512) -> None:
        self.scorer, self.objective, self.chunk = scorer, objective, chunk
        self.kind = kind_for(scorer.pool.spec, objective)

    def scores(self, probes: Sequence[Probe], indices: Indices) -> list[float]:
        """One score for each probe."""
        examples = self.scorer.pool.at(indices)
        return [self.objective(o, examples) for o in self.scorer.outputs(self.kind, probes, indices)]

    def at_rest(self, indices: Indices) -> Outputs:
        """What the model says now; not charged, since it only watches."""
        cost = self.scorer.pool.cost
        before = (cost.forwards, cost.examples, cost.tokens)
        parts = [
            self.scorer.outputs(self.kind, [REST], part)[0]
            for part in np.split(indices, range(self.chunk, len(indices), self.chunk))
        ]
        cost.forwards, cost.examples, cost.tokens = before
        return _joined(parts)


def _joined(parts: Sequence[Outputs]) -> Outputs:
    first = parts[0]
    if isinstance(first, Choices):
        return Choices(np.concatenate([p.loglikelihoods for p in parts if isinstance(p, Choices)]))
    if isinstance(first, Likelihoods):
        chosen = [p for p in parts if isinstance(p, Likelihoods)]
        return Likelihoods(np.concatenate([p.loglikelihoods for p in chosen]), np.concatenate([p.tokens for p in chosen]))
    return Generations([text for p in parts if isinstance(p, Generations) for text in p.texts])
