"""What metrics of other libraries are given and what they give back."""

from collections.abc import Mapping
from typing import Any

from zo_objectives.errors import InputError
from zo_objectives.language.objective import REAL, Examples, Scored


def references_of(examples: Examples) -> list[Any]:
    """What a metric compares with: option indices; the target text, or a list of them where there are several."""
    return [e.label if e.options else e.targets[0] if len(e.targets) == 1 else list(e.targets) for e in examples]


def picked(value: Any, key: str | None, default: str | None = None) -> Any:
    """The number in a metric's result: itself, or of a mapping the one named `key`, the one called `default`, or the only
    one; the mapping's other numbers beside it. Raises InputError where there is no such choice."""
    if not isinstance(value, Mapping):
        if key is not None and not isinstance(value, REAL):
            raise InputError(
                f"Key {key!r} was asked for, and the metric returned {type(value).__name__}, not numbers by name."
            )
        return _plain(value)
    names = ", ".join(map(str, value))
    if key is not None and key not in value:
        raise InputError(f"The metric returned no {key!r}, but: {names}. Choose one: name#key, or key= from Python.")
    if key is None and len(value) != 1 and default not in value:
        raise InputError(f"The metric returned several numbers: {names}. Choose one: name#key, or key= from Python.")
    chosen = key if key is not None else default if default in value else next(iter(value))
    found = _plain(value[chosen])
    if isinstance(found, bool) or not isinstance(found, REAL):
        return found
    others = {str(k): _plain(v) for k, v in value.items() if k != chosen}
    return Scored(float(found), {k: float(v) for k, v in others.items() if isinstance(v, REAL)})


def _plain(value: Any) -> Any:
    """A number out of an array or tensor of no dimension."""
    if isinstance(value, REAL) or getattr(value, "ndim", 1) != 0 or not hasattr(value, "item"):
        return value
    plain = value.item()
    return plain if isinstance(plain, REAL) else value
