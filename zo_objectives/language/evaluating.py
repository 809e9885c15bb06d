"""Metrics of Hugging Face's evaluate, from the hub, from a folder, or as an object.

Every call is made on a copy that keeps its data in memory: no lock file is left when a metric raises, no call waits a second
for another one's lock, nothing of a failed call gets into the next, and threads may share a metric.
"""

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zo_objectives.errors import InputError
from zo_objectives.language.builtin import ALIASES, BUILTIN
from zo_objectives.language.objective import Examples, Needs, Objective
from zo_objectives.language.option_scores import log_softmax
from zo_objectives.language.outputs import Choices, Outputs
from zo_objectives.language.picking import picked
from zo_objectives.language.text_scores import said_texts, wanted_texts
from zo_objectives.language.texts import number_in

LOAD = ("config_name", "module_type", "revision", "experiment_id", "cache_dir")  # arguments of evaluate.load
BOUND = ("compute", "add", "add_batch")  # evaluate binds these to the object they were made for
STATE = ("writer", "buf_writer", "data", "filelock", "cache_file_name", "rendez_vous_lock", "file_paths", "filelocks")


def is_evaluate(value: object) -> bool:
    """Whether this is a metric of evaluate, or several combined."""
    return any(c.__module__ == "evaluate.module" for c in type(value).__mro__)


def from_evaluate(
    metric: Any, key: str | None = None, *, name: str | None = None, folder: Path = Path(), **given: Any
) -> Objective:
    """An objective from a metric of evaluate: a name on the hub, a folder with its script, or the object.

    `key` chooses one of the numbers it returns; the others are logged. `given` goes to evaluate.load (config_name, revision)
    or to its compute. The task's label set is given to a metric that takes `labels`. Raises InputError.
    """
    if isinstance(metric, str):
        loading = {k: given.pop(k) for k in LOAD if k in given}
        path, metric = metric, load(metric, folder, **loading)
        title = Path(path).stem
    else:
        title = str(getattr(metric, "name", None) or type(metric).__name__)
    title = title if title != "combined_evaluations" else "combined"
    needs = Needs.LIKELIHOOD if "prediction_scores" in _names(metric) else Needs.PREDICTION
    call = _Call(metric, title, key, tuple(given.items()))
    return Objective(name or key or title, call, needs, f"{title} of evaluate", source="evaluate")


