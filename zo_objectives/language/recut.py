"""Skewed re-cuts: of each class only a share of its rows is kept, in every split, and always the same rows.

Whether a row is kept is a function of its own texts and of its class's share alone: not of a seed, of its place, or of what
else is there. So splits that were disjoint stay so, two copies of a row share their fate, and a smaller share is a part of a
larger one.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from zo_objectives.errors import InputError
from zo_objectives.language.prepare import Row
from zo_objectives.language.tasks import TaskSpec

WHOLE = 2**64
Label = Callable[[Row, str], int]  # the class of a row; the text says where the row is


def recut(spec: TaskSpec, rows: Mapping[str, list[Row]], shares: Sequence[float], label: Label) -> dict[str, list[Row]]:
    """Of each split the rows that are kept, in their order; `shares` in (0, 1], one for each class.

    Raises InputError for a task without fixed options, a wrong number of shares, and a class that a split loses whole.
    """
    options = _options(spec, shares)
    kept: dict[str, list[Row]] = {}
    for split, part in rows.items():
        labels = [label(row, f"task {spec.task!r}, {split} row {i}") for i, row in enumerate(part)]
        chosen = [position(row) < shares[c] * WHOLE for row, c in zip(part, labels, strict=True)]
        before, after = Counter(labels), Counter(c for c, keep in zip(labels, chosen, strict=True) if keep)
        if gone := sorted(set(before) - set(after)):
            raise InputError(
                f"Setting keep: of the {before[gone[0]]} {split} rows of class {gone[0]} ({options[gone[0]]}) of task"
                f" {spec.task!r} none is left at a share of {shares[gone[0]]}. Raise that share."
            )
        kept[split] = [row for row, keep in zip(part, chosen, strict=True) if keep]
    return kept


def _options(spec: TaskSpec, shares: Sequence[float]) -> tuple[str, ...]:
    """The names of the classes that `shares` are of."""
    if spec.output_type != "multiple_choice" or not spec.fixed_options:
        why = "its options differ from example to example" if spec.output_type == "multiple_choice" else "it generates text"
        raise InputError(f"Setting keep: task {spec.task!r} has no classes, since {why}. Leave keep out.")
    options = tuple(spec.doc_to_choice or ())
    if len(shares) != len(options):
        raise InputError(
            f"Setting keep has {len(shares)} shares, and task {spec.task!r} has {len(options)} classes"
            f" ({', '.join(options)}). Give one share for each, in that order."
        )
    return options


def position(row: Row) -> int:
    """Where a row is between 0 and `WHOLE`: BLAKE2b of its texts, white space aside; of all columns where it has no text."""
    texts = {name: " ".join(value.split()) for name, value in row.items() if isinstance(value, str)}
    content = json.dumps(texts or row, sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest(), "big")
