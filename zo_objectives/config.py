"""The configuration of a run: every setting, its default and its unit, validated where it enters."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from zo_objectives.errors import InputError, unknown
from zo_objectives.language.tasks import TaskSpec


@dataclass(frozen=True)
class Kind:
    """A method: what it is, and the settings that make it so."""

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tunes: str | None = None  # the setting that `METHOD:TUNE` stands for
    loss: bool = False  # whether it needs a cross-entropy


METHODS = {
    "zero-shot": Kind("the model as it is"),
    "calibrated": Kind("zero-shot, calibrated by a content-free prompt", {"scoring": "calibrated"}),
    "icl": Kind("in-context learning: demonstrations before every prompt", {"demonstrations": 32}),
    "lp": Kind("linear probing: logistic regression on the last hidden state; its strength is chosen on validation"),
    "ft": Kind(
        "backprop fine-tuning with AdamW, best of a small grid of learning rates chosen on validation",
        tunes="ft.tune",
        loss=True,
    ),
    "mezo-ce": Kind(
        "forward passes only, on cross-entropy (MeZO's objective), with the same estimator and forwards as zo",
        tunes="tune",
        loss=True,
    ),
    "zo": Kind("forward passes only, on the metric itself", tunes="tune"),
}
AFTER = "lp"  # `lp+METHOD` begins where linear probing ends


NOISE = r"rademacher|gaussian|low-rank(:[1-9]\d*)?"
MASK = r"(smallest|largest):(0?\.\d+|1|1\.0)"


def _like(pattern: str, wanted: str) -> AfterValidator:
    """Refuses texts of another form, saying what is wanted."""

    def check(text: str | None) -> str | None:
        if text is not None and not re.fullmatch(pattern, text):
            raise ValueError(f"Give {wanted}")
        return text

    return AfterValidator(check)


class FineTuning(BaseModel):
    """Settings of the backprop baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tune: str = Field("all", description="what is tuned; see zo_objectives.subsets")

    learning_rates: tuple[float, ...] = Field((3e-4, 1e-3, 3e-3), min_length=1)
    steps: int = Field(200, ge=1, description="optimiser steps for each learning rate")
    batch: int = Field(32, ge=1, description="examples a step")
    weight_decay: float = Field(0.0, ge=0)
    checkpointing: bool = Field(False, description="activations are computed again in the backward pass, not kept")
    autocast: bool = Field(False, description="float32 weights, bfloat16 matrix products")


class Isolation(BaseModel):
    """How a user's function is kept apart from the run: see zo_objectives.language.isolation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    timeout: float | None = Field(None, gt=0, description="seconds for one batch")
    workers: int = Field(0, ge=0, le=256, description="processes that score while the model goes on")
    pure: bool = Field(False, description="what it says of an output on an example never changes, and is remembered")


class LayerWise(BaseModel):
    """Layer-wise sizes d (MeZO, appendix B): see zo_objectives.search.layers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sizes: Literal["none", "parameter", "zeroth-order", "backprop"] = Field("none", description="the norms d is made of")
    modified: Literal["variance", "expectation"] = Field("variance", description="Definition 6 or 7")
    every: int = Field(0, ge=0, description="steps from one measurement to the next; 0: once")
    average: float = Field(0.0, ge=0, lt=1, description="share of the old sizes that stays at a new measurement")
    directions: int = Field(8, ge=1, description="pairs for each group's zeroth-order norm")
    floor: float = Field(0.1, gt=0, le=1, description="the smallest size, relative to the largest")


