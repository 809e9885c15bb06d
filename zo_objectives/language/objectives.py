"""Objectives: (outputs, examples) -> float, higher is better. Built in, or any callable of the user's.

A user's callable is told apart by the names of its parameters, never by what it returns:

    f(outputs, examples) -> float                     everything there is (see outputs.py)
    f(prompts, completions, **columns) -> list        a reward for each sample, as TRL takes it; None: not applicable
    f(predictions, references, ...) -> float          a metric of the whole batch; option indices, or texts
    f(y_true, y_pred, ...) -> float                   the same in scikit-learn's order
"""

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zo_objectives.errors import InputError, RunError, unknown
from zo_objectives.language.metrics import CLASS_METRICS, TEXT_METRICS
from zo_objectives.language.outputs import Choices, Example, Generations, Likelihoods, Outputs

Score = Callable[[Outputs, Sequence[Example]], float]
REAL = (int, float, np.integer, np.floating)


class Needs(Enum):
    """What an objective looks at."""

    PREDICTION = "the predicted option or the generated text"
    LIKELIHOOD = "log-likelihoods of the options or of the target"


@dataclass(frozen=True)
class Objective:
    """A named function of a model's outputs on a batch; higher is better."""

    name: str
    score: Score
    needs: Needs = Needs.PREDICTION
    about: str = ""

    def __call__(self, outputs: Outputs, examples: Sequence[Example]) -> float:
        """The score, finite. Raises RunError that names the objective and an example for anything else."""
        try:
            value = self.score(outputs, examples)
        except (InputError, RunError):
            raise
        except Exception as error:
            raise RunError(
                f"Objective {self.name!r} raised {type(error).__name__}: {error} ({_first(outputs, examples)})."
            ) from error
        if isinstance(value, bool) or not isinstance(value, REAL):
            raise RunError(f"Objective {self.name!r} returned {_short(value)}, not a number ({_first(outputs, examples)}).")
        if not math.isfinite(value):
            raise RunError(f"Objective {self.name!r} returned {float(value)} ({_first(outputs, examples)}).")
        return float(value)


def _short(value: object) -> str:
    text = f"{type(value).__name__} {value!r}" if value is not None else "None"
    return text if len(text) <= 120 else text[:117] + "..."


def _first(outputs: Outputs, examples: Sequence[Example], index: int = 0) -> str:
    if not examples:
        return "on an empty batch"
    return (
        f"example {examples[index].id}: prompt {_short(examples[index].prompt)}, output {_short(outputs.predictions[index])}"
    )


def _on_labels(name: str, outputs: Outputs, examples: Sequence[Example]) -> float:
    if not isinstance(outputs, Choices):
        raise InputError(
            f"Objective {name!r} needs a multiple-choice task; for generated text use one of {', '.join(TEXT_METRICS)}."
        )
    labels = np.array([e.label for e in examples])
    return CLASS_METRICS[name](labels, outputs.predictions, outputs.loglikelihoods.shape[1])


def _on_texts(name: str, outputs: Outputs, examples: Sequence[Example]) -> float:
    if isinstance(outputs, Choices):
        texts: Sequence[str] = [e.options[p].strip() for e, p in zip(examples, outputs.predictions, strict=True)]
        references = [(e.options[e.label],) for e in examples]
        return float(np.mean([TEXT_METRICS[name](t, r) for t, r in zip(texts, references, strict=True)]))
    if not isinstance(outputs, Generations) or not all(e.targets for e in examples):
        raise InputError(
            f"Objective {name!r} compares texts with targets, and this task has none. Use a reward or another objective."
        )
    return float(np.mean([TEXT_METRICS[name](t, e.targets) for t, e in zip(outputs.texts, examples, strict=True)]))


def cross_entropy(outputs: Outputs, examples: Sequence[Example]) -> float:
    """Minus the mean cross-entropy in nats: of the right option among the options, or per token of the target."""
    if isinstance(outputs, Choices):
        scores = outputs.loglikelihoods.astype(np.float64)
        right = scores[np.arange(len(scores)), [e.label for e in examples]]
        top = scores.max(axis=1)
        return float(np.mean(right - top - np.log(np.exp(scores - top[:, None]).sum(axis=1))))
    if isinstance(outputs, Likelihoods):
        return float(outputs.loglikelihoods.sum(dtype=np.float64) / max(int(outputs.tokens.sum()), 1))
    raise InputError("Objective 'cross_entropy' needs options or targets, and this task has neither.")


_ABOUT = {
    "accuracy": "share of right options, 0 to 1",
    "f1_macro": "mean F1 over all classes of the task, 0 to 1 (scikit-learn's f1_score, average='macro', labels fixed)",
    "mcc": "Matthews' correlation, -1 to 1 (Gorodkin 2004)",
    "exact_match": "share of texts equal to a target after stripping, 0 to 1",
    "squad_exact_match": "the same after SQuAD's normalisation (Rajpurkar et al. 2016)",
    "squad_f1": "mean best F1 of normalised words, 0 to 1 (Rajpurkar et al. 2016)",
}
BUILTIN: dict[str, Objective] = {
    **{name: Objective(name, partial(_on_labels, name), about=_ABOUT[name]) for name in CLASS_METRICS},
    **{name: Objective(name, partial(_on_texts, name), about=_ABOUT[name]) for name in TEXT_METRICS},
    "cross_entropy": Objective(
        "cross_entropy",
        cross_entropy,
        Needs.LIKELIHOOD,
        "minus the mean cross-entropy in nats, -inf to 0: the objective of CE-MeZO",
    ),
}


