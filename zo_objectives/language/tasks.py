"""Tasks: data files in a strict subset of lm-evaluation-harness's YAML, with one `zo:` block of our own."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from zo_objectives.errors import InputError, unknown

HERE = Path(__file__).parents[1]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Strict):
    """An entry of metric_list: the name of an objective of ours, or lm-evaluation-harness's `acc`."""

    metric: str
    aggregation: Literal["mean"] | None = None
    higher_is_better: bool = True


class Filter(_Strict):
    """One step on generated text."""

    function: Literal["regex", "remove_whitespace", "lowercase", "take_first"]
    regex_pattern: str = r"#### (\-?[0-9\.\,]+)"
    group_select: int = 0
    fallback: str = "[invalid]"

    @field_validator("regex_pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value


class FilterPipeline(_Strict):
    name: str = "none"
    filter: tuple[Filter, ...]


class GenerationKwargs(_Strict):
    """Greedy generation: where to stop."""

    until: tuple[str, ...] = ("\n\n",)
    max_gen_toks: int = 256
    do_sample: Literal[False] = False
    temperature: float = 0.0

    @field_validator("until", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Zo(_Strict):
    """What lm-evaluation-harness has no word for."""

    objective: str | None = (
        None  # a builtin's name, module:name, or file.py:name relative to the YAML; default: the first metric
    )
    source: str | None = None  # `embedded:NAME`, data in the package; `generated:NAME`, made from a seed
    prepare: str | None = None  # a named function of prepare.py on the rows of each split
    rows: tuple[
        str, ...
    ] = ()  # texts whose tokens' output rows `tune: head` moves; default: the options' or targets' tokens
    settings: dict[str, Any] = {}  # defaults for `run` and `compare` on this task
    demo: dict[str, Any] = {}  # and for `demo`


class TaskSpec(_Strict):
    """A task as its file says it."""

    task: str
    description: str = ""
    tag: str | tuple[str, ...] | None = None
    dataset_path: str | None = None
    dataset_name: str | None = None
    training_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    output_type: Literal["multiple_choice", "generate_until"] = "generate_until"
    doc_to_text: str
    doc_to_target: str | int | None = None
    doc_to_choice: str | tuple[str, ...] | None = None
    target_delimiter: str = " "
    num_fewshot: Literal[0] = 0
    generation_kwargs: GenerationKwargs = GenerationKwargs()
    filter_list: tuple[FilterPipeline, ...] = ()
    metric_list: tuple[Metric, ...] = ()
    metadata: dict[str, Any] = {}
    zo: Zo = Zo()

    @field_validator("doc_to_choice", mode="before")
    @classmethod
    def _texts_only(cls, value: Any) -> Any:
        if isinstance(value, list) and (bad := [v for v in value if not isinstance(v, str)]):
            raise ValueError(
                f"{bad[0]!r} is no text: YAML reads unquoted yes, no, on, off and numbers as other things, so quote it"
            )
        return value

    @model_validator(mode="after")
    def _complete(self) -> "TaskSpec":
        if self.output_type == "multiple_choice" and (self.doc_to_choice is None or self.doc_to_target is None):
            raise ValueError("output_type multiple_choice needs doc_to_choice and doc_to_target")
        if self.dataset_path is None and self.zo.source is None:
            raise ValueError("dataset_path (a hub data set) or zo.source is missing")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics to report, the headline first."""
        return tuple({"acc": "accuracy"}.get(m.metric, m.metric) for m in self.metric_list)


def tasks_folder() -> Path:
    """Where the shipped task files are: inside an installed package, or beside it in a checkout."""
    inside = HERE / "_tasks"
    return inside if inside.is_dir() else HERE.parent / "tasks"


def task_files(include_path: Path | None = None) -> dict[str, Path]:
    """Every task's file by name; files in `include_path` come last and win."""
    folders = [tasks_folder(), *([include_path] if include_path else [])]
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


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a file, over what it includes; the including file's own keys win."""
    if path in seen:
        raise InputError(f"{path}: include goes round in a circle ({' -> '.join(p.name for p in (*seen, path))}).")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"Cannot read the task file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        hint = (
            " Python functions (!function) are not run from data: name one of ours in zo.prepare."
            if "!function" in text
            else ""
        )
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.{hint}") from error
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
    try:
        return TaskSpec.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error, content)}") from error


def _explain(error: ValidationError, content: Mapping[str, Any]) -> str:
    return "; ".join(_explain_one(tuple(e["loc"]), e["type"], e["msg"]) for e in error.errors()) + "."


def _explain_one(where: tuple[int | str, ...], kind: str, message: str) -> str:
    field = ".".join(map(str, where)) or "the file"
    if kind == "extra_forbidden":
        inner: dict[int | str, type[BaseModel]] = {"zo": Zo, "generation_kwargs": GenerationKwargs, "metric_list": Metric}
        inner["filter_list"] = Filter if "filter" in where else FilterPipeline
        known = TaskSpec if len(where) == 1 else inner[where[0]]
        return f"field {field!r} is not supported. {unknown('field', str(where[-1]), known.model_fields)}".removesuffix(".")
    return f"field {field!r}: {message.removeprefix('Value error, ')}"


@cache
def load_task(name: str, include_path: Path | None = None) -> tuple[TaskSpec, Path]:
    """The task called `name` with the file it came from."""
    path = find_task(name, include_path)
    return read_task(path), path


def apply_filters(pipelines: Sequence[FilterPipeline], text: str) -> str:
    """Generated text after the first pipeline's steps, in order."""
    for step in pipelines[0].filter if pipelines else ():
        match step.function:
            case "regex":
                found = re.findall(step.regex_pattern, text)
                value = found[step.group_select] if -len(found) <= step.group_select < len(found) else step.fallback
                text = (value if isinstance(value, str) else next((g for g in value if g), step.fallback)).strip()
            case "remove_whitespace":
                text = text.strip()
            case "lowercase":
                text = text.lower()
            case "take_first":
                pass
    return text