def load(name: str, folder: Path = Path(), **given: Any) -> Any:
    """A metric by name or path. Raises InputError that says what to do without a network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import evaluate
    local = "/" in name and (folder / name).exists()
    if name.startswith((".", "/")) and not local:
        raise InputError(f"There is no metric at {folder / name}: give the folder that holds its script.")
    if not local and Path(name).is_dir() and list(Path(name).glob("*.py")):
        raise InputError(
            f"evaluate would run the folder {name}/ that happens to be here, not the hub's metric: say evaluate:./{name} if"
            " you want that, or work in another folder."
        )
    try:
        return evaluate.load(str(folder / name) if local else name, keep_in_memory=True, **given)
    except Exception as error:
        known = ALIASES.get(name, name)
        instead = f"the builtin {known!r}, " if known in BUILTIN else ""
        said = " ".join(str(error).split())
        raise InputError(
            f"Cannot load {name!r} of evaluate: {type(error).__name__}: {said} Its scripts are on the hub; without a network"
            f" take {instead}a folder that holds the script (evaluate:PATH/{Path(name).stem}), or the object from Python."
        ) from error


def fresh(metric: Any) -> Any:
    """A copy of a metric with nothing in it, which keeps what it gets in memory."""
    if hasattr(metric, "evaluation_modules"):
        combined = copy.copy(metric)
        combined.evaluation_modules = [fresh(m) for m in metric.evaluation_modules]
        return combined
    new = copy.copy(metric)
    for name in BOUND:
        vars(new).pop(name, None)
    for name in STATE:
        setattr(new, name, None)
    new.keep_in_memory, new.num_process, new.process_id = True, 1, 0
    return new


@dataclass(frozen=True)
class _Call:
    metric: Any
    title: str
    key: str | None
    given: tuple[tuple[str, Any], ...]

    def __call__(self, outputs: Outputs, examples: Examples) -> Any:
        module, given = fresh(self.metric), dict(self.given)
        if isinstance(outputs, Choices):
            classes = list(range(outputs.loglikelihoods.shape[1]))
            fixed: dict[str, Any] = {"labels": classes, "zero_division": 0.0}
            given = {k: v for k, v in fixed.items() if k in _arguments(module) and _averaged(k, module, given)} | given
        result = module.compute(**_inputs(self.title, module, outputs, examples), **given)
        return picked(result, self.key, self.title)


def _averaged(name: str, module: Any, given: Mapping[str, Any]) -> bool:
    """Whether to give the label set: not to an F1 of one class, which takes none."""
    parameter = _arguments(module).get("average")
    return name != "labels" or parameter is None or given.get("average", parameter.default) != "binary"


def _arguments(module: Any) -> Mapping[str, inspect.Parameter]:
    return {} if hasattr(module, "evaluation_modules") else inspect.signature(module._compute).parameters


def _forms(module: Any) -> list[Mapping[str, Any]]:
    """The forms of input that a metric takes: features by name."""
    first = module.evaluation_modules[0] if hasattr(module, "evaluation_modules") else module
    return list(first.features) if isinstance(first.features, list) else [first.features]


def _names(module: Any) -> list[str]:
    return list(_forms(module)[0])


class _NoFit(Exception):
    """An input has no value of this form."""


def _inputs(title: str, module: Any, outputs: Outputs, examples: Examples) -> dict[str, Any]:
    """Predictions and references in the first form that fits. Raises InputError where none does."""
    reasons = []
    for form in _forms(module):
        try:
            return {name: _input(title, name, feature, outputs, examples) for name, feature in form.items()}
        except _NoFit as reason:
            reasons.append(str(reason))
    raise InputError(f"Metric {title!r} of evaluate cannot score this task: {'; '.join(dict.fromkeys(reasons))}.")


def _input(title: str, name: str, feature: Any, outputs: Outputs, examples: Examples) -> list[Any]:
    if name == "prediction_scores" and isinstance(outputs, Choices):
        values = log_softmax(outputs)
        return list(values[:, 1] if values.shape[1] == 2 else values)
    if name not in ("predictions", "references"):
        if all(name in e.row for e in examples):
            return [e.row[name] for e in examples]
        raise _NoFit(f"it takes {name!r}, which is no column of the task")
    if isinstance(feature, Mapping):
        return _records(title, name, feature, outputs, examples)
    several = isinstance(feature, Sequence) or hasattr(feature, "feature")
    inner = feature[0] if isinstance(feature, Sequence) else getattr(feature, "feature", feature)
    kind = str(getattr(inner, "dtype", ""))
    if name == "predictions":
        if several:
            raise _NoFit("it takes several predictions for an example")
        if kind == "string":
            return list(said_texts(title, outputs, examples))
        return _numbers(kind, list(outputs.predictions), outputs)
    if kind == "string":
        wanted = wanted_texts(title, examples)
        return [list(w) for w in wanted] if several else [_only(w) for w in wanted]
    if several:
        raise _NoFit("it takes several numbers for an example")
    return _numbers(kind, [e.label if e.options else _only(e.targets) for e in examples], outputs)


def _only(wanted: Sequence[str]) -> str:
    if len(wanted) != 1:
        raise _NoFit(f"it takes one reference for an example, and one here has {len(wanted)}")
    return wanted[0]


def _numbers(kind: str, values: Sequence[Any], outputs: Outputs) -> list[Any]:
    if isinstance(outputs, Choices):
        return [float(v) if kind.startswith("float") else int(v) for v in values]
    if not kind.startswith("float"):
        raise _NoFit("it compares whole numbers, and this task generates text; take a metric of texts")
    found = [number_in(str(v)) for v in values]
    return [-1.0 if v is None else float(v) for v in found]


def _records(title: str, name: str, feature: Mapping[str, Any], outputs: Outputs, examples: Examples) -> list[Any]:
    """squad's and squad_v2's inputs."""
    said, wanted = said_texts(title, outputs, examples), wanted_texts(title, examples)
    values = {
        "id": [str(e.id) for e in examples],
        "prediction_text": list(said),
        "no_answer_probability": [0.0] * len(examples),
        "answers": [{"text": list(w), "answer_start": [0] * len(w)} for w in wanted],
    }
    if missing := [n for n in feature if n not in values]:
        raise _NoFit(f"its {name} have {missing[0]!r}")
    return [dict(zip(feature, row, strict=True)) for row in zip(*(values[n] for n in feature), strict=True)]
