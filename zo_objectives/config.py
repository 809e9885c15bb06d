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
    whole: bool = False  # whether it tunes all parameters, with no TUNE to choose

    @property
    def chains(self) -> bool:
        """Whether it begins with weights and ends with others, so that it can stand anywhere in a chain."""
        return self.tunes is not None or self.whole

    @property
    def climbs(self) -> bool:
        """Whether it is a zeroth-order search."""
        return self.tunes == "tune"


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
    "grpo": Kind(
        "GRPO by TRL: the policy gradient of a reward, backprop on all parameters, best of a small grid as ft", whole=True
    ),
    "best-of-n": Kind("random search: the best of as many perturbations as zo's forwards allow", tunes="tune"),
    "mezo-ce": Kind(
        "forward passes only, on cross-entropy (MeZO's objective), with the same estimator and forwards as zo",
        tunes="tune",
        loss=True,
    ),
    "zo": Kind("forward passes only, on the metric itself", tunes="tune"),
}
PROBING = "lp"  # begins a chain, and never continues one
NEXT = re.compile(rf"\+(?=(?:{'|'.join(METHODS)})(?:[:+]|$))")  # where a chain's next stage begins


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


class Grpo(BaseModel):
    """Settings of the policy-gradient baseline: see zo_objectives.grpo."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field((1e-5, 1e-4), min_length=1)
    steps: int = Field(100, ge=1, description="optimiser steps for each learning rate")
    batch: int = Field(8, ge=1, description="prompts a step")
    generations: int = Field(8, ge=2, description="completions of each prompt, whose rewards are compared")
    temperature: float = Field(1.0, gt=0, description="at which they are drawn")
    beta: float = Field(0.0, ge=0, description="weight of the divergence from where the run began")


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
    label: str = Field("", description="what the method is called in tables; METHOD, METHOD:TUNE or a chain of those")
    before: "RunConfig | None" = Field(None, description="the run whose best weights on validation this one begins with")
    objective: str | None = Field(None, description="what zo climbs; the task's own where not given")
    metric: str | None = Field(None, description="what counts and chooses the step; the objective, else the task's first")
    seed: int = 0

    tune: str = Field("features", description="what is tuned; see zo_objectives.subsets")
    steps: int = Field(300, ge=0)
    batch: int = Field(512, ge=1, description="training examples a step")
    estimator: Literal["spsa", "one_sided", "one_point", "es"] = "spsa"
    directions: int = Field(16, ge=1, description="directions a step: pairs for spsa, members for es")
    growth: Literal["constant", "linear"] = Field("constant", description="linear: from 1 direction up to all of them")
    scale: float = Field(
        0.5,
        gt=0,
        description="how far probes are: in units of each tensor's root mean square if relative, in nats along features",
    )
    shaping: str = Field(
        "unit", description="raw, centred, zscore[:FLOOR], rank, sign or unit; see zo_objectives.search.shaping"
    )
    settle: Literal["given", "probe"] = Field(
        "given", description="probe: scale, learning_rate, batch, directions and steps follow from a survey at the start"
    )
    pace: Literal["ties", "fixed"] = Field(
        "ties", description="ties: probes go farther, and batches grow, while pairs tie; see zo_objectives.search.pace"
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
    guard: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="the confidence with which the best step must beat the start on validation; else the start is kept",
    )
    on_failure: Literal["stop", "skip-step"] = Field("stop", description="what a failing objective does; never a score of 0")
    isolation: Isolation = Isolation()

    n_train: int | None = Field(None, ge=1)
    n_validation: int | None = Field(1000, ge=1)
    n_test: int | None = Field(2000, ge=1)
    shots: int | None = Field(None, ge=1, description="examples of each class in train and in validation, instead of n_*")
    keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = Field(
        None, description="the share of each class that is kept in every split, before n_* and shots; see language.recut"
    )
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
    grpo: Grpo = Grpo()

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"

    @property
    def tuned(self) -> str:
        """What is tuned by the run's method."""
        return {"ft": self.ft.tune, "grpo": "all"}.get(self.method, self.tune)

    @property
    def called(self) -> str:
        """The method's name in tables."""
        return self.label or self.method

    @property
    def stages(self) -> tuple["RunConfig", ...]:
        """The runs of a chain, the first one first and this one last."""
        return (*(self.before.stages if self.before else ()), self)

    @property
    def climbs(self) -> bool:
        """Whether this is a zeroth-order search."""
        return METHODS[self.method].climbs

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


