"""Geometries: what a direction looks like in each tensor, given a key.

A geometry draws unit noise z with E[z z^T] = I (on the elements it moves at all) and has two gains for each tensor: a probe
at scale s sits at theta + s * probe_gain * z, and a step moves theta by step_gain * rule(sum_k c_k z_k). With both gains
equal to a tensor's root mean square, scales and learning rates are relative: 0.1 is ten per cent of the weights.

    Dense      independent noise in every element, Rademacher or Gaussian
    LowRank    a matrix moves along A B^T / sqrt(r), signs in A and B (EGGROLL, Sarkar et al. 2025): what members can share
    Masked     another geometry on some of the elements only
    InPart     another geometry in a part of the rows only
    Scaled     another geometry with gains; `variance_modified` and `expectation_modified` are MeZO's Definitions 6 and 7
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from zo_objectives.errors import InputError
from zo_objectives.search import noise
from zo_objectives.search.keys import name_key
from zo_objectives.search.noise import Law

tensor_id = cache(name_key)


class Leaf(NamedTuple):
    """A tuned tensor as a geometry sees it: the name gives its noise an identity, the shape makes it a matrix."""

    name: str
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Elements in one row, all dimensions behind the first together."""
        return math.prod(self.shape[1:])


class Factors(NamedTuple):
    """Directions of a matrix as products: z_k = left[k] @ right[k].T."""

    left: Tensor  # [K, rows, r]
    right: Tensor  # [K, columns, r]


class Geometry(Protocol):
    """Directions in the space of named tensors."""

    @property
    def signs(self) -> bool:
        """Whether every element of z is +1, -1 or never moved (0)."""

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        """Unit noise, float32 [len(keys), len(span)]: elements `span` of the flattened tensor."""

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        """out = base + coefficient * z over flat tensors whose first element has index `start` in the whole."""

    def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
        """The directions of a matrix as products, where they are products."""

    def probe_gain(self, name: str) -> float:
        """The size d > 0 of a probe's direction in tensor `name`."""

    def step_gain(self, name: str) -> float:
        """What a step in tensor `name` is multiplied by."""


@dataclass(frozen=True)
class Dense:
    """Independent noise in every element. Rademacher by default: exact, and the same bits on every device."""

    law: Law = Law.RADEMACHER

    @property
    def signs(self) -> bool:
        return self.law is Law.RADEMACHER

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        return noise.directions(self.law, keys, tensor_id(leaf.name), span, device)

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        noise.axpy(self.law, out, base, key, tensor_id(leaf.name), coefficient, start)

    def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
        return None

    def probe_gain(self, name: str) -> float:
        return 1.0

    def step_gain(self, name: str) -> float:
        return 1.0


