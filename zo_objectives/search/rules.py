"""Update rules: from a gradient estimate to a step, element by element, ascending.

A rule is a record of pure functions, like an optax transformation. It works on any slice of a tensor, so that large tensors
are handled in pieces, and it uses nothing but +, -, *, / and a correctly rounded square root, so that its bits depend on no
library. `age` counts the steps that a tensor has taken itself (fewer than `t`, where groups of tensors take turns).

    sgd, sign                 no state
    momentum, adam            state in float32, one or two numbers an element
    recomputed(rule)          the same rule without state: moments are made again from the journal's scalars and keys, as
                              MeZO's appendix B.2 says, at one noise pass for each past step
    adam_of_signs             Adam for one direction of signs a step: z * z = 1, so the second moment is one number for a
                              whole tensor, and only the first is made again
    anchored(rule)            the rule, with decay toward the initial weights
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from zo_objectives.errors import InputError, unknown
from zo_objectives.search.schedules import Schedule, make_schedule

State = tuple[Tensor, ...]
Past = Iterable[tuple[int, Tensor]]
ALL = 1 << 48  # a window that holds every step


def _no_state(like: Tensor) -> State:
    return ()


@dataclass(frozen=True)
class UpdateRule:
    """`step(age, t, gradient, state, past)` changes `state` in place and returns what is added to theta.

    `init` makes the state for a flat tensor: tensors of its size, sliced with it, or 0-dimensional ones. `past` yields (age,
    gradient) of the `window` steps before this one, oldest first.
    """

    step: Callable[[int, int, Tensor, State, Past], Tensor]
    rate: Schedule
    weight_decay: float = 0.0  # theta <- (1 - rate * weight_decay) theta + step
    pull: float = 0.0  # theta <- theta0 + (1 - rate * pull) (theta - theta0) + step
    init: Callable[[Tensor], State] = _no_state
    window: int = 0
    linear: bool = False  # the step is rate * gradient and nothing else, so it may be folded into coefficients
    observe: Callable[[float, State], None] | None = (
        None  # for one direction of signs only: sees its coefficient once a step
    )

    def decay(self, t: int) -> float:
        """The factor on the weights themselves in step `t`."""
        return 1.0 - self.rate(t) * self.weight_decay


def sgd(rate: Schedule, weight_decay: float = 0.0) -> UpdateRule:
    """theta <- (1 - rate * weight_decay) theta + rate * gradient (MeZO, Definition 2)."""
    return UpdateRule(lambda age, t, gradient, state, past: gradient * rate(t), rate, weight_decay, linear=True)


def sign(rate: Schedule, weight_decay: float = 0.0) -> UpdateRule:
    """A step of `rate` in every element, by the gradient's sign (signSGD, Bernstein et al. 2018); none where it is 0."""
    return UpdateRule(lambda age, t, gradient, state, past: gradient.sign() * rate(t), rate, weight_decay)


def momentum(rate: Schedule, weight_decay: float = 0.0, beta: float = 0.9) -> UpdateRule:
    """Heavy ball: m <- beta m + gradient, step rate * m (as torch.optim.SGD with momentum), with decoupled weight decay."""

    def step(age: int, t: int, gradient: Tensor, state: State, past: Past) -> Tensor:
        return state[0].mul_(beta).add_(gradient) * rate(t)

    return UpdateRule(step, rate, weight_decay, init=lambda like: (_zeros(like),))


