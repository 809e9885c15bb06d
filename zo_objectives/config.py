"""The configuration of a run: every setting, its default and its unit, validated where it enters."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from zo_objectives.errors import InputError, unknown
from zo_objectives.methods import METHODS

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
    loss_weight: float = Field(0.1, gt=0, description="of the log-likelihood in nats that zo-ce adds to the objective")
    metric: str | None = Field(None, description="what counts and chooses the step; the objective, else the task's first")
    seed: int = Field(0, ge=0, lt=1 << 63)

    tune: str = Field("features", description="what is tuned; see zo_objectives.subsets")
    steps: int = Field(1200, ge=0)
    batch: int = Field(512, ge=1, description="training examples a step")
    estimator: Literal["spsa", "one_sided", "one_point", "es"] = "spsa"
    directions: int = Field(4, ge=1, description="directions a step: pairs for spsa, members for es")
    rows: Literal["apart", "together"] = Field(
        "apart",
        description="apart: of options along features, what each label row does by itself; see building.parts_of",
    )
    growth: Literal["constant", "linear"] = Field("constant", description="linear: from 1 direction up to all of them")
    scale: float = Field(
        1.0,
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
