"""Reward functions as TRL's trainers take them, used unchanged (trl.trainer.grpo_trainer; TRL is not needed).

    f(prompts, completions, completion_ids, **columns) -> list[float | None]        or the same, async

Keywords only: every column of the task as a list; `trainer_state`, `log_extra(column, values)`, `log_metric(name, value)`.
Standard form: prompts and completions are texts. Conversational form: lists of messages, `completion[0]["content"]`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from zo_objectives.errors import InputError
from zo_objectives.language.awaiting import together
from zo_objectives.language.context import current
from zo_objectives.language.culprits import short, where
from zo_objectives.language.objective import REAL, Examples, Failure, Logged, Objective, from_samples
from zo_objectives.language.outputs import Choices, Outputs

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
RESERVED = (*GIVEN, "prompt", "completion")
HINT = (
    "It reads completions as lists of messages: say from_trl(f, conversational=True) or trl:module:f?format=conversational"
)


@dataclass(frozen=True)
class TrainerState:
    """What of transformers' TrainerState a reward may ask."""

    global_step: int
    max_steps: int
    epoch: float = 0.0
    num_train_epochs: int = 1
    is_world_process_zero: bool = True
    is_local_process_zero: bool = True
    log_history: list[dict[str, float]] = field(default_factory=list)


def completions_of(outputs: Outputs, examples: Examples) -> list[str]:
    """What the model said, as it continues the prompt."""
    if isinstance(outputs, Choices):
        return [e.options[p] for e, p in zip(examples, outputs.predictions.tolist(), strict=True)]
    return list(outputs.predictions)


@dataclass(frozen=True)
class Reward:
    """One function with its name; `conversational` None: where a row's own prompt is."""

    name: str
    function: Callable[..., Any]
    conversational: bool | None = None

    def begin(self, outputs: Outputs, examples: Examples, parts: dict[str, float], columns: dict[str, list[Any]]) -> Any:
        """Calls the function: its rewards, or what is to be awaited for them. What it logs goes into `parts`, `columns`."""
        said = completions_of(outputs, examples)
        chat = _is_chat(examples) if self.conversational is None else self.conversational
        given = {
            **_columns(examples),
            "prompts": [_messages(e.row.get("prompt"), e.prompt) for e in examples]
            if chat
            else [e.prompt for e in examples],
            "completions": [[{"role": "assistant", "content": text}] for text in said] if chat else said,
            "trainer_state": TrainerState(current().step, current().steps),
            "log_extra": partial(_log_extra, columns),
            "log_metric": partial(_log_metric, parts),
        }
        if (ids := self._ids(said)) is not None:
            given["completion_ids"] = ids
        try:
            return self.function(**self._taken(given, examples))
        except (TypeError, IndexError) as error:
            if chat or "string ind" not in str(error):
                raise
            raise type(error)(f"{error}. {HINT}") from error

    def _ids(self, said: Sequence[str]) -> list[list[int]] | None:
        named = inspect.signature(self.function).parameters.get("completion_ids")
        tokenize = current().tokenize
        if tokenize is not None and (named or self._takes_all):
            return tokenize(said)
        if named and named.default is inspect.Parameter.empty:
            raise Failure(f"Reward {self.name!r} takes completion_ids, and there is no tokenizer outside a run.", self.name)
        return None

    @property
    def _takes_all(self) -> bool:
        return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(self.function).parameters.values())

    def _taken(self, given: dict[str, Any], examples: Examples) -> dict[str, Any]:
        """What of the given the function takes. Raises Failure where it wants what is not there."""
        wanted = inspect.signature(self.function).parameters
        for name, parameter in wanted.items():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.default is parameter.empty and name not in given:
                known = ", ".join(n for n in given if n not in RESERVED) or "none"
                raise Failure(
                    f"Reward {self.name!r} takes {name!r}, which is no column of the task; it has: {known}.",
                    self.name,
                    examples[0].id if examples else None,
                )
        return given if self._takes_all else {k: v for k, v in given.items() if k in wanted}

    def numbers(self, found: Any, outputs: Outputs, examples: Examples) -> list[float | None]:
        """What the function returned, checked: a number or None for each completion. Raises Failure for anything else."""
        found = found.tolist() if hasattr(found, "tolist") and getattr(found, "ndim", 0) == 1 else found
        if not isinstance(found, (list, tuple)) or len(found) != len(examples):
            size = f"{len(found)} values" if isinstance(found, (list, tuple)) else short(found)
            raise Failure(
                f"Reward {self.name!r} returned {size} for {len(examples)} completions; it must return one number for each.",
                self.name,
            )
        return [self._number(value, i, outputs, examples) for i, value in enumerate(found)]

    def _number(self, value: Any, index: int, outputs: Outputs, examples: Examples) -> float | None:
        plain = value.item() if hasattr(value, "item") and not isinstance(value, REAL) else value
        if plain is None:
            return None
        if isinstance(plain, REAL) and math.isfinite(plain):
            return float(plain)
        place = where(outputs, examples, index)
        raise Failure(f"Reward {self.name!r} returned {short(value)} for {place}.", self.name, examples[index].id)

    def __call__(self, outputs: Outputs, examples: Examples) -> list[float | None]:
        parts, columns = dict[str, float](), dict[str, list[Any]]()
        (found,) = together([self.begin(outputs, examples, parts, columns)])
        return Logged(self.numbers(found, outputs, examples), parts, columns)


