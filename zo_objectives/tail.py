"""The tail: final norm and output head with label rows. Tuning nothing below it, whole populations are scored at once.

Hidden states entering the norm are computed once for each site (a prefix of tokens), also while generating: members mostly
say the same things, so the states of what has been said before are looked up.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn

from zo_objectives.errors import InputError
from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.passes import plan
from zo_objectives.language.sheet import Ids, Ints, Ranges, Sheet
from zo_objectives.norms import Norm, Normed
from zo_objectives.states import States
from zo_objectives.subsets import LabelRows
from zo_objectives.trunk import Trunk

Stacked = Mapping[str, Tensor]


@torch.no_grad()
def is_plain(lm: LanguageModel, trunk: Trunk) -> bool:
    """Whether logits are the head of the final norm and nothing else: some families scale, cap or project around them."""
    head, seen = lm.model.get_output_embeddings(), {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return hook

    handles = [trunk.where.norm.register_forward_hook(note("norm")), head.register_forward_hook(note("head"))]
    try:
        logits = lm.model(input_ids=torch.tensor([[lm.padding]], device=lm.device), **lm.uncached).logits
    finally:
        for handle in handles:
            handle.remove()
    return torch.equal(seen["norm"][1], seen["head"][0]) and torch.equal(seen["head"][1], logits)


def member_count(stacked: Stacked) -> int:
    return len(next(iter(stacked.values())))


class Tail:
    """Logits of many members from hidden states at the cut."""

    def __init__(self, lm: LanguageModel, trunk: Trunk, names: Sequence[str]) -> None:
        head, where = lm.model.get_output_embeddings(), trunk.where
        self.plain: nn.Module = head.head if isinstance(head, LabelRows) else head
        self.labels = head if isinstance(head, LabelRows) else None
        self.tokens: Ints = head.tokens.cpu().numpy() if isinstance(head, LabelRows) else np.zeros(0, dtype=np.int64)
        self.rows_name = f"{where.head_name}.rows"
        self.norm = Norm(where.norm)
        self.norm_names = {n: n.removeprefix(where.norm_name + ".") for n in names if n != self.rows_name}
        if strange := [n for n in self.norm_names if not n.startswith(where.norm_name + ".")]:
            raise InputError(f"{strange[0]!r} is not part of the final norm or the label rows.")

    @property
    def weight(self) -> Tensor:
        """The head's own weight, [vocabulary, d]."""
        return self.plain.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.plain, "bias", None)

    @property
    def narrow(self) -> bool:
        """Whether label rows are all that is tuned: every other logit is then the same for all members."""
        return self.labels is not None and not self.norm_names

    def normed(self, stacked: Stacked, hidden: Tensor) -> Normed:
        """The final norm under every member's weights; `hidden` is [sites, d], or [members, sites, d]."""
        own = {short: stacked[name] for name, short in self.norm_names.items()}
        return self.norm(own, hidden, member_count(stacked))

    def logits(self, stacked: Stacked, normed: Normed) -> Tensor:
        """Float32 logits [members, sites, vocabulary]."""
        states = normed.full.to(self.weight.dtype)
        logits = nn.functional.linear(states, self.weight, self.bias).float()
        if self.labels is None:
            return logits
        added = torch.matmul(states.float(), self._rows(stacked).transpose(-1, -2))
        return logits.index_add_(-1, torch.from_numpy(self.tokens).to(logits.device), added)

    def other_logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [sites, vocabulary] of hidden states [sites, d]; -inf for those of label rows. See `narrow`."""
        states = self.norm({}, hidden, 1).full[0].to(self.weight.dtype)
        logits = nn.functional.linear(states, self.weight, self.bias).float()
        return logits.index_fill_(-1, torch.from_numpy(self.tokens).to(logits.device), -torch.inf)

    def logits_of(self, stacked: Stacked, normed: Normed, columns: Ints) -> Tensor:
        """Float32 logits [members, columns, sites] of some tokens, ascending.

        Gains go into the head's few rows, not into the many states: s * gain . w = s . gain * w.
        """
        chosen = torch.from_numpy(columns).to(self.weight.device)
        heads = self.weight[chosen].float().repeat(len(normed.gain), 1, 1)  # [members, columns, d]
        if self.labels is not None:
            own = np.flatnonzero(np.isin(self.tokens, columns))
            at = np.searchsorted(columns, self.tokens[own])
            rows = self._rows(stacked)[..., torch.from_numpy(own).to(heads.device), :]
            heads.index_add_(1, torch.from_numpy(at).to(heads.device), rows.expand(len(heads), -1, -1))
        constant = (heads * normed.shift[:, None]).sum(-1)
        if self.bias is not None:
            constant = constant + self.bias[chosen].float()
        states = "sd" if normed.states.dim() == 2 else "msd"
        return torch.einsum(f"mcd,{states}->mcs", heads * normed.gain[:, None], normed.states) + constant[..., None]

    def _rows(self, stacked: Stacked) -> Tensor:
        """What is added to the label rows, in float32, [members, tokens, d], or [tokens, d] where they are not tuned."""
        assert self.labels is not None
        rows = stacked.get(self.rows_name, self.labels.rows)
        return self.labels.added(rows.to(self.labels.rows.dtype)).float()


class Sites:
    """Hidden states at the cut by what they depend on, numbered as they come, computed on demand and kept.

    That is the tokens up to theirs; in a masked model or an encoder all tokens and the position. It is known by a digest (16
    bytes; about 150 in a dictionary, on top of what `limit` allows).
    """

    def __init__(self, lm: LanguageModel, trunk: Trunk) -> None:
        self.lm, self.trunk = lm, trunk
        self.kept = States(trunk.limit)
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.kept)

    def at(self, numbers: Ints) -> Tensor:
        """The states [*numbers.shape, d] with these numbers."""
        return self.kept.take(numbers)

    def of_sheet(self, sheet: Sheet) -> Ints:
        """The numbers of a sheet's sites, [sites]."""
        places = zip(sheet.site_sequence.tolist(), sheet.site_position.tolist(), strict=True)
        if self.lm.bidirectional:  # what comes after a site is seen there too
            keys = [_digest((p, *sheet.sequences[q])) for q, p in places]
        else:
            keys = [_digest(sheet.sequences[q][: p + 1]) for q, p in places]
        if any(k not in self._numbers for k in keys):
            self._add(keys, self._states(sheet))
        return np.array([self._numbers[k] for k in keys])

    def of_prefixes(self, prefixes: Sequence[Ids], run: Callable[[Sequence[Ids]], Tensor] | None = None) -> Ints:
        """The numbers of the sites at the ends of prefixes, [prefixes]; `run` gives the states [new, d] of new ones."""
        keys = [_digest(p) for p in prefixes]
        if new := {k: p for k, p in zip(keys, prefixes, strict=True) if k not in self._numbers}:
            ends = list(new.values())
            self._add(list(new), run(ends) if run else self._states(_last_sites(ends)))
        return np.array([self._numbers[k] for k in keys])

    def _states(self, sheet: Sheet) -> Tensor:
        """The states [sites, d] of a sheet's sites, by passes of the trunk."""
        passes = plan(self.lm, sheet)
        parts = [self.trunk.run(work.batch)[work.rows, work.columns] for work in passes]
        return torch.cat(parts)[torch.argsort(torch.cat([work.sites for work in passes]))]

    def _add(self, keys: Sequence[bytes], states: Tensor) -> None:
        """States are stored where their keys are new."""
        new = {k: i for i, k in enumerate(keys) if k not in self._numbers}
        numbers = self.kept.append(states[torch.tensor(list(new.values()), device=states.device)])
        self._numbers.update(zip(new, numbers, strict=True))


