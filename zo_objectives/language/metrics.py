"""Metrics on plain labels and strings, as they are published, without torch and without the network.

Class metrics take the number of classes: the task fixes the label set, so that a minibatch in which a class is missing
means the same as the whole set (law 9). They are tested against scikit-learn.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def confusion(labels: Labels, predictions: Labels, classes: int) -> NDArray[np.float64]:
    """Counts [classes, classes]: rows are labels, columns predictions."""
    counts = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.float64)


def accuracy(labels: Labels, predictions: Labels, classes: int) -> float:
    """The share of right predictions, 0 to 1."""
    return float(np.mean(labels == predictions))


def f1_macro(labels: Labels, predictions: Labels, classes: int) -> float:
    """The plain mean over all classes of 2 TP / (2 TP + FP + FN), 0 to 1; a class nobody has or predicts counts 0."""
    table = confusion(labels, predictions, classes)
    hits, total = np.diag(table), table.sum(0) + table.sum(1)
    return float(np.mean(np.divide(2 * hits, total, out=np.zeros(classes), where=total > 0)))


def mcc(labels: Labels, predictions: Labels, classes: int) -> float:
    """Matthews' correlation, -1 to 1 (Gorodkin 2004 for many classes); 0 where labels or predictions are all one class."""
    table = confusion(labels, predictions, classes)
    n, hits, true, seen = table.sum(), np.trace(table), table.sum(1), table.sum(0)
    scale = (n**2 - (seen**2).sum()) * (n**2 - (true**2).sum())
    return float((hits * n - true @ seen) / np.sqrt(scale)) if scale > 0 else 0.0


def normalise_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the stripped prediction is one of the references, else 0."""
    return float(prediction.strip() in {r.strip() for r in references})


def squad_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Exact match after SQuAD's normalisation."""
    return float(normalise_answer(prediction) in {normalise_answer(r) for r in references})


def squad_f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1 over the references of the bags of normalised words, 0 to 1; two empty answers agree."""
    return max(_word_f1(normalise_answer(prediction).split(), normalise_answer(r).split()) for r in references)


def _word_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    if not prediction or not reference:
        return float(list(prediction) == list(reference))
    shared = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * shared / (len(prediction) + len(reference))


CLASS_METRICS: dict[str, Callable[[Labels, Labels, int], float]] = {
    "accuracy": accuracy,
    "f1_macro": f1_macro,
    "mcc": mcc,
}
TEXT_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "squad_exact_match": squad_exact_match,
    "squad_f1": squad_f1,
}
