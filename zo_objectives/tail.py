"""The tail: final norm and output head with label rows. Tuning nothing below it, whole populations are scored at once.

Hidden states entering the norm are computed once for each site (a prefix of tokens), also while generating: members mostly
say the same things, so the states of what has been said before are looked up in a tree of prefixes.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from zo_objectives.errors import InputError
from zo_objectives.hf import CausalLM, plan
from zo_objectives.sheet import Ids, Ranges, Sheet
from zo_objectives.subsets import LabelRows
from zo_objectives.trunk import Trunk

Stacked = Mapping[str, Tensor]


@torch.no_grad()
def is_plain(lm: CausalLM, trunk: Trunk) -> bool:
    """Whether logits are the head of the final norm and nothing else: some families scale, cap or project around them."""
    head, seen = lm.model.get_output_embeddings(), {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return hook

    handles = [trunk.where.norm.register_forward_hook(note("norm")), head.register_forward_hook(note("head"))]
    try:
        logits = lm.model(input_ids=torch.tensor([[lm.padding]], device=lm.device), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return torch.equal(seen["norm"][1], seen["head"][0]) and torch.equal(seen["head"][1], logits)


class Tail:
    """Logits of many members from hidden states at the cut, [members, sites, columns]."""

    def __init__(self, lm: CausalLM, trunk: Trunk, names: Sequence[str]) -> None:
        head = lm.model.get_output_embeddings()
        self.where = trunk.where
        self.norm, self.head = self.where.norm, head
        self.plain: nn.Module = head.head if isinstance(head, LabelRows) else head
        self.rows_name = f"{self.where.head_name}.rows"
        self.norm_names = {n: n.removeprefix(self.where.norm_name + ".") for n in names if n != self.rows_name}
        if strange := [n for n in self.norm_names if not n.startswith(self.where.norm_name + ".")]:
            raise InputError(f"{strange[0]!r} is not part of the final norm or the label rows.")

    def normed(self, stacked: Stacked, hidden: Tensor) -> Tensor:
        """The final norm under every member's weights, [members, sites, d]; `hidden` is [sites, d], or has members too."""
        live = dict(self.norm.named_parameters())  # a probe's weights are rounded to the model's dtype, as in a forward pass
        own = {short: stacked[name].to(live[short].dtype) for name, short in self.norm_names.items()}
        each = 0 if hidden.dim() == 3 else None
        if not own:
            normed: Tensor = self.norm(hidden)
            return normed if each == 0 else normed.expand(len(next(iter(stacked.values()))), *normed.shape)
        result: Tensor = vmap(lambda weights, h: functional_call(self.norm, weights, (h,)), in_dims=(0, each))(own, hidden)
        return result

    def logits(self, stacked: Stacked, normed: Tensor, columns: NDArray[np.int64] | None) -> Tensor:
        """Float32 logits from normed states [members, sites, d]; of some tokens only, where `columns` are given."""
        weight: Tensor = self.plain.weight  # type: ignore[assignment]
        bias: Tensor | None = getattr(self.plain, "bias", None)
        chosen = slice(None) if columns is None else torch.from_numpy(columns).to(weight.device)
        logits = nn.functional.linear(normed, weight[chosen], None if bias is None else bias[chosen]).float()
        if isinstance(self.head, LabelRows):
            logits = self._add_rows(logits, stacked, normed, columns)
        return logits

    def _add_rows(self, logits: Tensor, stacked: Stacked, normed: Tensor, columns: NDArray[np.int64] | None) -> Tensor:
        assert isinstance(self.head, LabelRows)
        tokens = self.head.tokens.cpu().numpy()
        place = np.arange(len(tokens)) if columns is None else np.flatnonzero(np.isin(tokens, columns))
        at = tokens[place] if columns is None else np.searchsorted(columns, tokens[place])
        rows = stacked.get(self.rows_name, self.head.rows)[..., torch.from_numpy(place).to(logits.device), :]
        added = torch.matmul(normed.float(), rows.to(self.head.rows.dtype).float().transpose(-1, -2))
        return logits.index_add(-1, torch.from_numpy(at).to(logits.device), added)