@dataclass(frozen=True)
class Rewards:
    """Several functions with weights, as TRL joins them: for each completion the weighted sum of those that apply to it."""

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]

    def __call__(self, outputs: Outputs, examples: Examples) -> list[float | None]:
        parts, columns = dict[str, float](), dict[str, list[Any]]()
        begun = [r.begin(outputs, examples, parts, columns) for r in self.rewards]
        found = [r.numbers(f, outputs, examples) for r, f in zip(self.rewards, together(begun), strict=True)]
        names = [r.name for r in self.rewards]
        joined = (_weighted(row, self.weights) for row in zip(*found, strict=True))
        return Logged(joined, parts, {**columns, **dict(zip(names, found, strict=True))}, names)


def _weighted(row: Sequence[float | None], weights: Sequence[float]) -> float | None:
    valid = [w * v for w, v in zip(weights, row, strict=True) if v is not None]
    return sum(valid) if valid else None


def _is_chat(examples: Examples) -> bool:
    prompt = examples[0].row.get("prompt") if examples else None
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], Mapping) and "role" in prompt[0]


def _messages(own: Any, prompt: str) -> list[dict[str, Any]]:
    return list(own) if isinstance(own, list) else [{"role": "user", "content": prompt}]


def _columns(examples: Examples) -> dict[str, list[Any]]:
    names = dict.fromkeys(k for e in examples for k in e.row)
    return {name: [e.row.get(name) for e in examples] for name in names if name not in RESERVED}


def _log_extra(columns: dict[str, list[Any]], column: str, values: Sequence[Any]) -> None:
    columns[column] = list(values)


def _log_metric(parts: dict[str, float], name: str, value: float) -> None:
    parts[name] = float(value)


def is_reward(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a function with these parameters is of TRL's form."""
    return bool({"completions", "prompts", "completion_ids"} & set(parameters)) or [p.kind for p in parameters.values()] == [
        inspect.Parameter.VAR_KEYWORD
    ]


def from_trl(
    function: Callable[..., Any] | Sequence[Callable[..., Any]],
    name: str | None = None,
    *,
    conversational: bool | None = None,
    weights: Sequence[float] | None = None,
    about: str = "",
) -> Objective:
    """An objective from one or several of TRL's reward functions, with weights (1 each where not given).

    `conversational`: completions as lists of messages, which TRL's own rewards read; None: where a row's `prompt` is such a
    list, and for TRL's own. Several are added up for each completion, None left out, and logged one by one.
    """
    functions = [function] if callable(function) else list(function)
    if not functions or not all(map(callable, functions)):
        raise InputError(f"from_trl takes a reward function or several, found {short(function)}.")
    if weights is not None and len(weights) != len(functions):
        raise InputError(f"{len(functions)} reward functions have {len(weights)} weights; give one for each.")
    rewards = [Reward(name_of(f), f, _chat_of(f) if conversational is None else conversational) for f in functions]
    if len({r.name for r in rewards}) < len(rewards):
        rewards = [Reward(f"{r.name}#{i}", r.function, r.conversational) for i, r in enumerate(rewards, 1)]
    if callable(function) and weights is None:
        only = Reward(name or rewards[0].name, function, rewards[0].conversational)
        return from_samples(only.name, only, about=about)
    joined = Rewards(tuple(rewards), tuple(map(float, weights or [1.0] * len(rewards))))
    return from_samples(name or "+".join(r.name for r in rewards), joined, about=about)


def name_of(function: Callable[..., Any]) -> str:
    """A callable's name, as TRL and the rest of Python show it: its own, or that of its class."""
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__name__", type(inner).__name__))


def _chat_of(function: Callable[..., Any]) -> bool | None:
    """TRL's own rewards read messages."""
    inner = function.func if isinstance(function, partial) else function
    module = inner.__module__ if inspect.isroutine(inner) else type(inner).__module__
    return True if str(module).startswith("trl.rewards") else None


def made_reward(function: Any, given: Mapping[str, Any]) -> Callable[..., Any]:
    """A reward function with arguments, or the one that a class or a function like TRL's get_... makes of them."""
    if not callable(function):
        raise InputError(f"A reward function is called, and {short(function)} cannot be.")
    if not inspect.isclass(function) and is_reward(inspect.signature(function).parameters):
        return partial(function, **given) if given else function
    told = ", ".join(f"{k}={v!r}" for k, v in given.items())
    try:
        made = function(**given)
    except Exception as error:
        raise InputError(
            f"{name_of(function)!r} is no reward function (completions, **columns), and making one of ({told}) failed:"
            f" {type(error).__name__}: {error}."
        ) from error
    if not callable(made) or not is_reward(inspect.signature(made).parameters):
        raise InputError(
            f"{name_of(function)!r} is no reward function (completions, **columns), nor does it make one of ({told})."
        )
    found: Callable[..., Any] = made
    return found
