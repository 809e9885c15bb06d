"""What a run leaves behind: tidy result rows, a history, predictions; written so that a reader never sees half a file."""

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from zo_objectives.errors import InputError


@dataclass(frozen=True)
class ResultRow:
    """One metric of one method on one split."""

    task: str
    model: str
    method: str
    objective: str
    tune: str
    seed: int
    split: str
    metric: str
    value: float
    n: int
    forwards: int
    examples: int
    tokens: int
    seconds: float
    peak_memory_mb: float
    parameters: int
    best_step: int | None
    dtype: str = ""
    run: str = "."


@dataclass(frozen=True)
class HistoryRow:
    """One step of a run; `validation` is None where it was not looked at, the others where the method has no such thing.

    `applied_frac` and `cosine` say how much of a step the weights' precision kept (weights.Realised).
    """

    step: int
    forwards: int
    examples: int
    tokens: int
    seconds: float
    objective: float | None
    tie_rate: float | None
    validation: float | None
    applied_frac: float | None = None
    cosine: float | None = None


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises InputError where the folder cannot be written."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}. Choose another --output.") from error


def make_folder(path: Path) -> Path:
    """The folder, made where it is missing. Raises InputError where it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"Cannot write to {path}: {error.strerror}. Choose another --output.") from error
    return path


def make_gathering(path: Path) -> Path:
    """The folder of what gathers many runs. Raises InputError for one of a single run, whose results it would replace."""
    if (path / "config.yaml").exists():
        raise InputError(f"{path} is the folder of a run. Choose another --output.")
    return make_folder(path)


def to_csv(rows: Iterable[ResultRow | HistoryRow], kind: type[ResultRow] | type[HistoryRow]) -> str:
    """CSV text with a header; None is an empty field, a number that is none `nan`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[f.name for f in fields(kind)], *map(_fields, rows)])
    return text.getvalue()


def _fields(row: ResultRow | HistoryRow) -> list[Any]:
    return ["" if value is None else value for value in asdict(row).values()]


class History:
    """history.csv of a run, a row a step, written through; on resuming, rows beyond the journal's end are dropped."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.rows = [row for row in read_history(path) if row.step <= keep] if path.exists() else []
        write_atomically(path, to_csv(self.rows, HistoryRow))

    def append(self, row: HistoryRow) -> None:
        self.rows.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(_fields(row))

    @property
    def best(self) -> HistoryRow | None:
        """The first row with the highest validation score."""
        seen = [r for r in self.rows if r.validation is not None]
        return max(seen, key=lambda r: (r.validation, -r.step), default=None)


class Components:
    """components.csv of a run: of each step what its scores were made of, by name, the mean over members."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines[1:] if line.partition(",")[0].isdigit() and int(line.partition(",")[0]) <= keep]
            write_atomically(path, "\n".join([lines[0], *kept]) + "\n")

    def append(self, step: int, scores: Sequence[float]) -> None:
        """Notes the parts of a step's scores, where they have any (see objective.Scored)."""
        parts = [score.parts for score in scores if hasattr(score, "parts")]
        means = {name: sum(p[name] for p in parts) / len(parts) for name in (parts[0] if parts else {})}
        if not means:
            return
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["step", "component", "value"])
            writer.writerows([step, name, value] for name, value in means.items())


def last_step(path: Path) -> int:
    """The last step that a history has; 0 where there is none."""
    rows = read_history(path) if path.exists() else []
    return rows[-1].step if rows else 0


def read_history(path: Path) -> list[HistoryRow]:
    """The whole rows of a history file; a torn last line is left out."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for record in csv.DictReader(file):
            try:
                counts = [int(record[k]) for k in ("step", "forwards", "examples", "tokens")]
                names = ("objective", "tie_rate", "validation", "applied_frac", "cosine")
                rest = [float(v) if (v := record.get(k, "")) != "" else None for k in names]
                step, forwards, examples, tokens = counts
                rows.append(HistoryRow(step, forwards, examples, tokens, float(record["seconds"]), *rest))
            except (ValueError, TypeError, KeyError):
                break
    return rows


def jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that a result depends on."""
    names = ("zo-objectives", "torch", "transformers", "tokenizers", "datasets", "scikit-learn", "pandas", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> str:
    """The machine in words: processor architecture, cores, memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else 0
    return f"{platform.machine()}, {cores} CPU cores, {pages:.0f} GiB memory, {sys.platform}"


def console() -> Any:
    """Where tables go: as wide as the terminal, and wide enough for every column where there is none (a file, a pipe)."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


class PeakMemory:
    """The largest resident memory of this process, MiB, since `restart` where the system allows (Linux), else ever."""

    def restart(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> float:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            import resource

            unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
