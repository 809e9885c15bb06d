"""Sheets: which log-probabilities an option's score is the weighted sum of, as flat arrays.

A `site` is a position of a sequence whose distribution over tokens is wanted: of the next token in a causal model, of the
token that is masked in a masked one. A `read` is one token's log-probability at one site.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = tuple[int, ...]
Ints = NDArray[np.int64]


class Read(NamedTuple):
    """`weight` times the log-probability of `token` at `position` of the sequence `ids`, a term of an option's score."""

    option: int
    ids: Ids
    position: int
    token: int
    weight: float = 1.0


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
    """The sequences to run, the sites to look at, and the reads that make each [example, option] score."""

    sequences: tuple[Ids, ...]
    sequences_of: Ranges  # example -> sequences
    site_sequence: Ints  # [sites]
    site_position: Ints  # [sites]
    sites_of: Ranges  # example -> sites
    read_site: Ints  # [reads]
    read_token: Ints  # [reads]
    read_option: Ints  # [reads]
    read_weight: NDArray[np.float32]  # [reads]
    reads_of: Ranges  # example -> reads
    options: int  # the largest number of options
    closed: bool  # every option is one token at one site, with weight 1: options of an example share their normaliser

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
            self.read_weight[reads],
            reads_of,
            self.options,
            self.closed,
        )

    @cached_property
    def columns(self) -> Ints:
        """The distinct tokens that are read, ascending."""
        return np.unique(self.read_token)

    @cached_property
    def weighted(self) -> bool:
        """Whether any read counts for more or less than its log-probability."""
        return bool((self.read_weight != 1).any())

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
        return self.summed(values)

    def summed(self, values: Tensor) -> Tensor:
        """[..., examples, options] from what is read, [..., reads]; -inf where an example has fewer options."""
        device = values.device
        if self.weighted:
            values = values * torch.from_numpy(self.read_weight).to(device)
        total = values.new_zeros((*values.shape[:-1], len(self) * self.options)).index_add(-1, self._cells(device), values)
        return total.view(*values.shape[:-1], len(self), self.options).masked_fill(self.missing(device), -torch.inf)

    def missing(self, device: torch.device) -> Tensor:
        """Whether an example has no such option, [examples, options]."""
        empty = torch.ones(len(self) * self.options, dtype=torch.bool, device=device)
        return empty.index_fill(0, self._cells(device), False).view(len(self), self.options)

    def _cells(self, device: torch.device) -> Tensor:
        """Each read's place in [examples * options]."""
        return torch.from_numpy(self.reads_of.owner * self.options + self.read_option).to(device)

    @property
    def read_counts(self) -> Ints:
        """How many tokens each example's reads have."""
        return np.diff(self.reads_of.starts)


def common_prefix(sequences: Sequence[Ids]) -> int:
    """The length of the longest common prefix, leaving every sequence at least one token."""
    limit = min(map(len, sequences)) - 1
    return next((i for i in range(limit) if len({s[i] for s in sequences}) > 1), limit)


def continued(full: Sequence[Ids], starts: Sequence[int], weights: Sequence[float] | None = None) -> list[Read]:
    """The reads of a causal model's options, each the tokens of `full` from its start on, given what comes before.

    Sites that several options share are in one sequence, the first that holds them. `weights` are those of each option's
    tokens, 1 where not given.
    """
    needed = sorted({ids[:-1] for ids in full}, key=len, reverse=True)
    hosts: list[Ids] = []
    for ids in needed:
        if not any(host[: len(ids)] == ids for host in hosts):
            hosts.append(ids)
    reads = []
    for option, (ids, start) in enumerate(zip(full, starts, strict=True)):
        for at in range(start, len(ids)):
            host = next(h for h in hosts if h[:at] == ids[:at])
            reads.append(Read(option, host, at - 1, ids[at], 1.0 if weights is None else weights[option]))
    return reads


def make_sheet(examples: Sequence[Sequence[Read]], *, exact: bool = False) -> Sheet:
    """The sheet of examples, each the reads of its options.

    `exact` keeps the normalisers of options that share one, for whoever compares scores with more than each other.
    """
    sequences: list[Ids] = []
    sites: list[tuple[int, int]] = []
    read_sites: list[int] = []
    counts: list[tuple[int, int, int]] = []
    options, closed = 0, not exact
    for reads in examples:
        before = len(sequences), len(sites)
        own_sequences: dict[Ids, int] = {}
        own_sites: dict[tuple[int, int], int] = {}
        for read in reads:
            sequence = own_sequences.setdefault(read.ids, before[0] + len(own_sequences))
            site = own_sites.setdefault((sequence, read.position), before[1] + len(own_sites))
            read_sites.append(site)
        sequences += own_sequences
        sites += own_sites
        own_options = {read.option for read in reads}
        options = max(options, 1 + max(own_options))
        closed &= len(own_sites) == 1 and len(reads) == len(own_options) > 1 and all(read.weight == 1 for read in reads)
        counts.append((len(own_sequences), len(own_sites), len(reads)))
    per = list(zip(*counts, strict=True))
    every = [read for reads in examples for read in reads]
    return Sheet(
        tuple(sequences),
        Ranges.of(per[0]),
        np.array([sequence for sequence, _ in sites]),
        np.array([position for _, position in sites]),
        Ranges.of(per[1]),
        np.array(read_sites),
        np.array([read.token for read in every]),
        np.array([read.option for read in every]),
        np.array([read.weight for read in every], dtype=np.float32),
        Ranges.of(per[2]),
        options,
        closed,
    )
