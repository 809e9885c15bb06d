"""Forward passes over sequences: padding, batches of similar length, logits at the sites of a sheet."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from zo_objectives.language.hf import LanguageModel, virtual_tokens
from zo_objectives.language.sheet import Ids, Sheet

MICRO_TOKENS = 16384  # padded tokens that one forward pass may hold


@dataclass(frozen=True)
class Padded:
    """Sequences of one forward pass: ids and mask [B, T], padded on one side, and which sequences they are."""

    rows: tuple[int, ...]
    ids: Tensor
    mask: Tensor


def pad(sequences: Sequence[Ids], rows: Sequence[int], fill: int, device: torch.device, *, left: bool = False) -> Padded:
    width = max(len(sequences[r]) for r in rows)
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, r in enumerate(rows):
        span = slice(width - len(sequences[r]), width) if left else slice(0, len(sequences[r]))
        ids[i, span] = torch.tensor(sequences[r])
        mask[i, span] = 1
    return Padded(tuple(rows), ids.to(device), mask.to(device))


def repeated(batch: Padded, members: int) -> Padded:
    """The same sequences once for each of several members, one member's after another's."""
    return Padded(batch.rows * members, batch.ids.repeat(members, 1), batch.mask.repeat(members, 1))


def micro_batches(sequences: Sequence[Ids], tokens: int = MICRO_TOKENS) -> list[list[int]]:
    """Sequence numbers in groups of similar length, each at most `tokens` padded tokens (or one sequence)."""
    groups: list[list[int]] = []
    for r in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        length, group = len(sequences[r]), groups[-1] if groups else []
        wasteful = len(group) >= 32 and length > 1.25 * len(sequences[group[0]])
        if group and not wasteful and (len(group) + 1) * length <= tokens:
            group.append(r)
        else:
            groups.append([r])
    return groups


def prompt_batches(lm: LanguageModel, prompts: Sequence[Ids], tokens: int = MICRO_TOKENS) -> list[list[int]]:
    """Prompts in groups to continue together: of similar length, or of one length behind virtual tokens.

    Those are put before the padding, so that padded text would be farther from them, or at other positions.
    """
    if not virtual_tokens(lm.model):
        return micro_batches(prompts, tokens)
    lengths = sorted({len(p) for p in prompts})
    same = [[i for i, p in enumerate(prompts) if len(p) == length] for length in lengths]
    return [[group[i] for i in part] for group in same for part in micro_batches([prompts[i] for i in group], tokens)]


@contextmanager
def only_sites(head: nn.Module, rows: Tensor, columns: Tensor, length: int, members: int = 1) -> Iterator[None]:
    """While open, the output head sees states [members, sites, d] instead of [members * B, T, d].

    Logits nobody reads are not made. Virtual tokens may come before the T = `length` that were given.
    """

    def gather(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = inputs[0].view(members, -1, *inputs[0].shape[1:])
        return (states[:, rows, columns + (states.shape[2] - length)], *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Pass:
    """One forward pass over part of a sheet: its padded sequences and the sites read from them."""

    batch: Padded
    rows: Tensor  # [sites]: row of the batch
    columns: Tensor  # [sites]: position
    sites: Tensor  # [sites]: number in the sheet


def plan(lm: LanguageModel, sheet: Sheet, tokens: int = MICRO_TOKENS) -> list[Pass]:
    """The forward passes that a sheet takes, similar lengths together, equal sequences once.

    Right-padded, so positions need no shift.
    """
    passes, first = [], dict[Ids, int]()
    same = np.array([first.setdefault(ids, i) for i, ids in enumerate(sheet.sequences)])
    different = np.unique(same)
    for chosen in micro_batches([sheet.sequences[i] for i in different], tokens):
        group = different[chosen].tolist()
        place = np.full(len(sheet.sequences), -1)
        place[group] = np.arange(len(group))
        place = place[same]
        sites = np.flatnonzero(place[sheet.site_sequence] >= 0)
        rows, columns = place[sheet.site_sequence[sites]], sheet.site_position[sites]
        rows_columns_sites = (torch.from_numpy(x).to(lm.device) for x in (rows, columns, sites))
        passes.append(Pass(pad(sheet.sequences, group, lm.padding, lm.device), *rows_columns_sites))
    return passes


def site_logits(lm: LanguageModel, work: Pass) -> Tensor:
    """Logits [sites of the pass, vocabulary], float32, differentiable where gradients are on."""
    return member_logits(lm, work, 1)[0]


def member_logits(lm: LanguageModel, work: Pass, members: int) -> Tensor:
    """Logits [members, sites of the pass, vocabulary] of a pass over its sequences once for each member, float32."""
    batch = repeated(work.batch, members)
    with only_sites(lm.head, work.rows, work.columns, batch.ids.shape[1], members):
        logits: Tensor = lm.model(input_ids=batch.ids, attention_mask=batch.mask, **lm.uncached).logits
    return logits.float()


@torch.no_grad()
def site_states(lm: LanguageModel, work: Pass) -> Tensor:
    """What the output head sees at the sites of a pass, [sites, d]."""
    seen: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0][0])

    with only_sites(lm.head, work.rows, work.columns, work.batch.ids.shape[1]):
        handle = lm.head.register_forward_pre_hook(catch)
        try:
            lm.model(input_ids=work.batch.ids, attention_mask=work.batch.mask, **lm.uncached)
        finally:
            handle.remove()
    return seen[0]


def sheet_logits(lm: LanguageModel, sheet: Sheet, passes: Sequence[Pass]) -> Tensor:
    """Logits [sites of the sheet, vocabulary] from all its passes; only the columns that are read, for a closed sheet."""
    parts = [site_logits(lm, work) for work in passes]
    if sheet.closed:
        columns = torch.from_numpy(sheet.columns).to(lm.device)
        parts = [part[:, columns] for part in parts]
    return torch.cat(parts)[torch.argsort(torch.cat([work.sites for work in passes]))]
