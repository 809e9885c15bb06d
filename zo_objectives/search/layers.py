"""Groups of tensors, and one positive number d for each: MeZO's appendix B. Where the numbers come from is in adaptive.py.

Groups are the transformer's layers, the embeddings, and what comes after (`by_layer`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from zo_objectives.search.geometry import Geometry, Scaled, expectation_modified, variance_modified

NUMBERED = re.compile(r"^(.*?\.)?(\d+)\.")
EMBEDDING = re.compile(r"emb|wte|wpe", re.IGNORECASE)


class Modified(Enum):
    """What the sizes do: see `variance_modified` and `expectation_modified`."""

    VARIANCE = "variance"
    EXPECTATION = "expectation"


@dataclass(frozen=True)
class Layers:
    """Which group each tensor is in, what the groups are called, and what their sizes do."""

    groups: Mapping[str, int]
    labels: tuple[str, ...]
    modified: Modified = Modified.VARIANCE

    @property
    def count(self) -> int:
        return len(self.labels)

    def scaled(self, inner: Geometry, sizes: Sequence[float] | NDArray[np.float32]) -> Scaled:
        """`inner` with the sizes d of its groups in it."""
        d = {name: float(sizes[group]) for name, group in self.groups.items()}
        return {Modified.VARIANCE: variance_modified, Modified.EXPECTATION: expectation_modified}[self.modified](inner, d)


def by_layer(names: Sequence[str], modified: Modified = Modified.VARIANCE) -> Layers:
    """Groups as in MeZO: each numbered layer, the embeddings, and the head with everything else, those that have tensors."""
    labels = [_label(name) for name in names]
    order = sorted(set(labels), key=lambda label: (label != "embedding", label == "head", _natural(label)))
    return Layers({n: order.index(label) for n, label in zip(names, labels, strict=True)}, tuple(order), modified)


def _label(name: str) -> str:
    if found := NUMBERED.match(name):
        return f"{found[1] or ''}{found[2]}"
    return "embedding" if EMBEDDING.search(name) else "head"


def _natural(label: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", label)]
