"""What members say, read out of the tail: likelihoods of options and targets, and text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zo_objectives.growing import growing
from zo_objectives.language.generation import Sampler
from zo_objectives.language.passes import MICRO_TOKENS, micro_batches
from zo_objectives.language.sheet import Ids, Ints, Sheet
from zo_objectives.search.estimators import Part
from zo_objectives.tail import Sites, Stacked, Tail, member_count

CELLS = 1 << 24  # logits that are held at a time


def _groups(stacked: Stacked, cells: int) -> Iterator[Stacked]:
    """The members in groups of CELLS logits, when each has `cells`."""
    step = max(1, CELLS // cells)
    for start in range(0, member_count(stacked), step):
        yield {name: values[start : start + step] for name, values in stacked.items()}


def closed_likelihoods(tail: Tail, stacked: Stacked, hidden: Tensor, options: Ints) -> Tensor:
    """[members, examples, options] up to one constant a row, from hidden states [examples, d] of a closed sheet's sites.

    `options` [examples, options] are the options' tokens; -1, where an example has fewer, gives -inf.
    """
    columns, at = np.unique(np.maximum(options, 0), return_inverse=True)
    place = at.reshape(options.shape) * len(hidden) + np.arange(len(hidden))[:, None]  # in [columns * examples]
    chosen = torch.from_numpy(place.ravel()).to(hidden.device)
    parts = []
    for group in _groups(stacked, len(hidden) * len(columns)):
        logits = tail.logits_of(group, tail.normed(group, hidden), columns)
        parts.append(logits.flatten(1).index_select(1, chosen).view(-1, *options.shape))
    missing = torch.from_numpy(options < 0)
    likelihoods = torch.cat(parts)
    return likelihoods.masked_fill_(missing.to(hidden.device), -torch.inf) if missing.any() else likelihoods


def open_likelihoods(tail: Tail, stacked: Stacked, hidden: Tensor, sheet: Sheet) -> Tensor:
    """[members, examples, options], normalised over the vocabulary, from hidden states [sites, d] of a sheet's sites."""
    groups = _groups(stacked, len(hidden) * len(tail.weight))
    return torch.cat([sheet.likelihoods(tail.logits(group, tail.normed(group, hidden)), None) for group in groups])


