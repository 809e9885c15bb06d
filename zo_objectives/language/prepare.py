"""Named functions on rows: what a task file may ask for, since data files hold no code."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zo_objectives.errors import InputError

Row = dict[str, Any]
ASSETS = Path(__file__).parents[1] / "assets"


def sums(split: str, seed: int = 0) -> list[Row]:
    """Additions and subtractions of one- and two-digit numbers with results from 0 to 99; no pair is in two splits.

    Columns: a, b (int), sign ("+" or "-"), word ("plus" or "minus"), answer (text).
    """
    rng = random.Random(seed)
    pairs = [(a, b, s) for a in range(50) for b in range(50) for s in "+-" if s == "+" or a >= b]
    rng.shuffle(pairs)
    cut = {"train": slice(0, 1000), "validation": slice(1000, 1300), "test": slice(1300, 1800)}[split]
    return [
        {
            "a": a,
            "b": b,
            "sign": s,
            "word": "plus" if s == "+" else "minus",
            "answer": str(a + b if s == "+" else a - b),
        }
        for a, b, s in pairs[cut]
    ]


def openings(rows: list[Row]) -> list[Row]:
    """Splits each row's `text` after its first third (two words or more) into `opening` and `rest`."""
    result = []
    for row in rows:
        words = row["text"].split()
        cut = max(2, len(words) // 3)
        result.append({**row, "opening": " ".join(words[:cut]), "rest": " ".join(words[cut:])})
    return result


GENERATED: dict[str, Callable[[str], list[Row]]] = {"sums": sums}
PREPARE: dict[str, Callable[[list[Row]], list[Row]]] = {"openings": openings}


def read_jsonl(path: Path) -> list[Row]:
    """The objects of a JSON Lines file. Raises InputError that names file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"Cannot read the data file {path}: {error.strerror}.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number} is not JSON: {error.msg}.") from error
            if not isinstance(rows[-1], dict):
                raise InputError(f"{path}, line {number} is not an object with columns.")
    return rows
