"""Metrics and scorers of scikit-learn, higher made better, with the label set that the task fixes (law 9)."""

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from zo_objectives.errors import InputError, unknown
from zo_objectives.language.objective import REAL, Examples, Needs, Objective
from zo_objectives.language.option_scores import choices, probabilities
from zo_objectives.language.outputs import Choices, Outputs
from zo_objectives.language.picking import picked, references_of

PROBABILITIES = ("y_score", "y_proba", "y_prob", "y_pred_proba", "probas_pred")
OF_PROBABILITIES = ("log_loss", "d2_log_loss_score", "d2_brier_score")  # though their argument may be called y_pred
MINIMISED = re.compile(r"(_loss|_error|_deviance)$")  # "a value to minimize, the lower the better" (its user guide)


def is_scorer(value: object) -> bool:
    """Whether this is one of scikit-learn's scorers (make_scorer, get_scorer)."""
    return any(c.__module__ == "sklearn.metrics._scorer" for c in type(value).__mro__)


def from_sklearn(metric: Any, name: str | None = None, **given: Any) -> Objective:
    """An objective from a metric `f(y_true, y_pred or y_score, ...)`, a scorer, or the name of one.

    Losses and errors are negated and named neg_...; `labels` are the task's classes and `zero_division` is 0 where a metric
    has these and they are not given.
    """
    metric = find(metric) if isinstance(metric, str) else metric
    if is_scorer(metric):
        function, sign, given = metric._score_func, metric._sign, {**metric._kwargs, **given}
        asked = metric._response_method
        asked = (asked,) if isinstance(asked, str) else tuple(asked)
    else:
        function, sign, asked = metric, -1 if MINIMISED.search(getattr(metric, "__name__", "")) else 1, ()
    inner = function.func if isinstance(function, partial) else function
    base = str(getattr(inner, "__name__", type(inner).__name__))
    parameters = inspect.signature(function).parameters
    if extra := [n for n in given if n not in parameters]:
        raise InputError(f"scikit-learn's {base} takes {', '.join(parameters)}, and not {extra[0]!r}.")
    second = list(parameters)[1] if len(parameters) > 1 else ""
    graded = second in PROBABILITIES or base in OF_PROBABILITIES or (bool(asked) and "predict" not in asked)
    call = _Call(function, base, sign, graded, tuple(given.items()))
    about = f"{'minus ' if sign < 0 else ''}scikit-learn's {base}" + "".join(f", {k}={v}" for k, v in given.items())
    title = name or (f"neg_{base}" if sign < 0 else base)
    return Objective(title, call, Needs.LIKELIHOOD if graded else Needs.PREDICTION, about, source="scikit-learn")


def find(name: str) -> Callable[..., Any]:
    """A metric of sklearn.metrics, or a scorer, by name. Raises InputError."""
    metrics = importlib.import_module("sklearn.metrics")
    if name in metrics.__all__ and inspect.isfunction(found := getattr(metrics, name)):
        function: Callable[..., Any] = found
        return function
    scorers = metrics.get_scorer_names()
    if name in scorers:
        scorer: Callable[..., Any] = metrics.get_scorer(name)
        return scorer
    raise unknown("metric or scorer of scikit-learn", name, [n for n in metrics.__all__ if n.islower()] + scorers)


@dataclass(frozen=True)
class _Call:
    function: Callable[..., Any]
    name: str
    sign: int
    graded: bool
    given: tuple[tuple[str, Any], ...]

    def __call__(self, outputs: Outputs, examples: Examples) -> Any:
        if self.graded:
            said: Any = probabilities(choices(self.name, outputs))
            said = said[:, 1] if said.shape[1] == 2 and self.name not in OF_PROBABILITIES else said
        else:
            said = list(outputs.predictions)
        given = self._fixed(outputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that a batch lacks
            value = picked(self.function(references_of(examples), said, **given), None)
        return self.sign * value if isinstance(value, REAL) and not isinstance(value, bool) else value

    def _fixed(self, outputs: Outputs) -> dict[str, Any]:
        """The arguments, with the task's label set. Raises InputError where there is none, or not of two classes."""
        given, parameters = dict(self.given), inspect.signature(self.function).parameters
        if "zero_division" in parameters and not self._has("zero_division", parameters):
            given["zero_division"] = 0.0
        if "labels" not in parameters or self._has("labels", parameters):
            return given
        if not isinstance(outputs, Choices):
            raise InputError(
                f"scikit-learn's {self.name} needs a fixed label set, which generated text has not: give"
                " labels=['yes', 'no'], or take a builtin for texts."
            )
        classes = outputs.loglikelihoods.shape[1]
        average = given.get("average", parameters["average"].default if "average" in parameters else None)
        if average == "binary" and classes != 2:
            raise InputError(
                f"scikit-learn's {self.name} is of two classes, and this task has {classes}: give average='macro'"
                f" (sklearn:{self.name}?average=macro)."
            )
        return given if average == "binary" else {**given, "labels": list(range(classes))}

    def _has(self, name: str, parameters: Mapping[str, inspect.Parameter]) -> bool:
        """Whether an argument is given, here or in a partial."""
        fixed = self.function.keywords if isinstance(self.function, partial) else {}
        return name in dict(self.given) or name in fixed
