"""Update rules against torch's optimisers, and the schedules."""

from collections.abc import Callable

import pytest
import torch
from small import CPU
from torch import Tensor, nn

from zo_objectives import noise, rules
from zo_objectives.errors import InputError
from zo_objectives.noise import Law
from zo_objectives.rules import UpdateRule, make_rule

STEPS = 150


def gradient(t: int) -> Tensor:
    """50 elements of sizes from 1e-4 to 1, some steps without any information."""
    z = noise.directions(Law.GAUSSIAN, [t], 1, range(50), CPU)[0]
    return z * torch.logspace(-4, 0, 50) * (t % 7 != 3)


def ours(rule: UpdateRule, start: Tensor) -> Tensor:
    theta, state = start.clone(), rule.init(start)
    for t in range(STEPS):
        theta = theta * rule.decay(t) + rule.step(t, gradient(t), state)
    return theta


def torchs(make: Callable[[list[Tensor]], torch.optim.Optimizer], rate: rules.Schedule, start: Tensor) -> Tensor:
    theta = nn.Parameter(start.clone())
    optimiser = make([theta])
    for t in range(STEPS):
        optimiser.param_groups[0]["lr"] = rate(t)
        theta.grad = gradient(t)
        optimiser.step()
    return theta.detach()


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("schedule", rules.SCHEDULES)
def test_sgd_is_torchs(decay: float, schedule: str) -> None:
    start, rate = torch.linspace(-1, 1, 50), rules.SCHEDULES[schedule](0.02, STEPS)
    found = ours(rules.sgd(rate, decay), start)
    expected = torchs(lambda p: torch.optim.SGD(p, maximize=True, weight_decay=decay), rate, start)
    assert (found - start).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("schedule", rules.SCHEDULES)
def test_adam_is_torchs_adamw(decay: float, schedule: str) -> None:
    start, rate = torch.linspace(-1, 1, 50), rules.SCHEDULES[schedule](0.02, STEPS)
    found = ours(rules.adam(rate, decay), start)
    expected = torchs(lambda p: torch.optim.AdamW(p, maximize=True, weight_decay=decay), rate, start)
    assert (found - start).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_schedules() -> None:
    for make in (rules.linear, rules.cosine):
        rate = make(2.0, 10)
        assert rate(0) == 2.0 and rate(5) == pytest.approx(1.0)
        assert rate(10) == pytest.approx(0.0, abs=1e-15) and rate(11) == pytest.approx(0.0, abs=1e-15)
        assert all(rate(t) > rate(t + 1) > 0 for t in range(9))
    assert rules.cosine(2.0, 4)(1) == pytest.approx(1 + 2**-0.5)
    assert rules.linear(2.0, 4)(1) == 1.5
    assert {rules.constant(2.0, 10)(t) for t in (0, 9, 99)} == {2.0}


def test_make_rule() -> None:
    rule = make_rule("sgd", learning_rate=0.5, schedule="linear", steps=4, weight_decay=0.1)
    assert rule.decay(2) == pytest.approx(1 - 0.25 * 0.1)
    assert rule.step(2, torch.ones(3), rule.init(torch.ones(3))).tolist() == [0.25] * 3
    make_rule("adam", learning_rate=0.5, schedule="cosine", steps=0)  # nothing to do is no error
    with pytest.raises(InputError, match=r"Unknown update rule 'adm'\. Did you mean 'adam'"):
        make_rule("adm", learning_rate=1, schedule="constant", steps=1)
    with pytest.raises(InputError, match=r"Unknown schedule 'cosin'\. Did you mean 'cosine'"):
        make_rule("sgd", learning_rate=1, schedule="cosin", steps=1)
    with pytest.raises(InputError, match=r"Unknown update rule 'zzz'\. Known: adam, sgd\."):
        make_rule("zzz", learning_rate=1, schedule="constant", steps=1)
