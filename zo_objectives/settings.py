"""Settings before they are a configuration: read from files and command lines, and laid over one another."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zo_objectives.errors import InputError, unknown
from zo_objectives.language.tasks import TaskSpec

Settings = dict[str, Any]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Settings:
    """`base` with the entries of `over`, mappings merged all the way down."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) else value
        )
    return merged


def nested(key: str, value: Any) -> Settings:
    """`{a: {b: value}}` for the key `a.b`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    found: Settings = value
    return found


def _numbers(value: Any) -> Any:
    """`value` with texts such as 1e-3, which YAML 1.1 takes for words, as the numbers they are."""
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else value


def parse_set(assignments: Sequence[str]) -> Settings:
    """Settings from `a.b=c` texts; the right side is read as YAML, and numbers such as 1e-3 as numbers."""
    settings: Settings = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"--set {assignment!r}: write key=value, as in --set learning_rate=0.1.")
        try:
            value = _numbers(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise InputError(f"--set {assignment!r}: {text!r} is not a value.") from error
        settings = merge(settings, nested(key, value))
    return settings


def read_settings(path: Path, what: str = "--config") -> Settings:
    """The settings in a YAML file; `what` it is begins the error. Raises InputError."""
    try:
        content = _numbers(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{what} {path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{what} {path} must hold a mapping of settings, found {type(content).__name__}.")
    return content


SAID = {  # settings that are said in another way
    "task": "the command's first argument",
    "method": "--method or --methods",
    "seed": "--seed or --seeds",
}


def _none_said(settings: Mapping[str, Any]) -> None:
    """Raises InputError for what no setting says, also under `tasks` and `methods`."""
    for name, value in settings.items():
        if name in SAID:
            raise InputError(f"{name} is no setting here: {SAID[name]} says it.")
        if name in ("tasks", "methods") and isinstance(value, Mapping):
            for inner in value.values():
                _none_said(inner if isinstance(inner, Mapping) else {})


def for_task(settings: Mapping[str, Any], task: str, known: Collection[str]) -> Settings:
    """Settings with those under `tasks.<task>` laid over them. Raises InputError for a task that is not `known`, and for
    what is no setting."""
    _none_said(settings)
    own = dict(settings)
    of_tasks = own.pop("tasks", {})
    if not isinstance(of_tasks, Mapping) or not all(isinstance(t, Mapping) for t in of_tasks.values()):
        raise InputError("The setting `tasks` must hold one mapping for each task, as in --set tasks.sst2.steps=50.")
    for name in of_tasks:
        if name not in known:
            raise unknown("task in the setting `tasks`", name, known)
    return merge(own, of_tasks.get(task, {}))


def task_settings(spec: TaskSpec, *, demo: bool = False) -> Settings:
    """The settings that the task's file suggests."""
    return merge(spec.zo.settings, spec.zo.demo) if demo else dict(spec.zo.settings)