def references_of(examples: Sequence[Example]) -> list[Any]:
    """What a metric compares with: option indices; the target text, or a list of them where there are several."""
    return [e.label if e.options else e.targets[0] if len(e.targets) == 1 else list(e.targets) for e in examples]


def _call_metric(function: Callable[..., Any], outputs: Outputs, examples: Sequence[Example]) -> Any:
    return function(list(outputs.predictions), references_of(examples))


def _call_sklearn(function: Callable[..., Any], outputs: Outputs, examples: Sequence[Example]) -> Any:
    return function(references_of(examples), list(outputs.predictions))


def _call_reward(name: str, function: Callable[..., Any], outputs: Outputs, examples: Sequence[Example]) -> float:
    texts = _completions(outputs, examples)
    columns = {key: [e.row.get(key) for e in examples] for key in dict.fromkeys(k for e in examples for k in e.row)}
    for reserved in ("prompts", "completions", "prompt", "completion"):
        columns.pop(reserved, None)
    given: dict[str, Any] = {"prompts": [e.prompt for e in examples], "completions": texts, **columns}
    parameters = inspect.signature(function).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        given = {k: v for k, v in given.items() if k in parameters}
    rewards = function(**given)
    if not isinstance(rewards, (list, tuple, np.ndarray)) or len(rewards) != len(examples):
        size = f"{len(rewards)} values" if isinstance(rewards, (list, tuple, np.ndarray)) else _short(rewards)
        raise RunError(
            f"Reward {name!r} returned {size} for {len(examples)} completions; it must return one number for each."
        )
    for index, reward in enumerate(rewards):
        if reward is not None and not (isinstance(reward, REAL) and math.isfinite(reward)):
            raise RunError(f"Reward {name!r} returned {_short(reward)} for {_first(outputs, examples, index)}.")
    valid = [float(r) for r in rewards if r is not None]
    if not valid:
        raise RunError(f"Reward {name!r} returned None for every completion of a batch ({_first(outputs, examples)}).")
    return float(np.mean(valid))


def _completions(outputs: Outputs, examples: Sequence[Example]) -> list[str]:
    if isinstance(outputs, Choices):
        return [e.options[p] for e, p in zip(examples, outputs.predictions, strict=True)]
    return list(outputs.predictions)


def from_callable(function: Callable[..., Any], name: str | None = None) -> Objective:
    """An objective from a user's function; see the module's text for the three forms. Raises InputError for another form."""
    inner = function.func if isinstance(function, partial) else function
    name = name or str(getattr(inner, "__name__", type(inner).__name__))
    if not callable(function):
        raise InputError(f"Objective {name!r} is {_short(function)}, which cannot be called.")
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None)):  # noqa: B004
        raise InputError(f"Objective {name!r} is asynchronous; wrap it in a plain function that runs it with asyncio.run.")
    try:
        parameters = list(inspect.signature(function).parameters)
    except ValueError as error:
        raise InputError(f"Objective {name!r} does not say what it takes; wrap it in a function that does.") from error
    about = next(iter((inspect.getdoc(inner) or "").splitlines()), "")
    if parameters[:2] == ["outputs", "examples"]:
        return Objective(name, function, about=about)
    if "completions" in parameters:
        return Objective(name, partial(_call_reward, name, function), about=about)
    if parameters[:2] == ["y_true", "y_pred"]:
        return Objective(name, partial(_call_sklearn, function), about=about)
    if len(parameters) >= 2:
        return Objective(name, partial(_call_metric, function), about=about)
    raise InputError(
        f"Objective {name!r} takes ({', '.join(parameters)}). It must take (predictions, references), (outputs, examples) or"
        " (completions, **columns)."
    )


def _import(path: str, folder: Path) -> Callable[..., Any]:
    """The object that `module:name`, `module.name` or `file.py:name` stands for; files are looked up from `folder`."""
    module_name, _, attribute = path.rpartition(":") if ":" in path else path.rpartition(".")
    try:
        if module_name.endswith(".py"):
            file = folder / module_name
            if not file.is_file():
                raise InputError(f"Objective file {file} does not exist.")
            spec = importlib.util.spec_from_file_location(file.stem, file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"Cannot import {module_name!r} for objective {path!r}: {type(error).__name__}: {error}."
        ) from error
    if not hasattr(module, attribute):
        raise unknown(f"function in {module_name}", attribute, (n for n in vars(module) if not n.startswith("_")))
    function: Callable[..., Any] = getattr(module, attribute)
    return function


def resolve(name: str | Callable[..., Any] | Objective, folder: Path = Path()) -> Objective:
    """An objective by name, by path (`pkg.module:name`, `file.py:name`) or from a callable. Raises InputError."""
    if isinstance(name, Objective):
        return name
    if not isinstance(name, str):
        return from_callable(name)
    if name in BUILTIN:
        return BUILTIN[name]
    if ":" in name or "." in name:
        return from_callable(_import(name, folder), name.rpartition(":")[2] or name)
    raise unknown("objective", name, BUILTIN)