def _digest(ids: Ids) -> bytes:
    return blake2b(array("q", ids).tobytes(), digest_size=16).digest()


def _last_sites(prefixes: Sequence[Ids]) -> Sheet:
    """A sheet with one site for each prefix, at its last token, and nothing to read."""
    count, nothing, weights = len(prefixes), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    one, none = Ranges.of([1] * count), Ranges.of([0] * count)
    last = np.array([len(p) - 1 for p in prefixes])
    return Sheet(tuple(prefixes), one, np.arange(count), last, one, nothing, nothing, nothing, weights, none, 1, False)


class SheetSites:
    """The sites of a whole sheet, each example's looked up once."""

    def __init__(self, sites: Sites, sheet: Sheet) -> None:
        self.sites, self.sheet = sites, sheet
        self.numbers = np.full(len(sheet.site_position), -1)  # -1: not yet looked up

    @cached_property
    def options(self) -> Ints:
        """The token of every option of a closed sheet, [examples, options]; -1 where an example has fewer."""
        tokens = np.full((len(self.sheet), self.sheet.options), -1)
        tokens[self.sheet.reads_of.owner, self.sheet.read_option] = self.sheet.read_token
        return tokens

    def of(self, examples: Ints) -> Ints:
        """The numbers of the sites of some examples, [sites]."""
        entries, _ = self.sheet.sites_of.take(examples)
        if (self.numbers[entries] < 0).any():
            new = np.unique(examples[self.numbers[self.sheet.sites_of.starts[examples]] < 0])
            places, _ = self.sheet.sites_of.take(new)
            self.numbers[places] = self.sites.of_sheet(self.sheet.take(new))
        numbers: Ints = self.numbers[entries]
        return numbers