class Rest:
    """Log of the summed exponentials of all logits but those of label rows, by the number of a site.

    Where label rows are all that is tuned, no member changes it: it is computed once for every site.
    """

    def __init__(self, tail: Tail, sites: Sites) -> None:
        self.tail, self.sites = tail, sites
        self.known = np.zeros(0, dtype=np.float32)  # nan: not yet

    def at(self, numbers: Ints) -> Tensor:
        """Those of some sites, [*numbers.shape]."""
        self.known = np.pad(self.known, (0, len(self.sites) - len(self.known)), constant_values=np.nan)
        new = np.unique(numbers[np.isnan(self.known[numbers])])
        step = max(1, CELLS // len(self.tail.weight))
        for some in (new[start : start + step] for start in range(0, len(new), step)):
            self.known[some] = self.tail.other_logits(self.sites.at(some)).logsumexp(-1).cpu().numpy()
        return torch.from_numpy(self.known[numbers]).to(self.tail.weight.device)


class Still:
    """What the weights at rest say at the sites of a sheet, where label rows are all that is tuned."""

    def __init__(self, tail: Tail, centre: Stacked, hidden: Tensor, rest: Tensor, sheet: Sheet) -> None:
        self.tail, self.hidden, self.rest, self.sheet = tail, hidden, rest, sheet
        self.columns = np.union1d(tail.tokens, sheet.columns)
        self.own = np.isin(self.columns, tail.tokens)
        self.logits = tail.logits_of(centre, tail.normed(centre, hidden), self.columns)[0]  # [columns, sites]
        self.site = torch.from_numpy(sheet.read_site).to(hidden.device)
        self.read = self.logits[
            torch.from_numpy(np.searchsorted(self.columns, sheet.read_token)).to(hidden.device), self.site
        ]

    def likelihoods(self, stacked: Stacked, moved: Ints) -> Tensor:
        """[members, examples, options] of members that have the label rows of tokens `moved`, ascending, elsewhere."""
        device, others = (
            self.hidden.device,
            torch.from_numpy(self.own & ~np.isin(self.columns, moved)).to(self.hidden.device),
        )
        left = torch.logaddexp(self.rest, self.logits[others].logsumexp(0)) if others.any() else self.rest
        those = np.flatnonzero(np.isin(self.sheet.read_token, moved))
        place = torch.from_numpy(np.searchsorted(moved, self.sheet.read_token[those])).to(device)
        reads, parts = torch.from_numpy(those).to(device), []
        for group in _groups(stacked, len(self.hidden) * len(moved)):
            logits = self.tail.logits_of(group, self.tail.normed(group, self.hidden), moved)
            values = self.read.repeat(len(logits), 1)
            values[:, reads] = logits[:, place, self.site[reads]]
            parts.append(self.sheet.summed(values - torch.logaddexp(logits.logsumexp(1), left)[:, self.site]))
        return torch.cat(parts)


def narrow_likelihoods(still: Still, stacked: Stacked, parts: Sequence[Part | None]) -> Tensor:
    """[members, examples, options] where label rows are all that is tuned, and of those only a part's where it is given."""
    order, found = list[int](), list[Tensor]()
    for part in dict.fromkeys(parts):
        members = [i for i, p in enumerate(parts) if p == part]
        moved = still.tail.tokens if part is None else still.tail.tokens[part.first :: part.of]
        found.append(still.likelihoods({name: values[members] for name, values in stacked.items()}, moved))
        order += members
    return torch.cat(found)[torch.argsort(torch.tensor(order, device=found[0].device))]


@dataclass(frozen=True)
class Decoder:
    """Continuations by all members at once. Members that have said the same to a prompt so far share one hidden state."""

    tail: Tail
    sites: Sites
    new_tokens: int
    stops: Sequence[int]
    sampler: Sampler | None = None

    def __call__(self, stacked: Stacked, prompts: Sequence[Ids], examples: Sequence[int]) -> list[list[list[int]]]:
        """Continuations [members][prompts]; a stop token ends one and is included. `examples` number the prompts."""
        members = member_count(stacked)
        said: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(members)]
        for group in micro_batches(prompts, MICRO_TOKENS // members):
            found = self._together(stacked, [prompts[i] for i in group], [examples[i] for i in group])
            for row, continuations in zip(said, found, strict=True):
                for i, tokens in zip(group, continuations, strict=True):
                    row[i] = tokens
        return said

    def _together(self, stacked: Stacked, prompts: Sequence[Ids], examples: Sequence[int]) -> list[list[list[int]]]:
        """The same of a few prompts, whose past all members can hold at a time."""
        members, run = member_count(stacked), growing(self.sites.lm, self.sites.trunk)
        said: list[list[Ids]] = [list(prompts) for _ in range(members)]
        alive = [list(range(len(prompts))) for _ in range(members)]
        stop = set(self.stops)
        for position in range(self.new_tokens):
            widths = np.array([len(a) for a in alive])
            if not widths.any():
                break
            there = np.arange(widths.max()) < widths[:, None]
            numbers, of = np.zeros(there.shape, dtype=np.int64), np.zeros(there.shape, dtype=np.int64)
            numbers[there] = self.sites.of_prefixes([said[m][i] for m in range(members) for i in alive[m]], run)
            of[there] = [examples[i] for a in alive for i in a]
            chosen = self._next(stacked, self.sites.at(numbers), of, position)
            for m in range(members):
                tokens = chosen[m].tolist()
                for i, token in zip(alive[m], tokens, strict=False):
                    said[m][i] = (*said[m][i], token)
                alive[m] = [i for i, token in zip(alive[m], tokens, strict=False) if token not in stop]
        return [[list(ids[len(prompt) :]) for ids, prompt in zip(row, prompts, strict=True)] for row in said]

    def _next(self, stacked: Stacked, hidden: Tensor, examples: Ints, position: int) -> Ints:
        """The next tokens [members, sites] at states [members, sites, d], with at most CELLS logits at a time."""
        step = max(1, CELLS // (len(self.tail.weight) * len(hidden)))
        parts = []
        for start in range(0, hidden.shape[1], step):
            part = slice(start, start + step)
            logits = self.tail.logits(stacked, self.tail.normed(stacked, hidden[:, part]))
            if self.sampler is not None:
                flat = self.sampler.perturbed(logits.flatten(0, 1), examples[:, part].ravel().tolist(), position)
                logits = flat.view_as(logits)
            parts.append(logits.argmax(-1))
        return torch.cat(parts, dim=1).cpu().numpy()
