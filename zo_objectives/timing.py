"""How things are timed against each other, and on what.

Everything that is compared runs side by side in one process, in turns, several times; a row has the median of the ratios of
neighbours, so that a machine whose speed drifts is fair to both.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from zo_objectives.errors import InputError, unknown


@dataclass(frozen=True)
class Setting:
    """Where and on what to measure."""

    device: str = "cpu"
    dtype: str = "float32"
    shape: str = "125m"  # OPT's
    repeat: int = 5
    model: str = "reviews-1m"
    data_dir: str | None = None


DTYPES = ("float32", "bfloat16", "float16")
SHAPES = {  # OPT: hidden size, layers, heads
    "tiny": (64, 2, 2),
    "125m": (768, 12, 12),
    "1.3b": (2048, 24, 32),
    "2.7b": (2560, 32, 32),
    "6.7b": (4096, 32, 32),
}


def check(setting: Setting) -> Setting:
    """The setting, if it can be measured here. Raises InputError."""
    if setting.dtype not in DTYPES:
        raise unknown("dtype", setting.dtype, DTYPES)
    if setting.shape not in SHAPES:
        raise unknown("shape", setting.shape, SHAPES)
    if setting.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("No CUDA device is available here. Use --device cpu.")
    return setting


@dataclass(frozen=True)
class Row:
    """One measurement; `value` is in `unit`, `ratio` compares it with what `against` names, `goal` bounds the ratio."""

    part: str
    what: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None
    goal: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the ratio (the value, where there is none) is within the goal; None without one."""
        if not self.goal:
            return None
        sign, _, bound = self.goal.partition(" ")
        found = self.value if self.ratio is None else self.ratio
        return found >= float(bound) if sign == ">=" else found <= float(bound)

    @property
    def told(self) -> str:
        """The row in words."""
        compared = "" if self.ratio is None else f", {self.ratio:.3g} x {self.against}"
        goal = "" if self.met is None else f" (goal {self.goal}: {'met' if self.met else 'NOT met'})"
        return f"{self.what}: {self.value:.4g} {self.unit}{compared}{goal}"


Part = Callable[[Setting], Iterator[Row]]


def synchronise(device: str) -> None:
    """Returns once the device has done everything."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(action: Callable[[], object], device: str) -> float:
    """How long `action` takes on `device`."""
    synchronise(device)
    began = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Times:
    """Seconds of several actions, each measured in turn with the others."""

    of: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.of[name])

    def ratio(self, name: str, other: str) -> float:
        """The median over rounds of seconds(name) / seconds(other)."""
        return statistics.median(a / b for a, b in zip(self.of[name], self.of[other], strict=True))


def in_turns(actions: Mapping[str, Callable[[], object]], setting: Setting, warm: int = 1) -> Times:
    """Times of all actions, `repeat` rounds after `warm` that are not counted."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(warm + setting.repeat):
        for name, action in actions.items():
            taken = seconds(action, setting.device)
            if turn >= warm:
                found[name].append(taken)
    return Times(found)