class RunConfig(BaseModel):
    """All that a run depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str
    model: str = "reviews-1m"
    data_dir: str | None = None
    include_path: str | None = None
    method: str = "zo"
    label: str = Field("", description="what the method is called in tables; METHOD, METHOD:TUNE or lp+METHOD")
    start: Literal["base", "lp"] = Field("base", description="lp: the label rows begin as a linear probe")
    objective: str | None = Field(None, description="what zo climbs; the task's own where not given")
    seed: int = 0

    tune: str = Field("head", description="what is tuned; see zo_objectives.subsets")
    steps: int = Field(300, ge=0)
    batch: int = Field(512, ge=1, description="training examples a step")
    estimator: Literal["spsa", "one_sided", "one_point", "es"] = "spsa"
    directions: int = Field(16, ge=1, description="directions a step: pairs for spsa, members for es")
    growth: Literal["constant", "linear"] = Field("constant", description="linear: from 1 direction up to all of them")
    scale: float = Field(0.5, gt=0, description="how far probes are; in units of each tensor's root mean square if relative")
    shaping: str = Field(
        "unit", description="raw, centred, zscore[:FLOOR], rank, sign or unit; see zo_objectives.search.shaping"
    )
    clip: float | None = Field(None, gt=0, description="the largest norm of a step's coefficients")
    blocks: Literal["all", "round-robin"] = Field("all", description="round-robin: one layer's tensors a step, in turn")
    rule: str = "sgd"
    moments: Literal["stored", "recomputed"] = Field("stored", description="recomputed: from the journal, without memory")
    learning_rate: float = Field(
        0.15, gt=0, description="for unit shaping: the root-mean-square step of an element, in the scale's unit"
    )
    schedule: str = "linear"
    warmup: int = Field(0, ge=0, description="steps in which the learning rate rises to the schedule's")
    weight_decay: float = Field(0.0, ge=0)
    pull: float = Field(0.0, ge=0, description="decay toward the initial weights, as weight_decay is toward 0")
    relative: bool = Field(True, description="scales and steps relative to each tensor's root mean square, or absolute")
    noise: Annotated[str, _like(NOISE, "rademacher, gaussian, low-rank or low-rank:RANK, as in low-rank:4")] = "rademacher"
    mask: Annotated[str | None, _like(MASK, "smallest:SHARE or largest:SHARE of each tensor, as in smallest:0.5")] = None
    layerwise: LayerWise = LayerWise()
    store: str = "inference"
    members: Literal["sequential", "batched"] = Field("sequential", description="batched: for low-rank noise")

    evaluations: int = Field(12, ge=1, description="how often validation is looked at during a run")
    on_failure: Literal["stop", "skip-step"] = Field("stop", description="what a failing objective does; never a score of 0")
    isolation: Isolation = Isolation()

    n_train: int | None = Field(None, ge=1)
    n_validation: int | None = Field(1000, ge=1)
    n_test: int | None = Field(2000, ge=1)
    shots: int | None = Field(None, ge=1, description="examples of each class in train and in validation, instead of n_*")
    demonstrations: int | None = Field(None, ge=0, description="examples before every prompt; the task's where not given")
    scoring: Literal["sum", "mean", "calibrated"] = Field("sum", description="how options are scored; see language.sheets")
    temperature: float | None = Field(
        None, ge=0, description="at which text is drawn, or options for the objective; the task's where not given"
    )
    samples: int = Field(1, ge=1, description="draws for each example, whose mean score is climbed")
    pass_at: int | None = Field(None, ge=1, description="k of pass@k, estimated from `samples` draws, instead of the mean")
    long_prompts: Literal["error", "drop", "cut"] = Field("error", description="cut: they lose their beginning")
    trunk_mb: int = Field(1024, ge=0, description="memory for stored hidden states, in MiB; what is beyond goes to TMPDIR")
    ft: FineTuning = FineTuning()

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"

    @property
    def tuned(self) -> str:
        """What is tuned by the run's method."""
        return self.ft.tune if self.method == "ft" else self.tune

    @property
    def called(self) -> str:
        """The method's name in tables."""
        return self.label or self.method

    def forwards(self, steps: int) -> int:
        """Forward passes that so many steps take, those that measure layer sizes aside."""
        fixed, each = {"spsa": (0, 2), "one_sided": (1, 1), "one_point": (1, 0), "es": (0, 1)}[self.estimator]
        first = 2 if self.estimator == "es" else 1
        growing = (max(first, self.directions * t // steps) for t in range(steps))  # as estimators.growing
        return fixed * steps + each * (self.directions * steps if self.growth == "constant" else sum(growing))


HOW = {"on_failure", "isolation"}  # settings that say how a run is made, not which run it is: it may go on with others
Settings = dict[str, Any]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Settings:
    """`base` with the entries of `over`, mappings merged all the way down."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) else value
        )
    return merged


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


def nested(key: str, value: Any) -> Settings:
    """`{a: {b: value}}` for the key `a.b`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    found: Settings = value
    return found


def read_settings(path: Path) -> Settings:
    """The settings in a YAML file. Raises InputError."""
    try:
        content = _numbers(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"--config {path} must hold a mapping of settings, found {type(content).__name__}.")
    return content


def for_task(settings: Mapping[str, Any], task: str, known: Collection[str]) -> Settings:
    """Settings with those under `tasks.<task>` laid over them. Raises InputError for a task that is not `known`."""
    own = dict(settings)
    of_tasks = own.pop("tasks", {})
    if not isinstance(of_tasks, Mapping) or not all(isinstance(t, Mapping) for t in of_tasks.values()):
        raise InputError("The setting `tasks` must hold one mapping for each task, as in --set tasks.sst2.steps=50.")
    for name in of_tasks:
        if name not in known:
            raise unknown("task in the setting `tasks`", name, known)
    return merge(own, of_tasks.get(task, {}))


def named(text: str) -> tuple[str, Settings]:
    """The method and the settings that `METHOD`, `METHOD:TUNE` or `lp+METHOD` stands for. Raises InputError."""
    first, plus, rest = text.partition("+")
    start = {"start": AFTER} if plus and first == AFTER and not rest.startswith(":") else {}
    method, colon, tune = (rest if start else text).partition(":")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    tunes = METHODS[method].tunes
    if (colon and not (tunes and tune)) or (start and tunes is None):
        raise InputError(
            f"Method {text!r}: write METHOD, METHOD:TUNE with zo, mezo-ce or ft, as in ft:lora, or lp+METHOD with those."
        )
    settings = merge({"method": method, "label": text if text != method else "", **start}, METHODS[method].settings)
    return method, merge(settings, nested(str(tunes), tune)) if colon else settings


def method_settings(settings: Mapping[str, Any], text: str) -> Settings:
    """Settings for a method's name: its own, and those under `methods.<method>`, laid over `settings`.

    What is under `methods.<name>`, as in `methods.ft:lora`, comes last.
    """
    method, of_name = named(text)
    own = dict(settings)
    methods = own.pop("methods", {})
    if not isinstance(methods, Mapping) or not all(isinstance(m, Mapping) for m in methods.values()):
        raise InputError("The setting `methods` must hold one mapping for each method, as in --set methods.zo.scale=0.5.")
    for name in methods:
        named(name)
    found = merge(merge(own, of_name), methods.get(method, {}))
    return merge(found, methods.get(text, {}))


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """The validated configuration. Raises InputError that names the setting, with the nearest name for an unknown one."""
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            nested: dict[str, type[BaseModel]] = {"ft": FineTuning, "layerwise": LayerWise, "isolation": Isolation}
            known = nested.get(str(first["loc"][0]), RunConfig).model_fields
            raise unknown("setting", str(first["loc"][-1]), known) from error
        raise InputError(f"Setting {field}={first['input']!r}: {first['msg'].removeprefix('Value error, ')}.") from error
    if config.method not in METHODS:
        raise unknown("method", config.method, METHODS)
    return config


def task_settings(spec: TaskSpec, *, demo: bool = False) -> Settings:
    """The settings that the task's file suggests."""
    return merge(spec.zo.settings, spec.zo.demo) if demo else dict(spec.zo.settings)


def dump(config: RunConfig) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder. Raises InputError."""
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{folder} is no run folder: {path.name} cannot be read ({type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is empty or half-written. Remove the folder and start the run again.")
    return make_config(content)
