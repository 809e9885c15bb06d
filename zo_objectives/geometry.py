"""Geometries: what a direction looks like in each tensor, given a key.

A geometry draws unit noise z with E[z z^T] = I and gives every tensor a `gain` d. A probe at scale s sits at
theta + s * d * z; an update rule works on the coordinates phi = theta / d and its step is multiplied by d again. With
gains equal to a tensor's root mean square, scales and learning rates are relative: 0.1 is ten per cent of the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from zo_objectives import noise
from zo_objectives.keys import name_key
from zo_objectives.noise import Law

tensor_id = cache(name_key)


class Geometry(Protocol):
    """Directions in the space of named tensors."""

    def directions(self, keys: Sequence[int], name: str, span: range, device: torch.device) -> Tensor:
        """Unit noise, float32 [len(keys), len(span)]: elements `span` of the flattened tensor `name`."""

    def axpy(self, out: Tensor, base: Tensor, key: int, name: str, coefficient: float, start: int = 0) -> None:
        """out = base + coefficient * z over flat tensors whose first element has index `start` in the whole."""

    def gain(self, name: str) -> float:
        """The size d > 0 of a direction in tensor `name`."""


@dataclass(frozen=True)
class Dense:
    """Independent noise in every element. Rademacher by default: exact, and the same bits on every device."""

    law: Law = Law.RADEMACHER

    def directions(self, keys: Sequence[int], name: str, span: range, device: torch.device) -> Tensor:
        return noise.directions(self.law, keys, tensor_id(name), span, device)

    def axpy(self, out: Tensor, base: Tensor, key: int, name: str, coefficient: float, start: int = 0) -> None:
        noise.axpy(self.law, out, base, key, tensor_id(name), coefficient, start)

    def gain(self, name: str) -> float:
        return 1.0


@dataclass(frozen=True)
class Scaled:
    """Another geometry with a gain of its own for each tensor."""

    inner: Geometry
    gains: Mapping[str, float]

    def directions(self, keys: Sequence[int], name: str, span: range, device: torch.device) -> Tensor:
        return self.inner.directions(keys, name, span, device)

    def axpy(self, out: Tensor, base: Tensor, key: int, name: str, coefficient: float, start: int = 0) -> None:
        self.inner.axpy(out, base, key, name, coefficient, start)

    def gain(self, name: str) -> float:
        return self.inner.gain(name) * self.gains[name]


def root_mean_square(values: Tensor, floor: float = 1e-3) -> float:
    """The size of a tensor's elements, in float64; at least `floor`, so that a tensor of zeros can still move."""
    return max(float(values.double().square().mean().sqrt()), floor)
