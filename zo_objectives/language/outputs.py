"""What passes between the halves of the language side: examples in, outputs of a model out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """One row of a task, rendered.

    A choice example has `options` (texts that continue the prompt, delimiter included) and the right one's index in `label`;
    a generation example has `targets`, any of which is right (empty where there is only a reward). `also` are other right
    options, for tasks whose question has several answers among its candidates (ReCoRD). `blank` is the prompt without its
    content, to calibrate with.
    """

    id: int
    prompt: str
    row: Mapping[str, Any] = field(repr=False)
    options: tuple[str, ...] = ()
    label: int = -1
    targets: tuple[str, ...] = ()
    also: tuple[int, ...] = ()
    blank: str | None = None


@dataclass(frozen=True)
class Choices:
    """Log-likelihoods (nats) of every option, float [N, C]; -inf pads where an example has fewer options.

    Where all options of a task are one token, they share a normaliser and the numbers are exact up to one constant a row.
    """

    loglikelihoods: NDArray[np.float32]

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """The likeliest option of each example; the first of equals."""
        chosen: NDArray[np.int64] = self.loglikelihoods.argmax(axis=1)
        return chosen

    def __len__(self) -> int:
        return len(self.loglikelihoods)


@dataclass(frozen=True)
class Generations:
    """The generated text of each example, cut at the stop string and filtered."""

    texts: Sequence[str]

    @property
    def predictions(self) -> Sequence[str]:
        return self.texts

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Likelihoods:
    """The log-likelihood (nats) of each generation example's first target, with how many tokens it has."""

    loglikelihoods: NDArray[np.float32]
    tokens: NDArray[np.int64]

    @property
    def predictions(self) -> NDArray[np.float32]:
        return self.loglikelihoods

    def __len__(self) -> int:
        return len(self.loglikelihoods)


Outputs = Choices | Generations | Likelihoods


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Outputs of one kind, one after another."""
    first = parts[0]
    if isinstance(first, Choices):
        return Choices(np.concatenate([p.loglikelihoods for p in parts if isinstance(p, Choices)]))
    if isinstance(first, Likelihoods):
        chosen = [p for p in parts if isinstance(p, Likelihoods)]
        return Likelihoods(np.concatenate([p.loglikelihoods for p in chosen]), np.concatenate([p.tokens for p in chosen]))
    return Generations([text for p in parts if isinstance(p, Generations) for text in p.texts])