class Sites:
    """Hidden states at the cut by token prefix, [prefixes, d], computed on demand and kept."""

    def __init__(self, lm: CausalLM, trunk: Trunk) -> None:
        self.lm, self.trunk = lm, trunk
        self.number: dict[Ids, int] = {}
        self.table: Tensor | None = None

    def of_sheet(self, sheet: Sheet) -> Tensor:
        """The states of a sheet's sites, [sites, d]."""
        prefixes = [
            sheet.sequences[q][: p + 1]
            for q, p in zip(sheet.site_sequence.tolist(), sheet.site_position.tolist(), strict=True)
        ]
        if any(p not in self.number for p in prefixes):
            self._compute(sheet, prefixes)
        return self.at([self.number[p] for p in prefixes])

    def at(self, numbers: Sequence[int] | NDArray[np.int64]) -> Tensor:
        assert self.table is not None
        return self.table[torch.as_tensor(numbers, device=self.table.device)]

    def ensure(self, prefixes: Sequence[Ids]) -> None:
        """Computes the states of the last tokens of those prefixes that are new."""
        new = [p for p in dict.fromkeys(prefixes) if p not in self.number]
        if new:
            count = len(new)
            one = Ranges.of([1] * count)
            each = np.arange(count)
            last = np.array([len(p) - 1 for p in new])
            nothing = np.zeros(0, dtype=np.int64)
            none = Ranges.of([0] * count)
            self._compute(Sheet(tuple(new), one, each, last, one, nothing, nothing, nothing, none, 1, False), new)

    def _compute(self, sheet: Sheet, prefixes: Sequence[Ids]) -> None:
        """One pass of the trunk over the sheet; the states of all its sites are stored."""
        parts, order = [], []
        for work in plan(self.lm, sheet):
            parts.append(self.trunk.run(work)[work.rows, work.columns])
            order.append(work.sites)
        states = torch.cat(parts)[torch.argsort(torch.cat(order))]
        start = 0 if self.table is None else len(self.table)
        fresh = [i for i, p in enumerate(prefixes) if p not in self.number and self.number.setdefault(p, -1) == -1]
        for offset, i in enumerate(fresh):
            self.number[prefixes[i]] = start + offset
        added = states[torch.tensor(fresh, device=states.device)]
        self.table = added if self.table is None else torch.cat((self.table, added))


def decode(
    tail: Tail, sites: Sites, stacked: Stacked, prompts: Sequence[Ids], *, new_tokens: int, stops: Sequence[int]
) -> list[list[list[int]]]:
    """Greedy continuations of every prompt by every member, [members][prompts]; a stop token ends one and is included.

    Members that have said the same to a prompt so far share one hidden state, and what any of them said is remembered.
    """
    members = len(next(iter(stacked.values())))
    said: list[list[Ids]] = [list(prompts) for _ in range(members)]
    alive = [list(range(len(prompts))) for _ in range(members)]
    stop = set(stops)
    for _ in range(new_tokens):
        width = max(map(len, alive))
        if width == 0:
            break
        sites.ensure([said[m][i] for m in range(members) for i in alive[m]])
        numbers = np.zeros((members, width), dtype=np.int64)
        for m in range(members):
            numbers[m, : len(alive[m])] = [sites.number[said[m][i]] for i in alive[m]]
        chosen = _argmax(tail, stacked, sites.at(numbers))
        for m in range(members):
            tokens = chosen[m].tolist()
            for i, token in zip(alive[m], tokens, strict=False):
                said[m][i] = (*said[m][i], token)
            alive[m] = [i for i, token in zip(alive[m], tokens, strict=False) if token not in stop]
    return [[list(ids[len(prompt) :]) for ids, prompt in zip(row, prompts, strict=True)] for row in said]


def _argmax(tail: Tail, stacked: Stacked, hidden: Tensor, cells: int = 1 << 24) -> NDArray[np.int64]:
    """The likeliest next token at states [members, sites, d], as [members, sites], in pieces of at most `cells` logits."""
    vocabulary: int = tail.plain.weight.shape[0]  # type: ignore[index, assignment]
    step = max(1, cells // (vocabulary * len(hidden)))
    parts = [tail.logits(stacked, tail.normed(stacked, h), None).argmax(-1) for h in torch.split(hidden, step, dim=1)]
    return torch.cat(parts, dim=1).cpu().numpy()
