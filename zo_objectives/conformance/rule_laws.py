"""Laws 4 and 7 of update rules: the same steps in pieces; no step from nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zo_objectives.conformance.toy import CPU
from zo_objectives.search.geometry import Dense, Leaf
from zo_objectives.search.rules import UpdateRule


def _gradients(steps: int, n: int) -> list[tuple[float, Tensor]]:
    """Coefficients of very different sizes, some 0, and c * z for them."""
    coefficients = [0.0 if t % 7 == 3 else (-1.0) ** t * 10.0 ** -(t % 5) * (1 + t % 3) for t in range(steps)]
    z = Dense().directions(range(steps), Leaf("w", (n,)), range(n), CPU)
    return [(c, c * row) for c, row in zip(coefficients, z, strict=True)]


def trajectory(rule: UpdateRule, gradients: Sequence[tuple[float, Tensor]], span: slice) -> Tensor:
    """[steps, len(span)]: what `rule` adds to elements `span`, step by step."""
    state = rule.init(gradients[0][1][span])
    added, past = [], list[tuple[int, Tensor]]()
    for t, (coefficient, gradient) in enumerate(gradients):
        if rule.observe is not None:
            rule.observe(coefficient, state)
        seen = [(then, g.clone()) for then, g in past][max(0, len(past) - rule.window) :]
        added.append(rule.step(t, t, gradient[span].clone(), state, iter(seen)).clone())
        past.append((t, gradient[span]))
    return torch.stack(added)


def check_rule(rule: UpdateRule, steps: int = 30) -> None:
    """Laws 4 and 7: a tensor may be handled in pieces, steps are finite, and nothing comes of nothing, not even 0 / 0."""
    n = 12
    gradients = _gradients(steps, n)
    whole = trajectory(rule, gradients, slice(0, n))
    assert whole.isfinite().all() and whole.any()
    for cut in (1, 5, n - 1):
        parts = [trajectory(rule, gradients, s) for s in (slice(0, cut), slice(cut, n))]
        assert torch.equal(torch.cat(parts, dim=1), whole)
    flat = [(0.0, torch.zeros(n))] * steps
    assert not trajectory(rule, flat, slice(0, n)).any()
    after = trajectory(rule, [*flat, *gradients], slice(0, n))[steps:]
    assert after.isfinite().all() and after.any()
    if rule.linear:
        rates = torch.tensor([rule.rate(t) for t in range(steps)])
        assert torch.equal(whole, torch.stack([g for _, g in gradients]) * rates[:, None])
