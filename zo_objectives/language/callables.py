"""An objective from any callable of a user's. Its form is told by the names of its parameters, never by what it returns:

    f(outputs, examples) -> float                     everything there is (see outputs.py)
    f(prompts, completions, **columns) -> list        a reward for each sample, as TRL takes it (rewards.py)
    f(y_true, y_pred, ...) -> float                   scikit-learn's (scikit.py)
    f(predictions, references, ...) -> float          a metric of the whole batch; option indices, or texts
    f(labels, predictions, ...) -> float              the same, told by the first one's name

Each may be a function, a class or an instance with `__call__`, a functools.partial, and asynchronous.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from zo_objectives.errors import InputError
from zo_objectives.language.awaiting import settled
from zo_objectives.language.culprits import short
from zo_objectives.language.evaluating import from_evaluate, is_evaluate
from zo_objectives.language.objective import Examples, Needs, Objective
from zo_objectives.language.outputs import Outputs
from zo_objectives.language.picking import picked, references_of
from zo_objectives.language.rewards import from_trl, is_reward, name_of
from zo_objectives.language.scikit import from_sklearn, is_scorer

WANTED = ("references", "labels", "targets", "golds", "gold", "truth", "ground_truth", "answers", "y")
ONE_AT_A_TIME = {
    "completion": "verifiers' rewards, one completion at a time",
    "solution_str": "verl's compute_score, one solution at a time",
    "prediction": "one prediction at a time",
    "eval_pred": "transformers' compute_metrics, an EvalPrediction",
    "eval_prediction": "transformers' compute_metrics, an EvalPrediction",
}
FORMS = "It must take (predictions, references), (outputs, examples) or (completions, **columns)"


def from_callable(
    function: Any, name: str | None = None, *, key: str | None = None, needs: Needs = Needs.PREDICTION, **given: Any
) -> Objective:
    """An objective from a user's callable (see the module's text), its other arguments `given`.

    `key`: which number of those that a metric returns by name. `needs`: what a function of (outputs, examples) looks at.
    Raises InputError for another form.
    """
    if isinstance(function, Objective):
        return _without(given, function)
    if is_evaluate(function):
        return from_evaluate(function, key, name=name, **given)
    if is_scorer(function):
        return from_sklearn(function, name, **given)
    if inspect.isclass(function) or _is_factory(function, given):
        function, given = _made(function, name, given), {}
    name = name or name_of(function)
    if not callable(function):
        raise InputError(f"Objective {name!r} is {short(function)}, which cannot be called.")
    parameters = _parameters(function, name)
    if unknown := [n for n in given if n not in parameters and not _takes_all(parameters)]:
        raise InputError(f"Objective {name!r} takes ({', '.join(parameters)}), and not {unknown[0]!r}.")
    about = next(iter((inspect.getdoc(_inner(function)) or "").splitlines()), "")
    if is_reward(parameters):
        return from_trl(partial(function, **given) if given else function, name, about=about)
    first = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)][:2]
    if len(first) == 2 and first[0] == "y_true":
        return from_sklearn(function, name, **given)
    function = partial(function, **given) if given else function
    if first == ["outputs", "examples"]:
        return Objective(name, partial(_call_plain, function, key), needs, about)
    if by_one := next((n for n in parameters if n in ONE_AT_A_TIME), None):
        raise InputError(
            f"Objective {name!r} takes {by_one!r}: {ONE_AT_A_TIME[by_one]}. {FORMS}, which are of a whole batch."
        )
    if {"predictions", "references"} <= set(parameters):
        order = ("predictions", "references")
    elif len(first) == 2 and first[0] in WANTED and first[1] not in WANTED:
        order = ("", "swapped")
    elif len(first) == 2:
        order = ("", "")
    else:
        raise InputError(f"Objective {name!r} takes ({', '.join(parameters)}). {FORMS}.")
    _all_given(name, parameters, {*given, *(order if order[0] else first)})
    return Objective(name, partial(_call_metric, function, order, key), about=about)


def _without(given: Mapping[str, Any], objective: Objective) -> Objective:
    if given:
        raise InputError(f"Objective {objective.name!r} takes no arguments, found {next(iter(given))!r}.")
    return objective


def _call_plain(function: Callable[..., Any], key: str | None, outputs: Outputs, examples: Examples) -> Any:
    return picked(settled(function(outputs, examples)), key)


def _call_metric(
    function: Callable[..., Any], order: tuple[str, str], key: str | None, outputs: Outputs, examples: Examples
) -> Any:
    said, wanted = list(outputs.predictions), references_of(examples)
    if order[0]:
        found = function(predictions=said, references=wanted)
    else:
        found = function(wanted, said) if order[1] else function(said, wanted)
    return picked(settled(found), key)


def _inner(function: Any) -> Any:
    return function.func if isinstance(function, partial) else function


def _parameters(function: Callable[..., Any], name: str) -> dict[str, inspect.Parameter]:
    """The parameters that are still open. Raises InputError where a function does not say."""
    try:
        found = inspect.signature(function).parameters
    except ValueError as error:
        raise InputError(f"Objective {name!r} does not say what it takes; wrap it in a function that does.") from error
    fixed = function.keywords if isinstance(function, partial) else {}
    return {n: p for n, p in found.items() if n not in fixed}


def _takes_all(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _all_given(name: str, parameters: Mapping[str, inspect.Parameter], given: set[str]) -> None:
    missing = [n for n, p in parameters.items() if _open(p) and n not in given]
    if missing:
        raise InputError(
            f"Objective {name!r} needs {missing[0]!r} beside predictions and references: functools.partial(f, ...), or on"
            f" the command line module:f?{missing[0]}=..."
        )


def _is_factory(function: Any, given: Mapping[str, Any]) -> bool:
    """Whether arguments make the function that scores, as TRL's get_... do: it takes no batch, and all it needs is given."""
    if not given or not inspect.isroutine(function):
        return False
    parameters = _parameters(function, name_of(function))
    wanted = {n for n, p in parameters.items() if _open(p)}
    return not is_reward(parameters) and wanted <= set(given) <= set(parameters)


def _open(parameter: inspect.Parameter) -> bool:
    """Whether it has to be given."""
    return parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)


def _made(maker: Callable[..., Any], name: str | None, given: Mapping[str, Any]) -> Any:
    """The instance of a class, or what a factory makes. Raises InputError."""
    label = name or name_of(maker)
    try:
        made = maker(**given)
    except Exception as error:
        what = "class" if inspect.isclass(maker) else "function that makes one"
        raise InputError(
            f"Objective {label!r} is a {what}, and making it failed: {type(error).__name__}: {error}. Give what it needs as"
            " module:Name?argument=value, or an instance from Python."
        ) from error
    if not callable(made):
        raise InputError(f"Objective {label!r} makes {short(made)}, which cannot be called.")
    return made
