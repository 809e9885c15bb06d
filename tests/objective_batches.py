"""Batches that the tests of objectives share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zo_objectives.language.outputs import Choices, Example, Generations


def labelled(labels: Sequence[int], predictions: Sequence[int], classes: int) -> tuple[Choices, list[Example]]:
    """Outputs that predict `predictions` on examples that want `labels`."""
    options = tuple(f" option {c}" for c in range(classes))
    examples = [Example(10 + i, f"prompt {i}", {"text": f"prompt {i}"}, options, y) for i, y in enumerate(labels)]
    return Choices(np.eye(classes, dtype=np.float32)[list(predictions)] - 1), examples


def generated(
    texts: Sequence[str], targets: Sequence[Sequence[str]], **columns: Sequence[Any]
) -> tuple[Generations, list[Example]]:
    """Outputs that say `texts` on examples that want one of their targets; further columns of the rows."""
    rows = [{"n": i, **{name: values[i] for name, values in columns.items()}} for i in range(len(targets))]
    return Generations(list(texts)), [
        Example(10 + i, f"prompt {i}", rows[i], targets=tuple(t)) for i, t in enumerate(targets)
    ]


PREDICTIONS = (
    "The Norman conquest of England was in 1066.",
    "Denver Broncos",
    "about 1,250.50 dollars a year",
    "The quick brown fox jumps over the lazy dog today.",
    "Paris, the capital of France, lies on the Seine",
    "I do not know",
    "she sells sea shells by the sea shore in the summer",
    "",
)
TARGETS = (
    ("The Norman conquest was in 1066.", "in 1066"),
    ("the Broncos", "Denver Broncos"),
    ("$1250.5",),
    ("A quick brown fox jumped over the lazy dog.",),
    ("Paris lies on the Seine, and is the capital of France", "Paris is a city", "the French capital"),
    ("Immanuel Kant",),
    ("She sells sea shells by the sea shore.",),
    ("nothing",),
)


def sentences() -> tuple[Generations, list[Example]]:
    """What a model might say, and what it should have."""
    return generated(PREDICTIONS, TARGETS)


def graded(seed: int = 0, size: int = 60, classes: int = 3) -> tuple[Choices, list[Example]]:
    """Random log-likelihoods, better than chance, of options of different lengths."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    values = rng.normal(size=(size, classes)) - 2
    values[np.arange(size), labels] += 0.7
    options = tuple(f" {'long ' * c}answer {c}" for c in range(classes))
    examples = [Example(i, f"prompt {i}", {}, options, int(y)) for i, y in enumerate(labels)]
    return Choices(values.astype(np.float32)), examples
