"""Growing prefixes: the hidden states at their ends, each for the price of one token once the rest has been run.

The layers below the final norm are the same for all members, so keys and values belong to what was said, not to who said it.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.passes import Padded, micro_batches, pad
from zo_objectives.language.sheet import Ids
from zo_objectives.trunk import Trunk

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True)
class Past:
    """Keys and values of every layer for prefixes padded on the left, a row each, and their mask [rows, width].

    It is used up by what goes on from it: a pass writes into the cache.
    """

    rows: dict[Ids, int]
    cache: "DynamicCache"
    mask: Tensor

    def of(self, prefixes: Sequence[Ids]) -> "Past":
        """That of some of its prefixes, in their order; one may come more than once."""
        numbers = [self.rows[p] for p in prefixes]
        if numbers == list(range(len(self.mask))):
            return self
        chosen = torch.tensor(numbers, device=self.mask.device)
        self.cache.batch_select_indices(chosen)
        return Past({p: i for i, p in enumerate(prefixes)}, self.cache, self.mask[chosen])

    def beside(self, other: "Past") -> "Past":
        """Both, this one's rows first."""
        from transformers import DynamicCache

        width, count = max(self.mask.shape[1], other.mask.shape[1]), len(self.mask)
        pairs = zip(self.cache.layers, other.cache.layers, strict=True)
        both = [(_stacked(a.keys, b.keys, width, -2), _stacked(a.values, b.values, width, -2)) for a, b in pairs]
        rows = self.rows | {p: i + count for p, i in other.rows.items()}
        return Past(rows, DynamicCache(both), _stacked(self.mask, other.mask, width, -1))


def _stacked(first: Tensor, second: Tensor, width: int, dim: int) -> Tensor:
    """One above the other, each with zeros before it along a dimension, counted from the end, that make it `width` wide."""
    behind = [0, 0] * (-dim - 1)
    return torch.cat([nn.functional.pad(x, [*behind, width - x.shape[dim], 0]) for x in (first, second)])


def has_past(lm: LanguageModel) -> bool:
    """Whether all that a model remembers of a prefix are keys and values, a row for each token."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    takes = inspect.signature(type(lm.model).forward).parameters  # one with virtual tokens names none
    if lm.bidirectional or "past_key_values" not in takes or lm.model._is_stateful:
        return False
    layers = DynamicCache(config=lm.model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class Growing:
    """Hidden states [prefixes, d] at the ends of prefixes that are given in calls which go on from each other.

    The past of one call's prefixes is kept until the next: what has grown by a token since takes a pass over that token.
    """

    def __init__(self, lm: LanguageModel, trunk: Trunk) -> None:
        self.lm, self.trunk = lm, trunk
        self.placed = "position_ids" in inspect.signature(type(lm.model).forward).parameters
        self.past: Past | None = None

    def __call__(self, prefixes: Sequence[Ids]) -> Tensor:
        known = self.past.rows if self.past is not None else {}
        grown = [i for i, p in enumerate(prefixes) if p[:-1] in known]
        fresh = [i for i, p in enumerate(prefixes) if p[:-1] not in known]
        groups = [[fresh[j] for j in group] for group in micro_batches([prefixes[i] for i in fresh])]
        parts = [self._run([prefixes[i] for i in group], None) for group in groups]
        if self.past is not None and grown:
            parts.append(self._run([prefixes[i] for i in grown], self.past.of([prefixes[i][:-1] for i in grown])))
            groups.append(grown)
        self.past = reduce(Past.beside, (past for _, past in parts))
        order = torch.tensor([i for group in groups for i in group])
        return torch.cat([states for states, _ in parts])[torch.argsort(order).to(self.lm.device)]

    def _run(self, prefixes: Sequence[Ids], past: Past | None) -> tuple[Tensor, Past]:
        """States at the ends of prefixes and their past, from that of all their tokens but the last, or from nothing."""
        from transformers import DynamicCache

        new = prefixes if past is None else [p[-1:] for p in prefixes]
        batch = pad(new, range(len(new)), self.lm.padding, self.lm.device, left=True)
        mask = batch.mask if past is None else torch.cat([past.mask, batch.mask], dim=1)
        cache = DynamicCache() if past is None else past.cache
        given = {"past_key_values": cache, "use_cache": True}
        if self.placed:
            given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -batch.ids.shape[1] :]
        states = self.trunk.run(Padded(batch.rows, batch.ids, mask), **given)[:, -1]
        return states, Past({p: i for i, p in enumerate(prefixes)}, cache, mask)


def growing(lm: LanguageModel, trunk: Trunk) -> Growing | None:
    """One for a model that has a past of keys and values; None for one with another, whose prefixes have to be run whole."""
    return Growing(lm, trunk) if has_past(lm) else None
