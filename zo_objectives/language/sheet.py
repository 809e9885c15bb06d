"""Sheets: which log-probabilities an option's likelihood is the sum of, as flat integer arrays.

Every option of an example is tokenised together with its prompt, so merges across the boundary are right, and its likelihood
is that of what follows the longest common prefix of all the options' tokens (what they share tells nothing apart). A `site`
is a position whose next-token distribution is wanted; a `read` is one token's log-probability at one site.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = tuple[int, ...]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ranges:
    """Item i owns the consecutive entries starts[i] .. starts[i + 1] - 1 of some array."""

    starts: Ints

    @classmethod
    def of(cls, counts: Sequence[int]) -> "Ranges":
        return cls(np.concatenate(([0], np.cumsum(counts, dtype=np.int64))))

    def take(self, items: Ints) -> tuple[Ints, "Ranges"]:
        """The entries of `items`, in order, and the ranges they then form."""
        counts = self.starts[items + 1] - self.starts[items]
        ranges = Ranges.of(counts.tolist())
        entries = np.repeat(self.starts[items] - ranges.starts[:-1], counts) + np.arange(ranges.starts[-1])
        return entries, ranges

    @property
    def owner(self) -> Ints:
        """The item that owns each entry."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True)
class Sheet:
    """The sequences to run, the sites to look at, and the reads that make each [example, option] likelihood."""

    sequences: tuple[Ids, ...]
    sequences_of: Ranges  # example -> sequences
    site_sequence: Ints  # [sites]
    site_position: Ints  # [sites]
    sites_of: Ranges  # example -> sites
    read_site: Ints  # [reads]
    read_token: Ints  # [reads]
    read_option: Ints  # [reads]
    reads_of: Ranges  # example -> reads
    options: int  # the largest number of options
    closed: bool  # every option is one token at one site: options of an example share their normaliser

    def __len__(self) -> int:
        return len(self.sequences_of.starts) - 1

    def take(self, examples: Ints) -> "Sheet":
        """The sheet of some examples, renumbered."""
        sequences, sequences_of = self.sequences_of.take(examples)
        sites, sites_of = self.sites_of.take(examples)
        reads, reads_of = self.reads_of.take(examples)
        sequence_shift = (sequences_of.starts[:-1] - self.sequences_of.starts[examples])[sites_of.owner]
        site_shift = (sites_of.starts[:-1] - self.sites_of.starts[examples])[reads_of.owner]
        return Sheet(
            tuple(self.sequences[s] for s in sequences),
            sequences_of,
            self.site_sequence[sites] + sequence_shift,
            self.site_position[sites],
            sites_of,
            self.read_site[reads] + site_shift,
            self.read_token[reads],
            self.read_option[reads],
            reads_of,
            self.options,
            self.closed,
        )

    @cached_property
    def columns(self) -> Ints:
        """The distinct tokens that are read, ascending."""
        return np.unique(self.read_token)

    @cached_property
    def tokens(self) -> int:
        """How many tokens a forward pass over the sheet scores."""
        return sum(map(len, self.sequences))

    def likelihoods(self, logits: Tensor, columns: Ints | None) -> Tensor:
        """[..., examples, options] from logits [..., sites, vocabulary], or [..., sites, len(columns)] of a closed sheet.

        Log-likelihoods in nats (a closed sheet's lack their common normaliser); -inf where an example has fewer options.
        Differentiable in `logits`.
        """
        token = self.read_token if columns is None else np.searchsorted(columns, self.read_token)
        device = logits.device
        site = torch.from_numpy(self.read_site).to(device)
        values = logits[..., site, torch.from_numpy(token).to(device)]
        if not self.closed:
            values = values - torch.logsumexp(logits, dim=-1)[..., site]
        cell = torch.from_numpy(self.reads_of.owner * self.options + self.read_option).to(device)
        total = values.new_zeros((*values.shape[:-1], len(self) * self.options)).index_add(-1, cell, values)
        empty = torch.ones(len(self) * self.options, dtype=torch.bool, device=device).index_fill(0, cell, False)
        return total.masked_fill(empty, -torch.inf).view(*values.shape[:-1], len(self), self.options)

    @property
    def read_counts(self) -> Ints:
        """How many tokens each example's reads have."""
        return np.diff(self.reads_of.starts)


def common_prefix(sequences: Sequence[Ids]) -> int:
    """The length of the longest common prefix, leaving every sequence at least one token."""
    limit = min(map(len, sequences)) - 1
    return next((i for i in range(limit) if len({s[i] for s in sequences}) > 1), limit)


def make_sheet(examples: Sequence[tuple[Sequence[Ids], int]]) -> Sheet:
    """The sheet of examples, each the token sequences of its options and how many leading tokens they are conditioned on."""
    sequences: list[Ids] = []
    site_sequence: list[int] = []
    site_position: list[int] = []
    read_site: list[int] = []
    read_token: list[int] = []
    read_option: list[int] = []
    counts: list[tuple[int, int, int]] = []
    closed = True
    for full, start in examples:
        before = len(sequences), len(site_position), len(read_token)
        if all(len(f) == start + 1 for f in full):
            sequences.append(full[0][:start])
            site_sequence.append(before[0])
            site_position.append(start - 1)
            for option, f in enumerate(full):
                read_site.append(before[1])
                read_token.append(f[start])
                read_option.append(option)
        else:
            closed = False
            for option, f in enumerate(full):
                for position in range(start, len(f)):
                    read_site.append(len(site_position))
                    read_token.append(f[position])
                    read_option.append(option)
                    site_sequence.append(len(sequences))
                    site_position.append(position - 1)
                sequences.append(f[:-1])
        counts.append((len(sequences) - before[0], len(site_position) - before[1], len(read_token) - before[2]))
    per = list(zip(*counts, strict=True))
    closed = closed and all(len(full) > 1 for full, _ in examples)
    return Sheet(
        tuple(sequences),
        Ranges.of(per[0]),
        np.array(site_sequence),
        np.array(site_position),
        Ranges.of(per[1]),
        np.array(read_site),
        np.array(read_token),
        np.array(read_option),
        Ranges.of(per[2]),
        max(len(full) for full, _ in examples),
        closed,
    )
