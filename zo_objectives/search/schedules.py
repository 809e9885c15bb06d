"""Schedules: a number for each step, from step 0."""

import math
from collections.abc import Callable

from zo_objectives.errors import unknown

Schedule = Callable[[int], float]


def constant(peak: float, steps: int = 1) -> Schedule:
    """`peak` in every step."""
    return lambda t: peak


def linear(peak: float, steps: int) -> Schedule:
    """From `peak` at step 0 down a line that would reach 0 at step `steps`."""
    return lambda t: peak * max(0.0, 1.0 - t / steps)


def cosine(peak: float, steps: int) -> Schedule:
    """From `peak` at step 0 down half a cosine that would reach 0 at step `steps`."""
    return lambda t: peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, t / steps)))


def warmed_up(schedule: Schedule, steps: int) -> Schedule:
    """`schedule` times (t + 1) / steps in the first `steps` steps."""
    return lambda t: schedule(t) * min(1.0, (t + 1) / steps) if steps else schedule(t)


SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {"constant": constant, "linear": linear, "cosine": cosine}


def make_schedule(name: str, peak: float, steps: int, warmup: int = 0) -> Schedule:
    """The schedule that a configuration names, over `steps` steps. Raises InputError for an unknown one."""
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    return warmed_up(SCHEDULES[name](peak, max(steps, 1)), warmup)
