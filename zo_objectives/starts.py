"""Where a run begins: at the base model, or with the weights that the run before it in a chain ended with.

start.safetensors in the run's own folder holds the tensors in which that beginning differs from the base, by the plain names
of the model's parameters, adapters merged. Where there are label rows it has `rows` [tokens, d] too, which are added to the
output head's rows of `tokens` [tokens]. Its metadata say which run it is of and what that run cost: nobody needs that again.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from zo_objectives import subsets
from zo_objectives.adapters import VIRTUAL, adapted, forms
from zo_objectives.config import RunConfig
from zo_objectives.config_files import identity
from zo_objectives.errors import InputError
from zo_objectives.language.anatomy import anatomy
from zo_objectives.language.encoder import LABELS, Rows, read_rows, write_rows
from zo_objectives.language.hf import LanguageModel
from zo_objectives.methods import PROBING
from zo_objectives.subsets import LabelRows, with_rows

START, BEST = "start.safetensors", "best.safetensors"
FIRST = "first.safetensors"  # as BEST, of the start: while a run goes on that a guard may send back there
ROWS = ("tokens", "rows")
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Ended:
    """What a finished run cost, with all before it, and what it ended with on validation."""

    forwards: int
    examples: int
    tokens: int
    seconds: float
    peak_memory_mb: float
    metric: str
    validation: float

    @property
    def spent(self) -> tuple[int, int, int]:
        """Forward passes, examples and tokens."""
        return self.forwards, self.examples, self.tokens


@dataclass(frozen=True)
class Start:
    """What a run begins with; `ended` is None in a start that version 0.1.0 wrote."""

    values: Values
    ended: Ended | None

    @property
    def plain(self) -> Values:
        """What replaces the base's parameters."""
        return {name: values for name, values in self.values.items() if name not in ROWS}

    def is_shallow(self, lm: LanguageModel) -> bool:
        """Whether nothing below the final norm differs from the base."""
        try:
            where = anatomy(lm.model)
        except InputError:
            return not self.plain
        return all(where.level(name) == where.depth for name in self.plain)


def check(config: RunConfig) -> None:
    """Raises InputError for a wrong `tune`, and a chain that goes on from adapters which cannot be merged into the model."""
    for stage in config.stages:
        subsets.check(stage.tuned)
    for stage in config.stages[:-1]:
        found = [form for form, _ in forms(stage.tuned) if form in VIRTUAL]
        if found and stage.method != PROBING:
            raise InputError(
                f"{config.called}: the {found[0]} that {stage.called} tunes cannot be merged into the model, so nothing can"
                " begin where it ends. Tune lora there, or make it the last stage."
            )


def begun(lm: LanguageModel, start: Start | None, tune: str) -> LanguageModel:
    """The base model put at a start, with the adapters that `tune` names. Raises InputError for another model's start.

    A prefix is made of the model's keys and values, so tensors come first; LoRA would take the head under label rows for
    one more layer, so these come last.
    """
    parameters = dict(lm.model.named_parameters())
    for name, values in (start.plain if start else {}).items():
        if name not in parameters or parameters[name].shape != values.shape:
            raise InputError(f"{START} has {name}, {tuple(values.shape)}, which {lm.name} has not: it is of another model.")
        parameters[name].data.copy_(values)
    lm = adapted(lm, tune)
    if start and "rows" in start.values:
        with_rows(lm, start.values["tokens"].tolist())
        lm.head.rows.data.copy_(start.values["rows"])
        lm.head.sized = start.ended is not None  # version 0.1.0 took a row's size from the base
    return lm


def start_of(folder: Path) -> Start | None:
    """What a run's folder keeps of its start; None for a run that begins at the base."""
    path = folder / START
    if not path.exists():
        return None
    said = _said(path)
    return Start(load_file(path), Ended(**json.loads(said["ended"])) if "ended" in said else None)


def is_kept(folder: Path, before: RunConfig) -> bool:
    """Whether a run's folder has the start that `before` leads to."""
    path = folder / START
    return path.exists() and _said(path).get("before") == _told(before)


def keep_start(folder: Path, values: Values, before: RunConfig, ended: Ended) -> None:
    """Writes a run's start: what `before` ended with, and what is to be known of it."""
    save_weights(folder / START, values, {"before": _told(before), "ended": json.dumps(asdict(ended))})


def keep_best(folder: Path, lm: LanguageModel, values: Mapping[str, Tensor], name: str = BEST) -> None:
    """Writes a run's best weights on validation, by name, and the tokens of the model's label rows."""
    tokens = lm.head.tokens.tolist() if isinstance(lm.head, LabelRows) else []
    save_weights(folder / name, values, {"row_tokens": json.dumps(tokens)})


def best_of(folder: Path) -> tuple[Values, list[int]]:
    """A finished run's best weights, and the tokens of its label rows. Raises InputError for a folder without."""
    path = folder / BEST
    if not path.exists():
        raise InputError(
            f"{folder} has no {BEST}: version 0.1.0 wrote it, so nothing can begin where it ended. Remove it and start it"
            " again."
        )
    return load_file(path), json.loads(_said(path).get("row_tokens", "[]"))


def ended(folder: Path) -> Ended:
    """What a finished run's results say of its end."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))  # the headline on validation comes first
    forwards, examples, tokens = (int(row[name]) for name in ("forwards", "examples", "tokens"))
    seconds, peak, value = (float(row[name]) for name in ("seconds", "peak_memory_mb", "value"))
    return Ended(forwards, examples, tokens, seconds, peak, row["metric"], value)


def keep_labels(folder: Path, lm: LanguageModel) -> None:
    """Writes an encoder's rows; a replay has no data to find their texts in, and does no forward pass."""
    if lm.labels:
        write_rows(folder / LABELS, lm.labels)


def check_labels(folder: Path, lm: LanguageModel) -> None:
    """Raises InputError for a run that cannot go on, since its options are others now."""
    if differing := sorted({*labels_of(folder)} ^ {*lm.labels}):
        raise InputError(
            f"{folder} holds a run with other options: {differing[0]!r} is only in one of both. Choose another --output."
        )


def labels_of(folder: Path) -> Rows:
    """What `keep_labels` wrote; none for a run of another model."""
    path = folder / LABELS
    return read_rows(path) if path.exists() else {}


def save_weights(path: Path, values: Mapping[str, Tensor], said: dict[str, str] | None = None) -> None:
    """Tensors by name as safetensors with metadata, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    save_file({n: v.contiguous().cpu() for n, v in values.items()}, temporary, said)
    temporary.replace(path)


def _said(path: Path) -> dict[str, str]:
    """A file's metadata."""
    with safe_open(path, "pt") as file:
        found: dict[str, str] | None = file.metadata()
    return found or {}


def _told(before: RunConfig) -> str:
    return json.dumps(identity(before), sort_keys=True)
