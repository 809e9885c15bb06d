"""The configuration of a run: every setting, its default and its unit, validated where it enters."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from zo_objectives.errors import InputError, unknown
from zo_objectives.language.tasks import TaskSpec

METHODS = {
    "zero-shot": "the model as it is",
    "mezo-ce": "forward passes only, on cross-entropy (MeZO's objective), with the same estimator and forwards as zo",
    "ft": "backprop fine-tuning of all parameters with AdamW, best of a small grid of learning rates chosen on validation",
    "zo": "forward passes only, on the metric itself",
}


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

    learning_rates: tuple[float, ...] = Field((3e-4, 1e-3, 3e-3), min_length=1)
    steps: int = Field(200, ge=1, description="optimiser steps for each learning rate")
    batch: int = Field(32, ge=1, description="examples a step")
    weight_decay: float = Field(0.0, ge=0)


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
    n_train: int | None = Field(None, ge=1)
    n_validation: int | None = Field(1000, ge=1)
    n_test: int | None = Field(2000, ge=1)
    long_prompts: Literal["error", "drop"] = "error"
    trunk_mb: int = Field(1024, ge=0, description="memory for stored hidden states, in MiB; what is beyond goes to TMPDIR")
    ft: FineTuning = FineTuning()

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"

    def forwards(self, steps: int) -> int:
        """Forward passes that so many steps take, those that measure layer sizes aside."""
        fixed, each = {"spsa": (0, 2), "one_sided": (1, 1), "one_point": (1, 0), "es": (0, 1)}[self.estimator]
        first = 2 if self.estimator == "es" else 1
        growing = (max(first, self.directions * t // steps) for t in range(steps))  # as estimators.growing
        return fixed * steps + each * (self.directions * steps if self.growth == "constant" else sum(growing))


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
        for part in reversed(key.split(".")):
            value = {part: value}
        settings = merge(settings, value)
    return settings


def method_settings(settings: Mapping[str, Any], method: str) -> Settings:
    """Settings with those under `methods.<method>` laid over them."""
    own = dict(settings)
    methods = own.pop("methods", {})
    if not isinstance(methods, Mapping) or not all(isinstance(m, Mapping) for m in methods.values()):
        raise InputError("The setting `methods` must hold one mapping for each method, as in --set methods.zo.scale=0.5.")
    for name in methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    return merge(own, methods.get(method, {}))


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """The validated configuration. Raises InputError that names the setting, with the nearest name for an unknown one."""
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            nested: dict[str, type[BaseModel]] = {"ft": FineTuning, "layerwise": LayerWise}
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
