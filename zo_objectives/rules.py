"""Update rules: from a gradient estimate to a step, element by element, ascending.

A rule is a pair of functions, like an optax transformation. `init` makes its state for a flat tensor; `step` takes the
step's number (from 0), the gradient and the state, changes the state in place and returns the step to add. It works on any
slice of a tensor, so a large tensor is handled in pieces. `decay` is the factor on the weights themselves.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zo_objectives.errors import unknown

Schedule = Callable[[int], float]
State = tuple[Tensor, ...]


class UpdateRule(NamedTuple):
    init: Callable[[Tensor], State]
    step: Callable[[int, Tensor, State], Tensor]
    decay: Schedule


def constant(peak: float, steps: int) -> Schedule:
    return lambda t: peak


def linear(peak: float, steps: int) -> Schedule:
    """From `peak` at step 0 down a line that would reach 0 at step `steps`."""
    return lambda t: peak * max(0.0, 1.0 - t / steps)


def cosine(peak: float, steps: int) -> Schedule:
    """From `peak` at step 0 down half a cosine that would reach 0 at step `steps`."""
    return lambda t: peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, t / steps)))


SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {"constant": constant, "linear": linear, "cosine": cosine}


def sgd(rate: Schedule, weight_decay: float = 0.0) -> UpdateRule:
    """theta <- (1 - rate * weight_decay) theta + rate * gradient (MeZO, Definition 2)."""
    return UpdateRule(
        init=lambda like: (),
        step=lambda t, gradient, state: gradient * rate(t),
        decay=lambda t: 1.0 - rate(t) * weight_decay,
    )


def adam(
    rate: Schedule, weight_decay: float = 0.0, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> UpdateRule:
    """Adam with decoupled weight decay (Kingma and Ba 2015, Algorithm 1; Loshchilov and Hutter 2019), state in float32."""

    def init(like: Tensor) -> State:
        return torch.zeros_like(like, dtype=torch.float32), torch.zeros_like(like, dtype=torch.float32)

    def step(t: int, gradient: Tensor, state: State) -> Tensor:
        first, second = state
        first.mul_(beta1).add_(gradient * (1 - beta1))
        second.mul_(beta2).add_(gradient.square() * (1 - beta2))
        size = (second / (1 - beta2 ** (t + 1))).sqrt_().add_(epsilon)
        return first.div(size).mul_(rate(t) / (1 - beta1 ** (t + 1)))

    return UpdateRule(init, step, decay=lambda t: 1.0 - rate(t) * weight_decay)


RULES: dict[str, Callable[..., UpdateRule]] = {"sgd": sgd, "adam": adam}


def make_rule(name: str, *, learning_rate: float, schedule: str, steps: int, weight_decay: float = 0.0) -> UpdateRule:
    """The rule that a configuration names; raises InputError for an unknown rule or schedule."""
    if name not in RULES:
        raise unknown("update rule", name, RULES)
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    return RULES[name](SCHEDULES[schedule](learning_rate, max(steps, 1)), weight_decay)
