"""What members say, read out of the tail: likelihoods of options and targets, and greedy text."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zo_objectives.language.sheet import Ids, Ints, Sheet
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


def decode(
    tail: Tail, sites: Sites, stacked: Stacked, prompts: Sequence[Ids], *, new_tokens: int, stops: Sequence[int]
) -> list[list[list[int]]]:
    """Greedy continuations of every prompt by every member, [members][prompts]; a stop token ends one and is included.

    Members that have said the same to a prompt so far share one hidden state, and what any of them said is remembered.
    """
    members = member_count(stacked)
    said: list[list[Ids]] = [list(prompts) for _ in range(members)]
    alive = [list(range(len(prompts))) for _ in range(members)]
    stop = set(stops)
    for _ in range(new_tokens):
        widths = np.array([len(a) for a in alive])
        if not widths.any():
            break
        numbers = np.zeros((members, widths.max()), dtype=np.int64)
        numbers[np.arange(widths.max()) < widths[:, None]] = sites.of_prefixes(
            [said[m][i] for m in range(members) for i in alive[m]]
        )
        chosen = _argmax(tail, stacked, sites.at(numbers))
        for m in range(members):
            tokens = chosen[m].tolist()
            for i, token in zip(alive[m], tokens, strict=False):
                said[m][i] = (*said[m][i], token)
            alive[m] = [i for i, token in zip(alive[m], tokens, strict=False) if token not in stop]
    return [[list(ids[len(prompt) :]) for ids, prompt in zip(row, prompts, strict=True)] for row in said]


def _argmax(tail: Tail, stacked: Stacked, hidden: Tensor) -> NDArray[np.int64]:
    """The likeliest next token at states [members, sites, d], as [members, sites], with at most CELLS logits at a time."""
    step = max(1, CELLS // (len(tail.weight) * len(hidden)))
    parts = [tail.logits(stacked, tail.normed(stacked, h)).argmax(-1) for h in torch.split(hidden, step, dim=1)]
    return torch.cat(parts, dim=1).cpu().numpy()
