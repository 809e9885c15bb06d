"""Law 3 of weight stores: leaving a probe restores every bit, whatever happened in it."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from zo_objectives.conformance.toy import IDS, Toy, WeightsOf, bits
from zo_objectives.search.estimators import Probe, ProjectedGradient
from zo_objectives.search.weights import Weights


class _Poison(RuntimeError):
    pass


def _fail(*_: object) -> None:
    raise _Poison


def check_store(weights_of: WeightsOf, dtype: torch.dtype = torch.float32) -> None:
    """Law 3 on a `Toy`: a probe is felt, and every bit is back after it, after an exception in the model and in the body."""
    model, probe = Toy(dtype), Probe(5, 0.5)
    weights = weights_of(model)
    before, parameters, rest = bits(model), list(model.parameters()), model(IDS)
    with weights.at(probe):
        assert not torch.equal(model(IDS), rest)
        _expect(RuntimeError, lambda: weights.at(probe).__enter__())
        _expect(RuntimeError, lambda: weights.ascend(0, ProjectedGradient(1, (1,), np.ones(1, dtype=np.float32))))
    assert bits(model) == before
    handle = model.get_submodule("head").register_forward_pre_hook(_fail)
    _expect(_Poison, lambda: _forward_at(weights, model, probe))
    handle.remove()
    assert bits(model) == before
    for key in range(20):
        with weights.at(probe._replace(key=key)):
            pass
    assert bits(model) == before
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(IDS), rest)


def _forward_at(weights: Weights, model: nn.Module, probe: Probe) -> None:
    with weights.at(probe):
        model(IDS)


def _expect(kind: type[Exception], action: Callable[[], object]) -> None:
    try:
        action()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")
