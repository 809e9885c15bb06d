"""The scorer of many members at once: a sheet's passes, or a generation, with every sequence once for each member.

Costs are charged as they are one after another: a member's pass is a pass. See overlay.py for what members share.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from zo_objectives.language import hf
from zo_objectives.language.hf import Pass, continuations, member_logits, micro_batches, pad, plan, repeated
from zo_objectives.language.outputs import Generations, Outputs
from zo_objectives.language.sheet import Ids, Ints, Ranges, Sheet
from zo_objectives.scoring import ForwardScorer, Indices, Kind, Pool
from zo_objectives.search.estimators import Probe
from zo_objectives.search.members import members, verify
from zo_objectives.search.overlay import Overlay
from zo_objectives.search.weights import Weights
from zo_objectives.trunk import Trunk

TRIED = (3, 2, 16)  # probes, sequences and tokens on which a model is tried before members are batched in it


class BatchedScorer:
    """Up to `limit` probes in one pass, and no more than keep it within hf.MICRO_TOKENS padded tokens.

    Needs low-rank noise where matrices are tuned. What it says is what a ForwardScorer says, up to the order of sums (law 5:
    1e-4 nats in float32). Raises InputError for a model in which members cannot be batched: at the latest when it is tried
    on a few tokens, before anything is scored.
    """

    def __init__(self, pool: Pool, weights: Weights, trunk: Trunk | None = None, limit: int | None = None) -> None:
        self.pool, self.weights, self.trunk, self.limit = pool, weights, trunk, limit
        self._resting = ForwardScorer(pool, weights, trunk)
        self._tried = not weights.store.exact  # weights that drift when they are probed are not tried

    @torch.no_grad()
    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices) -> list[Outputs]:
        if not any(probe.scale for probe in probes):
            return self._resting.outputs(kind, probes, indices)
        sheet = None if kind is Kind.TEXT else self.pool.sheet(kind).take(indices)
        sequences = [self.pool.prompts[i] for i in indices.tolist()] if sheet is None else sheet.sequences
        self._try(probes, sequences)
        most = max(1, hf.MICRO_TOKENS // max(map(len, sequences)))
        size = min(most, len(probes), self.limit or most)
        parts = [probes[start : start + size] for start in range(0, len(probes), size)]
        if sheet is None:
            said = [member for part in parts for member in self._said(part, sequences, hf.MICRO_TOKENS // size)]
            self.pool.charge(len(probes), kind, indices, sum(len(tokens) for member in said for tokens in member))
            return [Generations([self.pool.text(tokens) for tokens in member]) for member in said]
        self.pool.charge(len(probes), kind, indices)
        passes = plan(self.pool.lm, sheet, hf.MICRO_TOKENS // size)
        states = [self.trunk.states(work, sheet.sequences) if self.trunk else None for work in passes]
        values = torch.cat([self._likelihoods(part, sheet, passes, states) for part in parts])
        return [self.pool.outputs(kind, sheet, member) for member in values]

    def _likelihoods(
        self, probes: Sequence[Probe], sheet: Sheet, passes: Sequence[Pass], states: Sequence[Tensor | None]
    ) -> Tensor:
        """[members, examples, options]."""
        columns = sheet.columns if sheet.closed else None
        values = torch.tensor(-torch.inf)
        with members(self.weights, probes, rows=1) as overlay:
            for work, state in zip(passes, states, strict=True):
                logits = self._logits(overlay, work, state)
                chosen = logits if columns is None else logits[..., torch.from_numpy(columns).to(logits.device)]
                found = _at_sites(sheet, work.sites.cpu().numpy()).likelihoods(chosen, columns)
                values = torch.maximum(values.to(found), found)  # an option is read in one pass, and is -inf in the others
        return values

    def _logits(self, overlay: Overlay, work: Pass, state: Tensor | None) -> Tensor:
        """[members, sites of the pass, vocabulary]."""
        overlay.fit(len(work.batch.rows))
        given: AbstractContextManager[None] = nullcontext()
        if self.trunk is not None and state is not None:
            given = self.trunk.given(state.repeat(overlay.count, 1, 1))
        with given, overlay.by_member_in(self.pool.lm.model.get_output_embeddings()):
            return member_logits(self.pool.lm, work, overlay.count)

    def _said(self, probes: Sequence[Probe], prompts: Sequence[Ids], tokens: int) -> list[list[list[int]]]:
        """Greedy continuations [members][prompts]; passes of at most `tokens` padded tokens for each member."""
        pool, lm = self.pool, self.pool.lm
        said: list[list[list[int]]] = [[[] for _ in prompts] for _ in probes]
        with members(self.weights, probes, rows=1) as overlay:
            for group in micro_batches(prompts, tokens):
                overlay.fit(len(group))
                batch = repeated(pad(prompts, group, lm.padding, lm.device, left=True), len(probes))
                for row, text in enumerate(continuations(lm, batch, new_tokens=pool.new_tokens, stops=pool.stops)):
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
            logits: Tensor = lm.model(input_ids=whole.ids, attention_mask=whole.mask, use_cache=False).logits
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
        reads_of=Ranges.of(counts.tolist()),
    )
