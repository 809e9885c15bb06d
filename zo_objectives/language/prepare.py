"""Named functions on rows: what a task file may ask for, since data files hold no code."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zo_objectives.errors import InputError
from zo_objectives.language.countdown import countdown

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


def labelled(rows: list[Row]) -> list[Row]:
    """Without the rows whose `label` is missing or negative, as where SNLI's annotators did not agree."""
    return [row for row in rows if row.get("label") is not None and row["label"] >= 0]


def filled(rows: list[Row]) -> list[Row]:
    """ReCoRD: `sentences`, the query with each of `entities` at its @placeholder, and `right`, which of them are answers.

    Rows none of whose entities is an answer are left out.
    """
    made = []
    for row in rows:
        entities = list(dict.fromkeys(row["entities"]))
        right = [entities.index(a) for a in dict.fromkeys(row["answers"]) if a in entities]
        if right:
            made.append({**row, "sentences": [row["query"].replace("@placeholder", e) for e in entities], "right": right})
    return made


def grouped(rows: list[Row]) -> list[Row]:
    """E2E: one row for each meaning representation, with the list of its human references in their order."""
    references: dict[str, list[str]] = {}
    for row in rows:
        references.setdefault(row["meaning_representation"], []).append(row["human_reference"])
    return [{"meaning_representation": m, "human_reference": list(dict.fromkeys(r))} for m, r in references.items()]


GENERATED: dict[str, Callable[[str], list[Row]]] = {"countdown": countdown, "sums": sums}
PREPARE: dict[str, Callable[[list[Row]], list[Row]]] = {
    "filled": filled,
    "grouped": grouped,
    "labelled": labelled,
    "openings": openings,
}


def read_jsonl(path: Path) -> list[Row]:
    """The objects of a JSON Lines file. Raises InputError that names file and line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: texts may hold U+2028
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
