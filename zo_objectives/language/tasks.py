"""Task files: where they are, and how they are read. What they may say is in spec.py."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from zo_objectives.errors import InputError, unknown
from zo_objectives.language import harness, plugins
from zo_objectives.language.filters import Filter, FilterPipeline, apply_filters
from zo_objectives.language.spec import FewshotConfig, GenerationKwargs, Metric, TaskSpec, Zo

__all__ = [  # the first three are what others know of spec and filters
    "GenerationKwargs",
    "TaskSpec",
    "apply_filters",
    "find_task",
    "load_task",
    "read_task",
    "task_files",
    "tasks_folder",
]
HERE = Path(__file__).parents[1]


def tasks_folder() -> Path:
    """Where the shipped task files are: inside an installed package, or beside it in a checkout."""
    inside = HERE / "_tasks"
    return inside if inside.is_dir() else HERE.parent / "tasks"


def task_files(include_path: Path | None = None) -> dict[str, Path]:
    """Every task's file by name: the shipped ones, those of other packages, those in `include_path`; later ones win."""
    folders = [tasks_folder(), *plugins.task_folders().values(), *([include_path] if include_path else [])]
    if include_path and not include_path.is_dir():
        raise InputError(f"--include-path {include_path} is not a folder.")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml")) if not path.stem.startswith("_")}


def find_task(name: str, include_path: Path | None = None) -> Path:
    """The file of task `name`, which may also be a path to a YAML file. Raises InputError with the nearest name."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise InputError(f"Task file {name} does not exist.")
        return Path(name)
    files = task_files(include_path)
    if name not in files:
        raise unknown("task", name, files)
    return files[name]


@dataclass(frozen=True)
class Function:
    """A `!function` of a file: named in the error, never looked up."""

    name: str


class _Loader(yaml.SafeLoader):
    """SafeLoader, but a `!function` is kept, so that the error can name its field."""


def _function(loader: yaml.SafeLoader, node: yaml.Node) -> Function:
    return Function(str(node.value))


_Loader.add_constructor("!function", _function)


def _functions(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Function]]:
    """Every `!function` in a file's content with its place."""
    if isinstance(value, Function):
        yield where, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, content in inner:
        yield from _functions(content, (*where, str(key)))


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a file, over what it includes; the including file's own keys win."""
    if path in seen:
        raise InputError(f"{path}: include goes round in a circle ({' -> '.join(p.name for p in (*seen, path))}).")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise InputError(f"Cannot read the task file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of fields, found {type(content).__name__}.")
    includes = content.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(i, str) for i in includes):
        raise InputError(f"{path}: field 'include' must be a file's name or a list of them, found {includes!r}.")
    merged: dict[str, Any] = {}
    for include in includes:
        merged |= _read_yaml(path.parent / include, (*seen, path))
    return merged | content


def read_task(path: Path) -> TaskSpec:
    """The task in a YAML file. Raises InputError that names file, field and cure."""
    content = _read_yaml(path)
    if found := list(_functions(content)):
        raise InputError(f"{path}: {'; '.join(_code(where, function) for where, function in found)}.")
    try:
        return TaskSpec.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}") from error


def _code(where: tuple[str, ...], function: Function) -> str:
    cure = harness.FUNCTIONS.get(where[0] if where else "", harness.TEMPLATE)
    return f"field {'.'.join(where)!r}: Python functions (here {function.name}) are not run from data: {cure}"


def _explain(error: ValidationError) -> str:
    return "; ".join(_explain_one(tuple(e["loc"]), e["type"], e["msg"]) for e in error.errors()) + "."


INNER: Mapping[str, tuple[type[BaseModel], Mapping[str, str]]] = {
    "zo": (Zo, {}),
    "generation_kwargs": (GenerationKwargs, harness.GENERATION),
    "fewshot_config": (FewshotConfig, harness.FEWSHOT),
    "metric_list": (Metric, harness.METRIC),
}


def _known(where: tuple[int | str, ...]) -> tuple[type[BaseModel], Mapping[str, str]]:
    """The model whose field `where` names, and cures for fields that it lacks."""
    if len(where) == 1:
        return TaskSpec, harness.FIELDS
    return INNER.get(str(where[0]), (Filter if "filter" in where else FilterPipeline, {}))


def _explain_one(where: tuple[int | str, ...], kind: str, message: str) -> str:
    field = ".".join(map(str, where)) or "the file"
    if kind == "extra_forbidden":
        model, cures = _known(where)
        name = str(where[-1])
        cure = f"{cures[name][0].upper()}{cures[name][1:]}" if name in cures else ""
        hint = cure or str(unknown("field", name, model.model_fields)).removesuffix(".")
        return f"field {field!r} is not supported. {hint}"
    return f"field {field!r}: {message.removeprefix('Value error, ')}"


@cache
def load_task(name: str, include_path: Path | None = None) -> tuple[TaskSpec, Path]:
    """The task called `name` with the file it came from."""
    path = find_task(name, include_path)
    return read_task(path), path