@dataclass(frozen=True)
class LowRank:
    """Matrices move along A B^T / sqrt(rank), with independent signs in A [rows, rank] and B [columns, rank].

    Vectors and single numbers move as in `Dense`. The signs of A and B are those of Dense noise in tensors called NAME/left
    and NAME/right, row by row; their products are whole numbers and so exact on every device, in any order.
    """

    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"LowRank(rank={self.rank}): the rank must be at least 1.")

    @property
    def signs(self) -> bool:
        return self.rank == 1

    def _side(self, keys: Sequence[int], name: str, side: str, rows: range, device: torch.device) -> Tensor:
        span = range(rows.start * self.rank, rows.stop * self.rank)
        drawn = noise.directions(Law.RADEMACHER, keys, tensor_id(f"{name}/{side}"), span, device)
        return drawn.view(len(keys), len(rows), self.rank)

    def _products(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        """[K, len(span)] whole numbers: elements `span` of A B^T."""
        columns = leaf.columns
        rows = range(span.start // columns, -(-span.stop // columns))
        left = self._side(keys, leaf.name, "left", rows, device)
        right = self._side(keys, leaf.name, "right", range(columns), device)
        offset = span.start - rows.start * columns
        return (left @ right.transpose(1, 2)).flatten(1)[:, offset : offset + len(span)]

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        if len(leaf.shape) < 2:
            return Dense().directions(keys, leaf, span, device)
        return self._products(keys, leaf, span, device) * (1 / math.sqrt(self.rank))  # a GPU would divide in another way

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        if len(leaf.shape) < 2:
            return Dense().axpy(out, base, key, leaf, coefficient, start)
        c = torch.tensor(coefficient, dtype=torch.float32)
        for at, stop in pieces(len(base), max(noise.CHUNK, leaf.columns)):
            z = self.directions([key], leaf, range(start + at, start + stop), base.device)[0]
            out[at:stop].copy_(z.mul_(c).add_(base[at:stop]))

    def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
        if len(leaf.shape) < 2:
            return None
        left = self._side(keys, leaf.name, "left", range(leaf.shape[0]), device)
        right = self._side(keys, leaf.name, "right", range(leaf.columns), device)
        return Factors(left * (1 / math.sqrt(self.rank)), right)

    def probe_gain(self, name: str) -> float:
        return 1.0

    def step_gain(self, name: str) -> float:
        return 1.0


@dataclass(frozen=True)
class _Around:
    """Another geometry, and all that it says."""

    inner: Geometry

    @property
    def signs(self) -> bool:
        return self.inner.signs

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        return self.inner.directions(keys, leaf, span, device)

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        self.inner.axpy(out, base, key, leaf, coefficient, start)

    def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
        return self.inner.factors(keys, leaf, device)

    def probe_gain(self, name: str) -> float:
        return self.inner.probe_gain(name)

    def step_gain(self, name: str) -> float:
        return self.inner.step_gain(name)


@dataclass(frozen=True)
class Masked(_Around):
    """Another geometry on some elements only: `masks` has a flat bool tensor for each tensor that is not moved whole.

    Masks are part of the geometry, made once from the base (see `smallest`), so that a replay has the same ones.
    """

    masks: Mapping[str, Tensor]

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        z = self.inner.directions(keys, leaf, span, device)
        mask = self.masks.get(leaf.name)
        return z if mask is None else z * mask[span.start : span.stop].to(device)

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        mask = self.masks.get(leaf.name)
        if mask is None:
            return self.inner.axpy(out, base, key, leaf, coefficient, start)
        for at, stop in pieces(len(base), noise.CHUNK):
            rest = base[at:stop].float()
            moved = torch.empty_like(rest)
            self.inner.axpy(moved, rest, key, leaf, coefficient, start + at)
            out[at:stop].copy_(torch.where(mask[start + at : start + stop].to(base.device), moved, rest))

    def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
        return None if leaf.name in self.masks else self.inner.factors(keys, leaf, device)


def rows_in(leaf: Leaf, span: range, device: torch.device) -> Tensor:
    """The row, int64 [len(span)], that each of the elements `span` is in; of a tensor of one dimension its place."""
    return torch.arange(span.start, span.stop, device=device).div_(leaf.columns, rounding_mode="floor")


@dataclass(frozen=True)
class InPart(_Around):
    """Another geometry in every `of`-th row of a tensor, from row `first` on; the others are at rest."""

    first: int
    of: int

    def _held(self, leaf: Leaf, span: range, device: torch.device) -> Tensor:
        return rows_in(leaf, span, device) % self.of == self.first

    def directions(self, keys: Sequence[int], leaf: Leaf, span: range, device: torch.device) -> Tensor:
        return self.inner.directions(keys, leaf, span, device) * self._held(leaf, span, device)

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        for at, stop in pieces(len(base), noise.CHUNK):
            rest = base[at:stop].float()
            moved = torch.empty_like(rest)
            self.inner.axpy(moved, rest, key, leaf, coefficient, start + at)
            out[at:stop].copy_(torch.where(self._held(leaf, range(start + at, start + stop), base.device), moved, rest))

    def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
        found = self.inner.factors(keys, leaf, device)
        if found is None:
            return None
        held = torch.arange(leaf.shape[0], device=device) % self.of == self.first
        return Factors(found.left * held[:, None], found.right)


@dataclass(frozen=True)
class Scaled(_Around):
    """Another geometry with gains for each tensor: of probes, and of steps (the same where not given)."""

    gains: Mapping[str, float]
    step_gains: Mapping[str, float] | None = None

    def probe_gain(self, name: str) -> float:
        return self.inner.probe_gain(name) * self.gains[name]

    def step_gain(self, name: str) -> float:
        return self.inner.step_gain(name) * (self.gains if self.step_gains is None else self.step_gains)[name]


def variance_modified(inner: Geometry, d: Mapping[str, float]) -> Scaled:
    """MeZO, Definition 6: probe along d^-1 z, step along d z. Unbiased: E[step probe^T] = I, with another variance."""
    return Scaled(inner, {n: 1 / s for n, s in d.items()}, dict(d))


def expectation_modified(inner: Geometry, d: Mapping[str, float]) -> Scaled:
    """MeZO, Definition 7: probe along d^-1 z, step along z. The expectation is D^-1 times the gradient."""
    return Scaled(inner, {n: 1 / s for n, s in d.items()}, dict.fromkeys(d, 1.0))


def smallest(values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks for `Masked`: the `share` of each tensor's elements that are smallest in magnitude (Sparse-MeZO, Liu 2024).

    `share` is in (0, 1]; of elements equal to the threshold all are in. Raises InputError for another share.
    """
    return {n: size <= _threshold(size, share) for n, size in _magnitudes(values)}


def largest(values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks for `Masked`: the `share` of each tensor's elements that are largest in magnitude; else as `smallest`."""
    return {n: size >= -_threshold(-size, share) for n, size in _magnitudes(values)}


def _magnitudes(values: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, tensor.detach().flatten().float().abs()) for name, tensor in values.items()]


def _threshold(sizes: Tensor, share: float) -> Tensor:
    if not 0 < share <= 1:
        raise InputError(f"The share of the elements to tune is {share}: give a number above 0 and at most 1.")
    return sizes.kthvalue(max(1, round(share * sizes.numel()))).values


def pieces(count: int, size: int) -> list[tuple[int, int]]:
    """Bounds (start, stop) of consecutive pieces of at most `size` elements."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def root_mean_square(values: Tensor, floor: float = 1e-3) -> float:
    """The size of a tensor's elements, in float64; at least `floor`, so that a tensor of zeros can still move."""
    return max(float(values.double().square().mean().sqrt()), floor)
