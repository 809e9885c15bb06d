"""Filters: what is done with generated text before it is scored, with lm-evaluation-harness's names and meanings."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from zo_objectives.language.harness import FILTERS


class Filter(BaseModel):
    """One step on generated text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    function: Literal["regex", "remove_whitespace", "take_first", "lowercase", "uppercase", "map"]
    regex_pattern: str = r"#### (\-?[0-9\.\,]+)"
    group_select: int = 0
    fallback: str = "[invalid]"
    mapping_dict: Mapping[str, str] = {}
    default_value: str = ""  # of map, for a text that it does not hold

    @field_validator("function", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, str) and value in FILTERS:
            raise ValueError(f"{value!r} is not supported: {FILTERS[value]}")
        return value

    @field_validator("mapping_dict", "default_value", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): str(v) for k, v in value.items()}
        return "" if value is None else str(value)

    @field_validator("regex_pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value


class FilterPipeline(BaseModel):
    """Steps in order, with the name that lm-evaluation-harness reports them under."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "none"
    filter: tuple[Filter, ...]


def _match(step: Filter, text: str) -> str:
    """The chosen match of the pattern; of several groups the first that holds something."""
    found = re.findall(step.regex_pattern, text)
    value = found[step.group_select] if -len(found) <= step.group_select < len(found) else step.fallback
    return (value if isinstance(value, str) else next((g for g in value if g), step.fallback)).strip()


def _apply(step: Filter, text: str) -> str:
    match step.function:
        case "regex":
            return _match(step, text)
        case "remove_whitespace":  # in front, as there
            return text.lstrip()
        case "lowercase":
            return text.lower()
        case "uppercase":
            return text.upper()
        case "map":
            return step.mapping_dict.get(text, step.default_value)
        case "take_first":
            return text


def apply_filters(pipelines: Sequence[FilterPipeline], text: str) -> str:
    """Generated text after the first pipeline's steps, in order."""
    for step in pipelines[0].filter if pipelines else ():
        text = _apply(step, text)
    return text


def normalised(
    text: str,
    *,
    regexes_to_ignore: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> str:
    """A prediction or target as lm-evaluation-harness's exact_match compares it, given its arguments."""
    for pattern in regexes_to_ignore:
        text = re.sub(pattern, "", text)
    if ignore_case:
        text = text.lower()
    left_out = (string.punctuation if ignore_punctuation else "") + (string.digits if ignore_numbers else "")
    return text.translate(str.maketrans("", "", left_out))
