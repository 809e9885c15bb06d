"""Update rules against torch's optimisers, and the schedules."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small import CPU, DTYPES, STORES, Tiny, score, tuned_names
from torch import Tensor, nn

from zo_objectives.errors import InputError
from zo_objectives.search import noise, rules, schedules
from zo_objectives.search.estimators import Estimator, RoundRobin, Spsa
from zo_objectives.search.geometry import Dense
from zo_objectives.search.layers import by_layer
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.noise import Law
from zo_objectives.search.rules import UpdateRule, make_rule
from zo_objectives.search.weights import Weights
from zo_objectives.testing import trajectory

STEPS = 150


def gradient(t: int) -> Tensor:
    """50 elements of sizes from 1e-4 to 1, some steps without any information."""
    z = noise.directions(Law.GAUSSIAN, [t], 1, range(50), CPU)[0]
    return z * torch.logspace(-4, 0, 50) * (t % 7 != 3)


def ours(rule: UpdateRule, start: Tensor) -> Tensor:
    theta, state = start.clone(), rule.init(start)
    for t in range(STEPS):
        theta = theta * rule.decay(t) + rule.step(t, t, gradient(t), state, ())
    return theta


def torchs(make: Callable[[list[Tensor]], torch.optim.Optimizer], rate: schedules.Schedule, start: Tensor) -> Tensor:
    theta = nn.Parameter(start.clone())
    optimiser = make([theta])
    for t in range(STEPS):
        optimiser.param_groups[0]["lr"] = rate(t)
        theta.grad = gradient(t)
        optimiser.step()
    return theta.detach()


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_sgd_is_torchs(decay: float, schedule: str) -> None:
    start, rate = torch.linspace(-1, 1, 50), schedules.SCHEDULES[schedule](0.02, STEPS)
    found = ours(rules.sgd(rate, decay), start)
    expected = torchs(lambda p: torch.optim.SGD(p, maximize=True, weight_decay=decay), rate, start)
    assert (found - start).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_adam_is_torchs_adamw(decay: float, schedule: str) -> None:
    start, rate = torch.linspace(-1, 1, 50), schedules.SCHEDULES[schedule](0.02, STEPS)
    found = ours(rules.adam(rate, decay), start)
    expected = torchs(lambda p: torch.optim.AdamW(p, maximize=True, weight_decay=decay), rate, start)
    assert (found - start).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_schedules() -> None:
    for make in (schedules.linear, schedules.cosine):
        rate = make(2.0, 10)
        assert rate(0) == 2.0 and rate(5) == pytest.approx(1.0)
        assert rate(10) == pytest.approx(0.0, abs=1e-15) and rate(11) == pytest.approx(0.0, abs=1e-15)
        assert all(rate(t) > rate(t + 1) > 0 for t in range(9))
    assert schedules.cosine(2.0, 4)(1) == pytest.approx(1 + 2**-0.5)
    assert schedules.linear(2.0, 4)(1) == 1.5
    assert {schedules.constant(2.0, 10)(t) for t in (0, 9, 99)} == {2.0}


def test_make_rule() -> None:
    rule = make_rule("sgd", learning_rate=0.5, schedule="linear", steps=4, weight_decay=0.1)
    assert rule.decay(2) == pytest.approx(1 - 0.25 * 0.1)
    assert rule.step(2, 2, torch.ones(3), rule.init(torch.ones(3)), ()).tolist() == [0.25] * 3
    make_rule("adam", learning_rate=0.5, schedule="cosine", steps=0)  # nothing to do is no error
    with pytest.raises(InputError, match=r"Unknown update rule 'adm'\. Did you mean 'adam'"):
        make_rule("adm", learning_rate=1, schedule="constant", steps=1)
    with pytest.raises(InputError, match=r"Unknown schedule 'cosin'\. Did you mean 'cosine'"):
        make_rule("sgd", learning_rate=1, schedule="cosin", steps=1)
    with pytest.raises(InputError, match=r"Unknown update rule 'zzz'\. Known: adam, momentum, sgd, sign\."):
        make_rule("zzz", learning_rate=1, schedule="constant", steps=1)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_momentum_is_torchs(decay: float, schedule: str) -> None:
    start, rate = torch.linspace(-1, 1, 50), schedules.SCHEDULES[schedule](0.02, STEPS)
    found = ours(rules.momentum(rate, decay), start)
    if decay == 0.0:
        expected = torchs(lambda p: torch.optim.SGD(p, maximize=True, momentum=0.9), rate, start)
    else:  # torch's decay goes through the momentum; ours is decoupled, as in AdamW
        theta, buffer = start.clone(), torch.zeros(50)
        for t in range(STEPS):
            buffer = 0.9 * buffer + gradient(t)
            theta = theta * (1 - rate(t) * decay) + rate(t) * buffer
        expected = theta
    assert (found - start).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sign_steps_by_the_rate() -> None:
    rule = rules.sign(schedules.linear(0.5, 10), 0.1)
    assert rule.step(0, 5, torch.tensor([2.0, -1e-30, 0.0]), (), ()).tolist() == [0.25, -0.25, 0.0]
    assert rule.decay(5) == pytest.approx(1 - 0.25 * 0.1)


def test_the_square_root_is_correctly_rounded() -> None:
    """torch's own is not, on some processors: then Adam's bits, and so a replay, depend on the machine."""
    values = noise.directions(Law.GAUSSIAN, [1], 2, range(100_000), CPU)[0].abs() * 1e-3
    values = torch.cat([values, torch.tensor([0.0, 1e-45, 1e-38, 3e38, 4.0, 2.0])])
    assert torch.equal(rules.square_root(values), torch.from_numpy(np.sqrt(values.numpy())))


RATE = schedules.warmed_up(schedules.cosine(0.02, 40), 5)
FREE = {
    "momentum": (rules.momentum(RATE, 0.01), rules.recomputed(rules.momentum(RATE, 0.01))),
    "adam": (rules.adam(RATE, 0.01), rules.recomputed(rules.adam(RATE, 0.01))),
    "adam of signs": (rules.adam(RATE, 0.01), rules.adam_of_signs(RATE, 0.01)),
    "anchored adam of signs": (
        rules.anchored(rules.adam(RATE, 0.01), 0.3),
        rules.anchored(rules.adam_of_signs(RATE, 0.01), 0.3),
    ),
}


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FREE)
def test_moments_from_the_journals_scalars_are_the_stored_ones(
    name: str, dtype: torch.dtype, store: str, blocks: int
) -> None:
    """MeZO, appendix B.2, proven: bit for bit, in every dtype, with groups taking turns too; and nothing is kept for it."""
    made = []
    estimator: Estimator = RoundRobin(Spsa(0.1), blocks) if blocks else Spsa(0.1)
    for rule in FREE[name]:
        model = Tiny(dtype)
        names = tuned_names(model)
        weights = Weights(model, names, geometry=Dense(), rule=rule, store=store, layers=by_layer(names))
        steps = climb(weights, estimator, sequential(weights, lambda t, m=model: score(m, t)), steps=25, seed=1)
        assert sum(bool(s.gradient.coefficients.any()) for s in steps) > 10
        made.append(weights.fingerprint())
    assert made[0] == made[1]
    state = FREE[name][1].init(torch.ones(1000))
    assert sum(s.numel() for s in state) <= 1


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_window_is_enough(name: str) -> None:
    """What lies before window_for(beta) steps is below float32's last bit; a short window is not enough."""
    steps, n = 400, 64
    stored = rules.RULES[name](schedules.constant(0.02))
    z = noise.directions(Law.RADEMACHER, range(steps), 1, range(n), CPU)
    gradients = [(c := (t % 11 - 5) / 7, c * row) for t, row in enumerate(z)]
    expected = trajectory(stored, gradients, slice(0, n))
    window = rules.window_for(0.9)
    assert window == 165
    made = rules.FREE[name](schedules.constant(0.02))
    assert made.window == window
    torch.testing.assert_close(trajectory(made, gradients, slice(0, n)), expected, rtol=1e-5, atol=1e-8)
    short = rules.recomputed(stored, 10)
    assert (trajectory(short, gradients, slice(0, n)) - expected).abs().max() > 1e-3


def test_warm_up_and_schedules_of_the_configuration() -> None:
    rate = schedules.make_schedule("linear", 1.0, 10, warmup=4)
    assert [rate(t) for t in range(5)] == pytest.approx([0.25, 0.5 * 0.9, 0.75 * 0.8, 0.7, 0.6])
    with pytest.raises(InputError, match=r"moments=recomputed: rule sgd keeps no moments. Use it with momentum or adam"):
        make_rule("sgd", learning_rate=1, schedule="constant", steps=1, moments="recomputed")
    assert make_rule("adam", learning_rate=1, schedule="constant", steps=1, moments="recomputed", pull=0.5).pull == 0.5
