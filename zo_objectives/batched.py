"""The scorer of many members at once: a sheet's passes, or a generation, with every sequence once for each member.

Costs are charged as they are one after another: a member's pass is a pass. See overlay.py for what members share.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from zo_objectives.language import passes
from zo_objectives.language.generation import continuations
from zo_objectives.language.outputs import Generations, Outputs
from zo_objectives.language.passes import Pass, member_logits, pad, plan, prompt_batches, repeated
from zo_objectives.language.sheet import Ids, Ints, Ranges, Sheet
from zo_objectives.scoring import ForwardScorer, Indices, Kind, Pool, Scorer
from zo_objectives.search.estimators import Probe
from zo_objectives.search.members import members, verify
from zo_objectives.search.overlay import Overlay
from zo_objectives.search.weights import Weights
from zo_objectives.trunk import Trunk

TRIED = (3, 2, 16)  # probes, sequences and tokens on which a model is tried before members are batched in it


class BatchedScorer(Scorer):
    """Up to `limit` probes in one pass, and no more than keep it within passes.MICRO_TOKENS padded tokens.

    Needs low-rank noise where matrices are tuned. What it says is what a ForwardScorer says, up to the order of sums (law 5:
    1e-4 nats in float32). Raises InputError for a model in which members cannot be batched: at the latest when it is tried
    on a few tokens, before anything is scored.
    """

    def __init__(self, pool: Pool, weights: Weights, trunk: Trunk | None = None, limit: int | None = None) -> None:
        self.pool, self.weights, self.trunk, self.limit = pool, weights, trunk, limit
        self._resting = ForwardScorer(pool, weights, trunk)
        self._tried = not weights.store.exact  # weights that drift when they are probed are not tried

    @torch.no_grad()
    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> list[Outputs]:
        if not any(probe.scale for probe in probes):
            return self._resting.outputs(kind, probes, indices, draw)
        sheet = None if kind is Kind.TEXT else self.pool.sheet(kind).take(indices)
        numbers = indices.tolist()
        sequences = [self.pool.prompts[i] for i in numbers] if sheet is None else sheet.sequences
        self._try(probes, sequences)
        most = max(1, passes.MICRO_TOKENS // max(map(len, sequences)))
        size = min(most, len(probes), self.limit or most)
        parts = [probes[start : start + size] for start in range(0, len(probes), size)]
        if sheet is None:
            say = partial(self._said, prompts=sequences, numbers=numbers, tokens=passes.MICRO_TOKENS // size, draw=draw)
            said = [member for part in parts for member in say(part)]
            self.pool.charge(len(probes), kind, indices, sum(len(tokens) for member in said for tokens in member))
            return [Generations([self.pool.text(tokens) for tokens in member]) for member in said]
        self.pool.charge(len(probes), kind, indices)
        planned = plan(self.pool.lm, sheet, passes.MICRO_TOKENS // size)
        states = [self.trunk.states(work, sheet.sequences) if self.trunk else None for work in planned]
        values = torch.cat([self._likelihoods(part, sheet, planned, states) for part in parts])
        return [self.pool.outputs(kind, sheet, member) for member in values]

    def _likelihoods(
        self, probes: Sequence[Probe], sheet: Sheet, planned: Sequence[Pass], states: Sequence[Tensor | None]
    ) -> Tensor:
        """[members, examples, options]."""
        columns = sheet.columns if sheet.closed else None
        values = torch.zeros(())
        with members(self.weights, probes, rows=1) as overlay:
            for work, state in zip(planned, states, strict=True):
                logits = self._logits(overlay, work, state)
                chosen = logits if columns is None else logits[..., torch.from_numpy(columns).to(logits.device)]
                part = _at_sites(sheet, work.sites.cpu().numpy())
                found = part.likelihoods(chosen, columns)
                values = values.to(found) + found.masked_fill(part.missing(found.device), 0.0)
        return values.masked_fill(sheet.missing(values.device), -torch.inf)

    def _logits(self, overlay: Overlay, work: Pass, state: Tensor | None) -> Tensor:
        """[members, sites of the pass, vocabulary]."""
        overlay.fit(len(work.batch.rows))
        given: AbstractContextManager[None] = nullcontext()
        if self.trunk is not None and state is not None:
            given = self.trunk.given(state.repeat(overlay.count, 1, 1))
        with given, overlay.by_member_in(self.pool.lm.model.get_output_embeddings()):
            return member_logits(self.pool.lm, work, overlay.count)

    def _said(
        self, probes: Sequence[Probe], prompts: Sequence[Ids], numbers: Sequence[int], tokens: int, draw: int
    ) -> list[list[list[int]]]:
        """Continuations [members][prompts]; passes of at most `tokens` padded tokens for each member."""
        pool, lm, sampler = self.pool, self.pool.lm, self.pool.sampler(draw)
        said: list[list[list[int]]] = [[[] for _ in prompts] for _ in probes]
        with members(self.weights, probes, rows=1) as overlay:
            for group in prompt_batches(lm, prompts, tokens):
                overlay.fit(len(group))
                batch = repeated(pad(prompts, group, lm.padding, lm.device, left=True), len(probes))
                of = [numbers[r] for r in group] * len(probes)
                texts = continuations(lm, batch, new_tokens=pool.new_tokens, stops=pool.stops, sampler=sampler, examples=of)
                for row, text in enumerate(texts):
                    member, place = divmod(row, len(group))
                    said[member][group[place]] = text
        return said

    def _try(self, probes: Sequence[Probe], sequences: Sequence[Ids]) -> None:
        """Once: members of the model together against one after another, on a few tokens."""
        if self._tried:
            return
        count, rows, length = TRIED
        lm, some = self.pool.lm, [ids[:length] for ids in dict.fromkeys(sequences)][:rows]
        batch = pad(some, range(len(some)), lm.padding, lm.device)
        last = torch.tensor([len(ids) - 1 for ids in some], device=lm.device)

        def run(members: int) -> Tensor:
            whole = repeated(batch, members)
            logits: Tensor = lm.model(input_ids=whole.ids, attention_mask=whole.mask, **lm.uncached).logits
            return logits[torch.arange(len(logits), device=lm.device), last.repeat(members)]

        few = [probe._replace(group=None) for probe in probes if probe.scale][:count]
        verify(self.weights, few, len(some), run)
        self._tried = True


def _at_sites(sheet: Sheet, sites: Ints) -> Sheet:
    """The sheet with what is read at `sites` only, and with their numbers."""
    place = np.full(len(sheet.site_sequence), -1)
    place[sites] = np.arange(len(sites))
    reads = np.flatnonzero(place[sheet.read_site] >= 0)
    counts = np.bincount(sheet.reads_of.owner[reads], minlength=len(sheet))
    return replace(
        sheet,
        read_site=place[sheet.read_site[reads]],
        read_token=sheet.read_token[reads],
        read_option=sheet.read_option[reads],
        read_weight=sheet.read_weight[reads],
        reads_of=Ranges.of(counts.tolist()),
    )
