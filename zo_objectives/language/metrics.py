"""Metrics on arrays, as they are published, without torch and without the network.

Class metrics take labels, predictions and the number of classes: the task fixes the label set, so that a minibatch in which
a class is missing means the same as the whole set (law 9). They are tested against scikit-learn, correlations against scipy.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion(labels: Labels, predictions: Labels, classes: int) -> Floats:
    """Counts [classes, classes]: rows are labels, columns predictions."""
    counts = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.float64)


def accuracy(labels: Labels, predictions: Labels, classes: int) -> float:
    """The share of right predictions, 0 to 1."""
    return np.count_nonzero(labels == predictions) / len(labels)


def _share(part: Floats, whole: Floats) -> Floats:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _f1(table: Floats) -> Floats:
    """2 TP / (2 TP + FP + FN) of each class, [classes]."""
    return _share(2 * np.diag(table), table.sum(0) + table.sum(1))


def f1_binary(labels: Labels, predictions: Labels, classes: int) -> float:
    """F1 of class 1, 0 to 1; 0 where nobody has or predicts it."""
    return float(_f1(confusion(labels, predictions, classes))[1])


def f1_macro(labels: Labels, predictions: Labels, classes: int) -> float:
    """The plain mean over all classes of 2 TP / (2 TP + FP + FN), 0 to 1; a class nobody has or predicts counts 0."""
    return float(_f1(confusion(labels, predictions, classes)).mean())


def f1_weighted(labels: Labels, predictions: Labels, classes: int) -> float:
    """The mean of the classes' F1, each weighted by how many examples have it, 0 to 1."""
    table = confusion(labels, predictions, classes)
    return float(_f1(table) @ table.sum(1) / table.sum())


def f1_micro(labels: Labels, predictions: Labels, classes: int) -> float:
    """F1 of all decisions counted together, 0 to 1: where every example has one label and one prediction, the accuracy."""
    return accuracy(labels, predictions, classes)


def balanced_accuracy(labels: Labels, predictions: Labels, classes: int) -> float:
    """The plain mean of recall over all classes, 0 to 1; a class nobody has counts 0 (law 9)."""
    table = confusion(labels, predictions, classes)
    return float(_share(np.diag(table).copy(), table.sum(1)).mean())


def mcc(labels: Labels, predictions: Labels, classes: int) -> float:
    """Matthews' correlation, -1 to 1 (Gorodkin 2004 for many classes); 0 where labels or predictions are all one class."""
    table = confusion(labels, predictions, classes)
    n, hits, true, seen = table.sum(), np.trace(table), table.sum(1), table.sum(0)
    scale = (n**2 - (seen**2).sum()) * (n**2 - (true**2).sum())
    return float((hits * n - true @ seen) / np.sqrt(scale)) if scale > 0 else 0.0


def pearson(wanted: Floats, said: Floats) -> float:
    """The linear correlation, -1 to 1; 0 where either does not vary."""
    a, b = wanted - wanted.mean(), said - said.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return min(1.0, max(-1.0, float(a @ b) / scale)) if scale > 0 else 0.0


def spearman(wanted: Floats, said: Floats) -> float:
    """Pearson's correlation of the ranks, ties averaged."""
    return pearson(_ranks(wanted), _ranks(said))


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts, dtype=np.float64)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


CLASS_METRICS: dict[str, Callable[[Labels, Labels, int], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1_binary,
    "f1_macro": f1_macro,
    "f1_micro": f1_micro,
    "f1_weighted": f1_weighted,
    "mcc": mcc,
}
CORRELATIONS: dict[str, Callable[[Floats, Floats], float]] = {"pearson": pearson, "spearman": spearman}
