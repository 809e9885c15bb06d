"""The file of a study: cells, methods, grids and seeds, validated where they enter.

about: what is asked
seeds: [13, 21, 42, 87, 100]     what is reported
tuning_seeds: [0, 1]             settings are chosen on these, by validation
baseline: mezo-ce                what every method is compared with, paired by seed
pairs: [[ft+zo, ft]]             further comparisons
settings: {batch: 128}           as in --config, also under tasks.TASK and methods.METHOD
grids: {zo: {scale: [0.3, 1.0]}}
cells:
  - {task: sst2, model: reviews-1m, metric: accuracy, budget: 9600, methods: [zero-shot, mezo-ce, zo]}
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from zo_objectives.errors import InputError, unknown
from zo_objectives.methods import named
from zo_objectives.settings import read_settings

Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]  # setting, as in a.b: its values
Settings = dict[str, Any]
TAKEN = {  # settings that a study decides: where it says so
    **dict.fromkeys(("task", "model", "metric"), "a field of a cell"),
    "objective": "a field of a cell, or one of a method's settings",
    "method": "one of a cell's methods",
    "label": "a method's `name`",
    "seed": "`seeds` and `tuning_seeds`",
    **dict.fromkeys(("data_dir", "include_path", "device"), "an option of the command"),
}


def _no_taken(settings: Settings) -> Settings:
    """Refuses what is said elsewhere in a study."""
    if found := next((name for name in settings if name in TAKEN), None):
        raise ValueError(f"{found} is no setting here: it is {TAKEN[found]}")
    return settings


def _once(seeds: Sequence[int]) -> Sequence[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("give each seed once")
    return seeds


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_once)]
Given = Annotated[Settings, AfterValidator(_no_taken)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Entry(_Strict):
    """A method of a cell. Variants of one method have names of their own."""

    method: str = Field(description="as in compare: METHOD, METHOD:TUNE, FIRST+THEN")
    name: str = Field("", description="what it is called in tables; the method where not given")
    settings: Settings = Field({}, description="laid over the cell's")

    @property
    def called(self) -> str:
        return self.name or self.method

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        named(method)
        return method

    @field_validator("settings")
    @classmethod
    def _own(cls, settings: Settings) -> Settings:
        _no_taken({name: value for name, value in settings.items() if name != "objective"})
        if found := next((name for name in ("tasks", "methods") if name in settings), None):
            raise ValueError(f"{found} is of the study's settings: here is one method of one cell")
        return settings


class Cell(_Strict):
    """A task, a model and a metric: a row of the table."""

    task: str
    model: str = "reviews-1m"
    metric: str = Field(description="what counts, chooses steps and settings, and is climbed")
    objective: str | None = Field(None, description="what is climbed instead")
    methods: tuple[Entry, ...] = Field(min_length=1)
    budget: int | None = Field(None, ge=1, description="forward passes of each zeroth-order run")
    settings: Given = Field({}, description="laid over the study's")
    grids: dict[str, Grid] = Field({}, description="in place of the study's, for the methods that are named")
    name: str = Field("", description="what it is called; task and model where not given")

    @field_validator("methods", mode="before")
    @classmethod
    def _entries(cls, value: Any) -> Any:
        """A text is a method without settings of its own."""
        return [{"method": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @field_validator("methods")
    @classmethod
    def _names(cls, value: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if twice := _twice(entry.called for entry in value):
            raise ValueError(f"{twice!r} stands here twice: give each a `name` of its own")
        return value

    @property
    def called(self) -> str:
        return self.name or f"{Path(self.task).stem}, {Path(self.model).name}"

    def names(self) -> list[str]:
        return [entry.called for entry in self.methods]


class Study(_Strict):
    """What is run, how it is tuned, and what is compared with what."""

    about: str = ""
    seeds: Seeds
    tuning_seeds: Seeds = (0, 1)
    baseline: str | None = None
    pairs: tuple[tuple[str, str], ...] = Field((), description="[method, against]")
    settings: Given = {}
    grids: dict[str, Grid] = Field({}, description="by a method's name, or by the method for all its variants")
    cells: tuple[Cell, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> "Study":
        if both := sorted({*self.seeds} & {*self.tuning_seeds}):
            raise ValueError(
                f"seed {both[0]} is in tuning_seeds and in seeds: settings are chosen on other seeds than reported"
            )
        if twice := _twice(cell.called for cell in self.cells):
            raise ValueError(f"there are two cells {twice!r}: give each a `name` of its own")
        names = {name for cell in self.cells for name in cell.names()}
        methods = names | {entry.method for cell in self.cells for entry in cell.methods}
        for what, wanted, known in (
            ("method in baseline", [self.baseline] if self.baseline else [], names),
            ("method in pairs", [name for pair in self.pairs for name in pair], names),
            ("method in grids", [*self.grids, *(name for cell in self.cells for name in cell.grids)], methods),
        ):
            if strange := next((name for name in wanted if name not in known), None):
                raise unknown(what, strange, known)
        if same := next((a for a, b in self.pairs if a == b), None):
            raise ValueError(f"the pair [{same}, {same}] compares a method with itself")
        if apart := next((pair for pair in self.pairs if not any({*pair} <= {*cell.names()} for cell in self.cells)), None):
            raise ValueError(f"no cell has both methods of the pair [{', '.join(apart)}]")
        return self

    def compared(self) -> tuple[tuple[str, str], ...]:
        """Every (method, against): each method with the baseline, in the order of the file, and the pairs."""
        names = dict.fromkeys(name for cell in self.cells for name in cell.names())
        against = [(name, self.baseline) for name in names if name != self.baseline] if self.baseline else []
        return tuple(dict.fromkeys((*against, *self.pairs)))

    def grid(self, cell: Cell, entry: Entry) -> Grid:
        """The grid of a method in a cell: the cell's before the study's, its name's before its method's; {} without one."""
        asked = ((grids, name) for grids in (cell.grids, self.grids) for name in (entry.called, entry.method))
        return next((grids[name] for grids, name in asked if name in grids), {})


def _twice(names: Iterator[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def read_study(path: Path) -> Study:
    """The study in a YAML file. Raises InputError that names field and cure."""
    content = read_settings(path, "The study")
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        errors = error.errors()
        told = [e for e in errors if not _follows(e, errors)]
        raise InputError(f"{path}: {'; '.join(map(_explain, told))}.") from error


def _follows(error: Mapping[str, Any], errors: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list is only too short because of what is wrong within it."""
    inner = (other["loc"] for other in errors if len(other["loc"]) > len(error["loc"]))
    return error["type"] == "too_short" and any(loc[: len(error["loc"])] == error["loc"] for loc in inner)


def _explain(error: Mapping[str, Any]) -> str:
    where = error["loc"]
    field = ".".join(map(str, where))
    if error["type"] == "missing":
        return f"field {field!r} is missing"
    if error["type"] == "extra_forbidden":
        kind = Entry if "methods" in where else Cell if len(where) > 1 else Study
        return f"field {field!r}: {str(unknown('field', str(where[-1]), kind.model_fields)).removesuffix('.')}"
    message = str(error["msg"]).removeprefix("Value error, ").removesuffix(".")
    return f"field {field!r}: {message}" if field else message
