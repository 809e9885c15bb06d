"""Scores of options: of classes, and of the options' log-likelihoods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError
from zo_objectives.language.metrics import CLASS_METRICS, OF_TABLES, Floats, Labels, accuracy
from zo_objectives.language.objective import Bound, Examples
from zo_objectives.language.outputs import Choices, Example, Likelihoods, Outputs
from zo_objectives.language.texts import TEXT_METRICS


def choices(name: str, outputs: Outputs) -> Choices:
    """The outputs, of options. Raises InputError for others."""
    if isinstance(outputs, Choices):
        return outputs
    names = ", ".join(TEXT_METRICS)
    raise InputError(f"Objective {name!r} needs a multiple-choice task; for generated text use one of {names}.")


def labels_of(examples: Examples) -> Labels:
    return np.array([e.label for e in examples], dtype=np.int64)


def _others(examples: Examples) -> tuple[Labels, Labels] | None:
    """Rows and options of what is right beside the labels; None where nothing is."""
    found = [(row, option) for row, e in enumerate(examples) for option in e.also]
    return (np.array([r for r, _ in found]), np.array([o for _, o in found])) if found else None


def _credited(labels: Labels, others: tuple[Labels, Labels] | None, predictions: Labels) -> Labels:
    """The labels, each replaced by the prediction where that is right too."""
    if others is None:
        return labels
    rows, options = others
    found = rows[predictions[rows] == options]
    labels = labels.copy()
    labels[found] = predictions[found]
    return labels


def _right(examples: Examples, width: int) -> NDArray[np.bool_]:
    """Which options are right, [N, width]."""
    mask = np.zeros((len(examples), width), dtype=bool)
    mask[np.arange(len(examples)), labels_of(examples)] = True
    if (others := _others(examples)) is not None:
        mask[others] = True
    return mask


# Classes


def on_labels(name: str, examples: Examples) -> Bound:
    metric, labels, others = CLASS_METRICS[name], labels_of(examples), _others(examples)

    def score(outputs: Outputs) -> float:
        given = choices(name, outputs)
        classes = given.loglikelihoods.shape[1]
        if name == "f1" and classes != 2:
            raise InputError(f"Objective 'f1' is of two classes, and this task has {classes}: use f1_macro or f1_weighted.")
        return metric(_credited(labels, others, given.predictions), given.predictions, classes)

    return score


def hits(outputs: Outputs, examples: Examples) -> list[float]:
    said = choices("accuracy", outputs).predictions
    found: list[float] = (_credited(labels_of(examples), _others(examples), said) == said).astype(float).tolist()
    return found


def acc_norm(examples: Examples) -> Bound:
    """lm-evaluation-harness's acc_norm: the likeliest option per character of its text, the delimiter left out."""
    labels, others = labels_of(examples), _others(examples)
    lengths = cache(partial(_lengths, examples))

    def score(outputs: Outputs) -> float:
        values = choices("acc_norm", outputs).loglikelihoods
        said = (values / lengths(values.shape[1])).argmax(axis=1)
        return accuracy(_credited(labels, others, said), said, values.shape[1])

    return score


def norm_hits(outputs: Outputs, examples: Examples) -> list[float]:
    """acc_norm of each example."""
    values = choices("acc_norm", outputs).loglikelihoods
    said = (values / _lengths(examples, values.shape[1])).argmax(axis=1)
    found: list[float] = (_credited(labels_of(examples), _others(examples), said) == said).astype(float).tolist()
    return found


def _lengths(examples: Examples, width: int) -> Floats:
    """Characters of each option, 1 where there is none, [N, width]."""
    sizes = [[max(1, len(o.lstrip())) for o in e.options] for e in examples]
    return np.array([s + [1] * (width - len(s)) for s in sizes], dtype=np.float64)


# Likelihoods


def log_softmax(outputs: Choices, temperature: float = 1.0) -> Floats:
    """Log-probabilities of each option among the options at a temperature, [N, C], float64."""
    scores = outputs.loglikelihoods.T.astype(np.float64, order="C")  # many examples, few options: sums along the options
    scores -= scores.max(axis=0)
    scores /= temperature
    scores -= np.log(np.exp(scores).sum(axis=0))
    return scores.T


def probabilities(outputs: Choices, temperature: float = 1.0) -> Floats:
    """The probability of each option among the options at a temperature, [N, C]."""
    found: Floats = np.exp(log_softmax(outputs, temperature))
    return found


@dataclass(frozen=True)
class Expected:
    """A class metric of options that are drawn with their probabilities at a temperature, in closed form.

    It is the metric of the expected confusion table: for accuracy that is the expectation; for others, which are no means
    over examples, what it tends to for many examples. It goes to the metric itself as the temperature goes to 0, but for
    options that are equally likely. A draw that is right too counts as its own class, as for the metric.
    """

    name: str
    temperature: float = 1.0

    def bind(self, examples: Examples) -> Bound:
        metric, labels, others = OF_TABLES[self.name], labels_of(examples), _others(examples)

        def score(outputs: Outputs) -> float:
            given = choices(f"expected_{self.name}", outputs)
            chance = probabilities(given, self.temperature)
            classes = chance.shape[1]
            if self.name == "f1" and classes != 2:
                raise InputError(
                    f"Objective 'expected_f1' is of two classes, and this task has {classes}: use expected_f1_macro."
                )
            credited = np.zeros_like(chance)
            if others is not None:
                credited[others] = chance[others]
            return metric(np.eye(classes)[labels].T @ (chance - credited) + np.diag(credited.sum(axis=0)))

        return score


@dataclass(frozen=True)
class OfOptions:
    """A number for each example from its options' log-likelihoods and which of them are right."""

    name: str
    rows: Callable[[Choices, NDArray[np.bool_]], Floats]

    def bind(self, examples: Examples) -> Bound:
        right = cache(partial(_right, examples))

        def score(outputs: Outputs) -> float:
            given = choices(self.name, outputs)
            return float(self.rows(given, right(given.loglikelihoods.shape[1])).mean())

        return score

    def samples(self, outputs: Outputs, examples: Examples) -> list[float]:
        given = choices(self.name, outputs)
        found: list[float] = self.rows(given, _right(examples, given.loglikelihoods.shape[1])).tolist()
        return found


def expected(outputs: Choices, right: NDArray[np.bool_]) -> Floats:
    found: Floats = (probabilities(outputs) * right).sum(axis=1)
    return found


def margins(outputs: Choices, right: NDArray[np.bool_]) -> Floats:
    scores = outputs.loglikelihoods.astype(np.float64)
    best, wrong = (np.where(mask, scores, -np.inf).max(axis=1) for mask in (right, ~right))
    if not np.isfinite(wrong).all():
        raise InputError("Objective 'margin' needs a wrong option for every example.")
    found: Floats = best - wrong
    return found


def bind_cross_entropy(examples: Examples) -> Bound:
    labels, rows = labels_of(examples), np.arange(len(examples))

    def score(outputs: Outputs) -> float:
        if isinstance(outputs, Choices):
            return float(log_softmax(outputs)[rows, labels].mean())
        if isinstance(outputs, Likelihoods):
            return float(outputs.loglikelihoods.sum(dtype=np.float64) / max(int(outputs.tokens.sum()), 1))
        raise InputError("Objective 'cross_entropy' needs options or targets, and this task has neither.")

    return score


def cross_entropy(outputs: Outputs, examples: Sequence[Example]) -> float:
    """Minus the mean cross-entropy in nats: of the right option among the options, or per token of the target."""
    return bind_cross_entropy(examples)(outputs)
