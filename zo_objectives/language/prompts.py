"""Prompts: Jinja2 templates over a row's columns, with lm-evaluation-harness's conventions."""

import ast
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from zo_objectives.errors import InputError

Row = Mapping[str, Any]


def regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    """The Jinja filter that lm-evaluation-harness adds: re.sub, all matches for count 0."""
    return re.sub(pattern, replacement, text, count=count)


@cache
def _compile(template: str) -> Template:
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = regex_replace
    return environment.from_string(template)


def render(template: str, row: Row, where: str) -> Any:
    """The template on a row; a template that is a column's name gives the column itself, of any type.

    Raises InputError that begins with `where` (file and field) and lists the columns there are.
    """
    if template in row:
        return row[template]
    try:
        return _compile(template).render(**row)
    except UndefinedError as error:
        raise InputError(f"{where}: {error.message}. The data has the columns {', '.join(map(str, row))}.") from error
    except (TemplateError, AttributeError, TypeError, ValueError, ArithmeticError, LookupError, re.error) as error:
        raise InputError(f"{where}: the template {template!r} is wrong: {error}.") from error


def options(spec: str | list[str], row: Row, where: str) -> tuple[str, ...]:
    """The options of one row: a list, or a template that gives a column with a list or a Python list as text.

    Templates in a list are the task file's and are rendered; what comes from the row is never taken for one.
    """
    if isinstance(spec, list):
        return tuple(str(render(v, row, where)) if "{{" in v else v for v in spec)
    value = render(spec, row, where)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise InputError(f"{where}: {value!r} is not a list of options.") from error
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise InputError(f"{where}: options must be texts, found {value!r}. In YAML, quote words such as 'yes' and 'no'.")
    return tuple(value)


def label(spec: str | int, row: Row, choices: tuple[str, ...], where: str) -> int:
    """The index of the right option, from an integer, digits or an option's text. Raises InputError where there is none."""
    return _index(spec if isinstance(spec, int) else render(spec, row, where), choices, where)


def labels(spec: str | int, row: Row, choices: tuple[str, ...], where: str) -> tuple[int, ...]:
    """The indices of all right options, the main one first: of a list one for each entry, else `label`'s."""
    value = spec if isinstance(spec, int) else render(spec, row, where)
    if isinstance(value, str) and value.strip() not in {c.strip() for c in choices}:
        value = value if (several := _list_of(value.strip())) is None else several
    if not isinstance(value, (list, tuple)):
        return (_index(value, choices, where),)
    if not value:
        raise InputError(f"{where}: the list of right options is empty. Drop such rows from the data.")
    return tuple(dict.fromkeys(_index(v, choices, where) for v in value))


def _index(value: Any, choices: tuple[str, ...], where: str) -> int:
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        value = int(value)
    if isinstance(value, str):
        texts = [c.strip() for c in choices]
        if value.strip() in texts:
            return texts.index(value.strip())
        raise InputError(f"{where}: the label {value!r} is none of the options {list(choices)}.")
    if isinstance(value, (int, float)) and value in range(len(choices)):
        return int(value)
    raise InputError(
        f"{where}: label {value!r} has no option: there are {len(choices)} ({', '.join(map(repr, choices))})."
        " Add the option to doc_to_choice, or drop rows without a label (zo.prepare: labelled)."
    )


def _list_of(text: str) -> list[Any] | None:
    """The Python list that a text is, if it is one."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, list) else None


def targets(spec: str | list[str], row: Row, where: str) -> tuple[str, ...]:
    """The right answers of a generation row; a column with a list gives several."""
    value = spec if isinstance(spec, list) else render(spec, row, where)
    if isinstance(value, str) and (several := _list_of(value)) is not None:
        value = several
    if isinstance(value, (list, tuple)):
        if not value:
            raise InputError(f"{where}: the list of right answers is empty. Drop such rows from the data.")
        return tuple(dict.fromkeys(str(v) for v in value))
    return (str(value),)
