"""What `zo-objectives memory` found: tidy rows, ratios, and pages about them."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from zo_objectives.errors import InputError
from zo_objectives.memory_forms import AUTOCAST, DTYPES, FORMS, SHAPES
from zo_objectives.results import console

SETTINGS = {  # dtypes without and with backprop
    "paper": ("bfloat16", AUTOCAST),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float32": ("float32", "float32"),
}
TITLES = {
    "paper": "The paper's dtypes: bfloat16 weights without backprop; with it, float32 weights and bfloat16 autocast",
    "bfloat16": "bfloat16 everywhere",
    "float32": "float32 everywhere",
}
RATIOS = (  # a setting, and a form that is compared with MeZO in it
    *(("paper", "ft"), ("bfloat16", "ft"), ("float32", "ft"), ("paper", "ft-checkpointing")),
    *(("bfloat16", "ft-checkpointing"), ("paper", "ft-lora"), ("bfloat16", "ft-lora")),
    *(("paper", "ft-lora-checkpointing"), ("bfloat16", "ft-lora-checkpointing")),
)
FORMS_22 = ("mezo", "icl", "ft-prefix", "ft")
TABLE_22 = {  # MeZO's, MultiRC: GB by nvidia-smi, all GPUs together, of FORMS_22 (zero-shot and MeZO are one column there)
    "1.3b": (4, 6, 19, 27),
    "2.7b": (7, 8, 29, 55),
    "6.7b": (14, 16, 46, 156),
    "13b": (26, 29, 158, 316),
    "30b": (58, 62, 315, 633),
}
CARDS = (
    "Theirs in GB by nvidia-smi, with a driver's context and what an allocator holds back; ours in GiB. Their 156, 158,"
    " 315, 316 and 633 are of 2, 2, 4, 4 and 8 cards of 80 GB, 78 to 79 GB each: cards that are full, whatever was needed."
)
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Record:
    """A cell and what was found: `peak_mib` is measured or arithmetic (`kind`), the rest is always arithmetic."""

    shape: str
    parameters: int
    form: str
    dtype: str
    tokens: int
    batch: int
    device: str
    attention: str
    kind: str
    peak_mib: float
    counted_mib: float
    weights_mib: float
    gradients_mib: float
    optimizer_mib: float

    @property
    def key(self) -> Key:
        return self.shape, self.form, self.dtype

    @property
    def told(self) -> str:
        """The record in words."""
        off = f", {self.peak_mib / self.counted_mib - 1:+.1%} of what is counted" if self.kind == "measured" else ""
        return f"{self.shape:<5} {self.form:<22} {self.dtype:<17} {self.peak_mib:>9,.0f} MiB  {self.kind}{off}"


class Found:
    """Records by cell, and by setting, shape and form."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = {r.key: r for r in records}

    def of(self, setting: str, shape: str, form: str) -> Record | None:
        return self.records.get((shape, form, SETTINGS[setting][FORMS[form].backprop]))

    def ratio(self, setting: str, shape: str, form: str, to: str) -> float | None:
        """How many times the memory of `to` a form needs, in the same setting."""
        one, other = self.of(setting, shape, form), self.of(setting, shape, to)
        return None if one is None or other is None else one.peak_mib / other.peak_mib

    @property
    def shapes(self) -> list[str]:
        return [s for s in SHAPES if any(r.shape == s for r in self.records.values())]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Tidy: a row for each setting, shape and form; `ratio` is to inference in the same setting."""
        for setting in SETTINGS:
            for shape in self.shapes:
                for form in FORMS:
                    if (one := self.of(setting, shape, form)) is not None:
                        ratio = self.ratio(setting, shape, form, "inference")
                        yield {"setting": setting, **asdict(one), "ratio": "" if ratio is None else round(ratio, 3)}

    def off(self) -> tuple[int, float, float]:
        """How many cells were measured, and by which share the least and the greatest exceeds what is counted."""
        shares = [r.peak_mib / r.counted_mib - 1 for r in self.records.values() if r.kind == "measured"] or [0.0]
        return sum(r.kind == "measured" for r in self.records.values()), min(shares), max(shares)


def to_csv(found: Found) -> str:
    file, rows = io.StringIO(), list(found.rows())
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["setting"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def read_csv(path: Path) -> list[Record]:
    """The records of a memory.csv. Raises InputError for another file."""
    try:
        return [_read(row) for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a table of this command ({error!r}). Choose another --output.") from error


def _read(row: Mapping[str, str]) -> Record:
    numbers = {f.name: (int if f.type is int else float)(row[f.name]) for f in fields(Record) if f.type is not str}
    words = {f.name: row[f.name] for f in fields(Record) if f.type is str}
    made: Any = {**words, **numbers}
    record = Record(**made)
    if record.shape not in SHAPES or record.form not in FORMS or record.dtype not in DTYPES:
        raise ValueError(" ".join(record.key))
    return record


def page(found: Found, about: Sequence[str]) -> str:
    """Markdown: what was done, a table for each setting, ratios to MeZO, and the paper's Table 22 beside ours."""
    parts = ["# Memory of a step", *about]
    ratios = [[shape, *(_times(found, s, shape, form) for s, form in RATIOS)] for shape in found.shapes]
    parts += ["## Against MeZO in the same setting", "`~`: arithmetic on at least one side."]
    parts.append(_markdown(["OPT", *(f"{form}, {setting}" for setting, form in RATIOS)], ratios))
    for setting, title in TITLES.items():
        rows = [[shape, *(_gib(found.of(setting, shape, form)) for form in FORMS)] for shape in found.shapes]
        parts += [f"## {title}", "GiB; `~`: arithmetic.", _markdown(["OPT", *FORMS], rows)]
    rows = [[shape, *_beside(found, shape, theirs)] for shape, theirs in TABLE_22.items() if shape in found.shapes]
    if rows:
        parts += ["## MeZO's Table 22 beside the paper's dtypes here", CARDS]
        heads = [f"{form}, {whose}" for form in FORMS_22 for whose in ("theirs", "ours")]
        parts.append(_markdown(["OPT", *heads, "ft / mezo, theirs", "ours"], rows))
    return "\n\n".join(parts) + "\n"


