"""What a task file may say: a strict subset of lm-evaluation-harness's YAML, with one `zo:` block of our own."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from zo_objectives.language.filters import FilterPipeline
from zo_objectives.language.harness import OUTPUT_TYPES

NAMES = {"acc": "accuracy"}  # of lm-evaluation-harness's metrics, where ours differ
MATCHING = ("ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Strict):
    """An entry of metric_list: the name of an objective of ours, or lm-evaluation-harness's, with its arguments."""

    metric: str
    aggregation: Literal["mean", "f1", "matthews_corrcoef", "bleu", "chrf"] | None = None  # metrics here bring their own
    higher_is_better: bool = True
    ignore_case: bool = False  # these four of exact_match, on prediction and target
    ignore_punctuation: bool = False
    ignore_numbers: bool = False
    regexes_to_ignore: tuple[str, ...] = ()
    average: Literal["binary", "macro", "micro", "weighted"] = "binary"  # of f1

    @field_validator("higher_is_better")
    @classmethod
    def _up(cls, value: bool) -> bool:
        if not value:
            raise ValueError("objectives here are better the higher they are; give minus the metric, as file.py:name")
        return value

    @field_validator("regexes_to_ignore")
    @classmethod
    def _compile(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return values

    @model_validator(mode="after")
    def _takes(self) -> "Metric":
        for names, owner in ((MATCHING, "exact_match"), (("average",), "f1")):
            if self.metric != owner and (given := [n for n in names if n in self.model_fields_set]):
                raise ValueError(f"{given[0]} is an argument of {owner} alone; leave it out for {self.metric}")
        return self

    @property
    def name(self) -> str:
        """The objective's name here, with what exact_match is given."""
        name = NAMES.get(self.metric, self.metric if self.average == "binary" else f"f1_{self.average}")
        given = "&".join(f"{key}={quote(repr(value))}" for key, value in self.arguments.items())
        return f"{name}?{given}&name={name}" if given else name

    @property
    def arguments(self) -> dict[str, Any]:
        """What exact_match is given beside texts, for filters.normalised; empty where the file asks for nothing."""
        return {name: getattr(self, name) for name in MATCHING if getattr(self, name)}


class GenerationKwargs(_Strict):
    """How texts are made: greedily or sampled, and where they stop."""

    until: tuple[str, ...] = ("\n\n",)
    max_gen_toks: int = Field(256, ge=1)
    do_sample: bool = False
    temperature: float = Field(0.0, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)

    @field_validator("until", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _warm(cls, value: Any) -> Any:
        """Sampling without a temperature is at 1, as transformers does it."""
        return {"temperature": 1.0, **value} if isinstance(value, Mapping) and value.get("do_sample") is True else value

    @model_validator(mode="after")
    def _consistent(self) -> "GenerationKwargs":
        if self.do_sample and self.temperature == 0:
            raise ValueError("do_sample: true needs a temperature above 0; for greedy texts write do_sample: false")
        return self


class FewshotConfig(_Strict):
    """Which rows are demonstrations: drawn from a seed, or the first ones."""

    sampler: Literal["default", "first_n"] = "default"


class Zo(_Strict):
    """What lm-evaluation-harness has no word for."""

    objective: str | None = (
        None  # a builtin's name, module:name, or file.py:name relative to the YAML; default: the first metric
    )
    folder: str | None = None  # the data's folder under --data-dir; default: the task's name
    source: str | None = None  # `embedded:NAME`, data in the package; `generated:NAME`, made from a seed
    prepare: str | None = None  # a named function of prepare.py on the rows of each split
    mask: str | None = None  # the prompt for masked models, a template with {{mask}} where the label word goes
    words: tuple[str, ...] | None = None  # the label words of that form, in the labels' order; default: doc_to_choice
    calibration: str | None = None  # the content-free prompt of calibrated scoring, a template; "" is the empty prompt
    rows: tuple[
        str, ...
    ] = ()  # texts whose tokens' output rows `tune: head` moves; default: the options' or targets' tokens
    settings: dict[str, Any] = {}  # defaults for `run` and `compare` on this task
    demo: dict[str, Any] = {}  # and for `demo`

    @field_validator("mask")
    @classmethod
    def _has_a_mask(cls, value: str | None) -> str | None:
        if value is not None and len(re.findall(r"\{\{\s*mask\s*\}\}", value)) != 1:
            raise ValueError("it must hold {{mask}} once, where the label word goes")
        return value


class TaskSpec(_Strict):
    """A task as its file says it."""

    task: str
    task_alias: str | None = None
    description: str = ""
    tag: str | tuple[str, ...] | None = None
    dataset_path: str | None = None
    dataset_name: str | None = None
    dataset_kwargs: dict[str, Any] = {}
    training_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    output_type: Literal["multiple_choice", "generate_until"] = "generate_until"
    doc_to_text: str
    doc_to_target: str | int | None = None
    doc_to_choice: str | tuple[str, ...] | None = None
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    fewshot_config: FewshotConfig = FewshotConfig()
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    generation_kwargs: GenerationKwargs = GenerationKwargs()
    repeats: Literal[1] = 1
    filter_list: tuple[FilterPipeline, ...] = ()
    metric_list: tuple[Metric, ...] = ()
    should_decontaminate: bool = False  # this and the next are read and not used
    doc_to_decontamination_query: str | None = None
    metadata: dict[str, Any] = {}
    zo: Zo = Zo()

    @field_validator("task", "training_split", mode="before")
    @classmethod
    def _one_task(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("a group of tasks is no task; give each of its tasks a file of its own")
        if value is None:
            raise ValueError("there must be one: tuning needs rows to train on")
        return value

    @field_validator("dataset_kwargs", mode="before")
    @classmethod
    def _no_scripts(cls, value: Any) -> Any:
        """Without trust_remote_code, which many files still hold; data sets no longer bring code."""
        return {k: v for k, v in value.items() if k != "trust_remote_code"} if isinstance(value, Mapping) else value or {}

    @field_validator("output_type", mode="before")
    @classmethod
    def _supported(cls, value: Any) -> Any:
        if isinstance(value, str) and value in OUTPUT_TYPES:
            raise ValueError(f"{value!r} is not supported: {OUTPUT_TYPES[value]}")
        return value

    @field_validator("doc_to_choice", mode="before")
    @classmethod
    def _texts_only(cls, value: Any) -> Any:
        value = list(value.values()) if isinstance(value, Mapping) else value
        if isinstance(value, list) and (bad := [v for v in value if not isinstance(v, str)]):
            raise ValueError(
                f"{bad[0]!r} is no text: YAML reads unquoted yes, no, on, off and numbers as other things, so quote it"
            )
        return value

    @field_validator("num_fewshot", mode="before")
    @classmethod
    def _none_is_zero(cls, value: Any) -> Any:
        return 0 if value is None else value

    @field_validator("metadata", mode="before")
    @classmethod
    def _one_mapping(cls, value: Any) -> Any:
        """A list of mappings, as some files have it, as one."""
        if isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
            return {k: v for part in value for k, v in part.items()}
        return value or {}

    @model_validator(mode="after")
    def _complete(self) -> "TaskSpec":
        if self.output_type == "multiple_choice" and (self.doc_to_choice is None or self.doc_to_target is None):
            raise ValueError("output_type multiple_choice needs doc_to_choice and doc_to_target")
        if self.dataset_path is None and self.zo.source is None:
            raise ValueError("dataset_path (a hub data set) or zo.source is missing")
        return self

    @model_validator(mode="after")
    def _forms_fit(self) -> "TaskSpec":
        for name in ("mask", "words", "calibration"):
            if getattr(self.zo, name) is not None and self.output_type != "multiple_choice":
                raise ValueError(f"zo.{name} is of multiple_choice tasks; leave it out")
        if self.zo.words is not None and self.zo.mask is None:
            raise ValueError("zo.words are the label words of zo.mask, which is missing")
        fixed = isinstance(self.doc_to_choice, tuple)
        if self.zo.mask is not None and self.zo.words is None and not fixed:
            raise ValueError("zo.mask needs zo.words, since doc_to_choice is no list")
        if self.zo.words is not None and fixed and len(self.zo.words) != len(self.doc_to_choice or ()):
            raise ValueError(f"zo.words are {len(self.zo.words)}, and doc_to_choice has {len(self.doc_to_choice or ())}")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics to report, the headline first."""
        return tuple(m.name for m in self.metric_list)

    @property
    def fixed_options(self) -> bool:
        """Whether all rows have the same options."""
        choice = self.doc_to_choice
        return isinstance(choice, tuple) and not any("{{" in option or "{%" in option for option in choice)

    @property
    def words(self) -> tuple[str, ...]:
        """The label words of the masked form, in the labels' order; none where there is no such form."""
        if self.zo.mask is None:
            return ()
        return self.zo.words or tuple(self.doc_to_choice or ())