def read_settings(path: Path, what: str = "--config") -> Settings:
    """The settings in a YAML file; `what` it is begins the error. Raises InputError."""
    try:
        content = _numbers(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{what} {path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{what} {path} must hold a mapping of settings, found {type(content).__name__}.")
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


def stages(text: str) -> tuple[str, ...]:
    """The stages of a method's text: `ft:lora+zo:norms+head` is ft:lora, then zo:norms+head, since head is no method."""
    return tuple(NEXT.split(text))


def named(text: str) -> tuple[str, Settings]:
    """The method and the settings that the last stage of a method's text stands for: METHOD or METHOD:TUNE.

    Raises InputError, also for a wrong stage before it.
    """
    chain = stages(text)
    methods = [stage.partition(":")[0] for stage in chain]
    if strange := [method for method in methods if method not in METHODS]:
        raise unknown("method", strange[0], METHODS)
    kinds, parts = [METHODS[method] for method in methods], [stage.partition(":") for stage in chain]
    meant = all(not colon or (tune and kind.tunes) for (_, colon, tune), kind in zip(parts, kinds, strict=True))
    linked = all(kind.chains for kind in kinds[1:]) and (kinds[0].chains or methods[0] == PROBING)
    if not meant or (len(chain) > 1 and not linked):
        raise InputError(
            f"Method {text!r}: write METHOD, METHOD:TUNE with zo, mezo-ce, best-of-n or ft, as in ft:lora, or a chain of"
            " those, each beginning where the one before it ended, as in ft:lora+zo; a chain may begin with lp."
        )
    method, (_, colon, tune) = methods[-1], parts[-1]
    settings = merge({"method": method, "label": text if text != method else ""}, METHODS[method].settings)
    return method, merge(settings, nested(str(kinds[-1].tunes), tune)) if colon else settings


def method_settings(settings: Mapping[str, Any], text: str) -> Settings:
    """Settings for a method's text: its last stage's own, and those under `methods.<method>`, laid over `settings`.

    What is under `methods.<stage>`, as in `methods.ft:lora`, and under `methods.<text>`, as in `methods.ft+zo`, comes last.
    Those of the chain without its last stage are under `before`.
    """
    method, of_name = named(text)
    own = dict(settings)
    methods = own.pop("methods", {})
    if not isinstance(methods, Mapping) or not all(isinstance(m, Mapping) for m in methods.values()):
        raise InputError("The setting `methods` must hold one mapping for each method, as in --set methods.zo.scale=0.5.")
    for name in methods:
        named(name)
    if said := {"before", "start"} & {*own, *(key for given in methods.values() for key in given)}:
        raise InputError(
            f"The setting `{min(said)}` follows from the method's text. Write a chain, as in ft+zo; settings of its stages"
            " go under methods.ft and methods.ft+zo."
        )
    *earlier, stage = stages(text)
    found = merge(own, of_name)
    for name in (method, stage, text):
        found = merge(found, methods.get(name, {}))
    return found | ({"before": method_settings(settings, "+".join(earlier))} if earlier else {})


def in_all_stages(settings: Mapping[str, Any], **fixed: Any) -> Settings:
    """`settings`, and those of the stages before, with `fixed`."""
    before = settings.get("before")
    return {**settings, **fixed, **({"before": in_all_stages(before, **fixed)} if before else {})}


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """The validated configuration. Raises InputError that names the setting, with the nearest name for an unknown one."""
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            nested: dict[str, type[BaseModel]] = {"ft": FineTuning, "layerwise": LayerWise, "isolation": Isolation}
            nested |= {"grpo": Grpo}
            known = nested.get(str(first["loc"][-2:][0]), RunConfig).model_fields
            raise unknown("setting", str(first["loc"][-1]), known) from error
        raise InputError(f"Setting {field}={first['input']!r}: {first['msg'].removeprefix('Value error, ')}.") from error
    if strange := [stage.method for stage in config.stages if stage.method not in METHODS]:
        raise unknown("method", strange[0], METHODS)
    return config


def upgraded(content: Mapping[str, Any]) -> Settings:
    """A run's settings as version 0.1.0 wrote them, in today's terms: `start: lp` is a linear probe before the run."""
    kept = {key: value for key, value in content.items() if key != "start"}
    return kept | ({"before": {**kept, "method": PROBING, "label": ""}} if content.get("start") == PROBING else {})


def identity(config: RunConfig) -> Settings:
    """What makes a run the run it is, in JSON's terms: all settings, also of the runs before it, but those of HOW."""
    before = identity(config.before) if config.before else None
    return {**config.model_dump(mode="json", exclude={*HOW, "before"}), "before": before}


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting, as in `ft.steps`, in which two identities differ, with both values; None where none does."""
    for key in wanted:
        was, now = found.get(key), wanted[key]
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            if inner := difference(was, now):
                return f"{key}.{inner[0]}", *inner[1:]
        elif was != now:
            return key, was, now
    return None


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
    return make_config(upgraded(content))