def adam(
    rate: Schedule, weight_decay: float = 0.0, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> UpdateRule:
    """Adam with decoupled weight decay (Kingma and Ba 2015, Algorithm 1; Loshchilov and Hutter 2019), state in float32."""

    def step(age: int, t: int, gradient: Tensor, state: State, past: Past) -> Tensor:
        first, second = state
        first.mul_(beta1).add_(gradient * (1 - beta1))
        second.mul_(beta2).add_(gradient.square() * (1 - beta2))
        return _adam_step(first, second, age, rate(t), beta1, beta2, epsilon)

    return UpdateRule(step, rate, weight_decay, init=lambda like: (_zeros(like), _zeros(like)))


def recomputed(rule: UpdateRule, window: int = ALL) -> UpdateRule:
    """`rule` without its state: it starts from nothing `window` steps back and goes through the gradients since (B.2).

    With the whole history the steps are those of `rule`, bit for bit. What came before a window of `window_for(beta)` would
    have moved a moment's last bit at most.
    """

    def step(age: int, t: int, gradient: Tensor, state: State, past: Past) -> Tensor:
        fresh = rule.init(gradient)
        for then, before in past:
            rule.step(then, t, before, fresh, ())
        return rule.step(age, t, gradient, fresh, ())

    return replace(rule, step=step, init=_no_state, window=window)


def adam_of_signs(
    rate: Schedule,
    weight_decay: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    window: int = ALL,
) -> UpdateRule:
    """`adam` for one direction of signs a step, without its state: with z * z = 1 the gradient's square is c * c.

    The second moment is one number a tensor; the first is made again from `window` steps. Equal to `adam` bit for bit with
    the whole history.
    """

    def observe(coefficient: float, state: State) -> None:
        square = torch.tensor(coefficient, dtype=torch.float32).square()
        state[0].mul_(beta2).add_(square.to(state[0].device) * (1 - beta2))

    def step(age: int, t: int, gradient: Tensor, state: State, past: Past) -> Tensor:
        gradients = (g * (1 - beta1) for _, g in (*past, (age, gradient)))
        first = reduce(lambda moment, g: moment.mul_(beta1).add_(g), gradients, _zeros(gradient))
        return _adam_step(first, state[0], age, rate(t), beta1, beta2, epsilon)

    def init(like: Tensor) -> State:
        return (torch.zeros((), dtype=torch.float32, device=like.device),)

    return UpdateRule(step, rate, weight_decay, init=init, window=window, observe=observe)


def anchored(rule: UpdateRule, pull: float) -> UpdateRule:
    """`rule` with theta <- theta0 + (1 - rate * pull) (theta - theta0) before its step: decay toward where the run began.

    Keeps what the model could do before (anchored weight decay, es-awd 2026). Costs a copy of the tuned weights.
    """
    return replace(rule, pull=pull)


def window_for(beta: float) -> int:
    """How many steps back a moment with decay `beta` reaches in float32: beta ** window < 2**-25."""
    return math.ceil(-25 * math.log(2) / math.log(beta)) if beta > 0 else 1


def square_root(values: Tensor) -> Tensor:
    """The correctly rounded square root of float32 `values`, whatever library computes it.

    torch's own is the vendor's, and one in five results is off by a bit on some machines. In float64 an error of a bit
    cannot reach the rounding to float32.
    """
    return values.double().sqrt_().float()


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float32)


def _adam_step(first: Tensor, second: Tensor, age: int, rate: float, beta1: float, beta2: float, epsilon: float) -> Tensor:
    bias = torch.tensor(
        1 - beta2 ** (age + 1), dtype=torch.float32, device=second.device
    )  # a number would be inverted on a GPU
    size = square_root(second / bias).add_(epsilon)
    return first.div(size).mul_(rate / (1 - beta1 ** (age + 1)))


RULES: dict[str, Callable[..., UpdateRule]] = {"sgd": sgd, "sign": sign, "momentum": momentum, "adam": adam}
FREE: dict[str, Callable[..., UpdateRule]] = {
    "momentum": lambda rate, decay=0.0: recomputed(momentum(rate, decay), window_for(0.9)),
    "adam": lambda rate, decay=0.0: adam_of_signs(rate, decay, window=window_for(0.9)),
}


def make_rule(
    name: str,
    *,
    learning_rate: float,
    schedule: str,
    steps: int,
    weight_decay: float = 0.0,
    warmup: int = 0,
    pull: float = 0.0,
    moments: str = "stored",
) -> UpdateRule:
    """The rule that a configuration names; raises InputError for an unknown rule or schedule."""
    if name not in RULES:
        raise unknown("update rule", name, RULES)
    if moments == "recomputed" and name not in FREE:
        raise InputError(f"moments=recomputed: rule {name} keeps no moments. Use it with {' or '.join(FREE)}.")
    make = FREE[name] if moments == "recomputed" else RULES[name]
    rule = make(make_schedule(schedule, learning_rate, steps, warmup), weight_decay)
    return anchored(rule, pull) if pull else rule
