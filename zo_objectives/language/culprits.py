"""Who is to blame: values and examples as a message shows them, and the example on which a score fails."""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from zo_objectives.language.outputs import Example, Outputs

SEARCH = 10.0  # seconds to look for the example that fails


def short(value: object) -> str:
    """A value for a message: its type and its beginning."""
    if value is None:
        return "None"
    try:
        text = f"{type(value).__name__} {value!r}"
    except Exception:
        return type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def where(outputs: Outputs, examples: Sequence[Example], index: int = 0) -> str:
    """An example for a message: its number, its prompt and what the model said."""
    if not examples:
        return "on an empty batch"
    said = short(outputs.predictions[index]) if len(outputs) > index else "missing"
    return f"example {examples[index].id}: prompt {short(examples[index].prompt)}, output {said}"


def take(outputs: Outputs, rows: Sequence[int] | slice) -> Outputs:
    """The outputs on some examples."""
    values: dict[str, Any] = {f.name: getattr(outputs, f.name) for f in fields(outputs)}
    return replace(outputs, **{n: _rows(v, rows) for n, v in values.items() if isinstance(v, (Sequence, np.ndarray))})


def _rows(values: Any, rows: Sequence[int] | slice) -> Any:
    if isinstance(values, np.ndarray) or isinstance(rows, slice):
        return values[rows]
    return [values[i] for i in rows]


def offender(
    score: Callable[[Outputs, Sequence[Example]], Any], error: Exception, outputs: Outputs, examples: Sequence[Example]
) -> int | None:
    """The index of an example on which alone `score` raises the same error, found by halves; None where there is none, or
    where it takes too long to find."""
    start, stop, begun = 0, len(examples), time.monotonic()
    while stop - start > 1:
        if time.monotonic() - begun > SEARCH:
            return None
        middle = (start + stop) // 2
        for low, high in ((start, middle), (middle, stop)):
            if _raises(score, error, take(outputs, slice(low, high)), examples[low:high]):
                start, stop = low, high
                break
        else:
            return None
    return start if stop - start == 1 else None


def _raises(
    score: Callable[[Outputs, Sequence[Example]], Any], error: Exception, outputs: Outputs, examples: Sequence[Example]
) -> bool:
    try:
        score(outputs, examples)
    except Exception as found:
        return type(found) is type(error)
    return False