def _beside(found: Found, shape: str, theirs: Sequence[int]) -> list[str]:
    sizes = [
        text for form, n in zip(FORMS_22, theirs, strict=True) for text in (str(n), _gib(found.of("paper", shape, form)))
    ]
    return [*sizes, f"{theirs[-1] / theirs[0]:.1f}", _times(found, "paper", shape, "ft")]


def _gib(record: Record | None) -> str:
    if record is None:
        return ""
    return ("" if record.kind == "measured" else "~") + f"{record.peak_mib / 1024:.2f}"


def _times(found: Found, setting: str, shape: str, form: str) -> str:
    ratio = found.ratio(setting, shape, form, "mezo")
    if ratio is None:
        return ""
    known = all(r is not None and r.kind == "measured" for r in (found.of(setting, shape, f) for f in (form, "mezo")))
    return f"{'' if known else '~'}{ratio:.2f}"


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(found: Found) -> None:
    """On the terminal: what MeZO needs, and how many times that the others do."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    told = "GiB of inference and MeZO, and times MeZO in the same setting; ~ is arithmetic"
    table = Table("OPT", "setting", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=told, title_justify="left")
    others = [form for form in FORMS if form not in ("inference", "mezo")]
    for form in ("inference", "mezo", *others):
        table.add_column(form.replace("checkpointing", "ckpt"), justify="right")
    for shape in found.shapes:
        for setting in SETTINGS:
            sizes = (_gib(found.of(setting, shape, form)) for form in ("inference", "mezo"))
            table.add_row(shape, setting, *sizes, *(_times(found, setting, shape, form) for form in others))
        table.add_section()
    console().print(table)
