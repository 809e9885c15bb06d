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


def accuracy_of(table: Floats) -> float:
    """The share of right predictions, 0 to 1."""
    return float(np.trace(table) / table.sum())


def f1_binary_of(table: Floats) -> float:
    """F1 of class 1, 0 to 1; 0 where nobody has or predicts it."""
    return float(_f1(table)[1])


def f1_macro_of(table: Floats) -> float:
    """The plain mean over all classes of 2 TP / (2 TP + FP + FN), 0 to 1; a class nobody has or predicts counts 0."""
    return float(_f1(table).mean())


def f1_weighted_of(table: Floats) -> float:
    """The mean of the classes' F1, each weighted by how many examples have it, 0 to 1."""
    return float(_f1(table) @ table.sum(1) / table.sum())


def balanced_accuracy_of(table: Floats) -> float:
    """The plain mean of recall over all classes, 0 to 1; a class nobody has counts 0 (law 9)."""
    return float(_share(np.diag(table).copy(), table.sum(1)).mean())


def mcc_of(table: Floats) -> float:
    """Matthews' correlation, -1 to 1 (Gorodkin 2004 for many classes); 0 where labels or predictions are all one class."""
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


OF_TABLES: dict[str, Callable[[Floats], float]] = {
    "accuracy": accuracy_of,
    "balanced_accuracy": balanced_accuracy_of,
    "f1": f1_binary_of,
    "f1_macro": f1_macro_of,
    "f1_micro": accuracy_of,  # where every example has one label and one prediction
    "f1_weighted": f1_weighted_of,
    "mcc": mcc_of,
}
"""Class metrics as functions of counts [classes, classes], rows labels, columns predictions; counts may be expectations."""


def _of_predictions(metric: Callable[[Floats], float]) -> Callable[[Labels, Labels, int], float]:
    return lambda labels, predictions, classes: metric(confusion(labels, predictions, classes))


CLASS_METRICS: dict[str, Callable[[Labels, Labels, int], float]] = {
    name: accuracy if metric is accuracy_of else _of_predictions(metric) for name, metric in OF_TABLES.items()
}
CORRELATIONS: dict[str, Callable[[Floats, Floats], float]] = {"pearson": pearson, "spearman": spearman}
