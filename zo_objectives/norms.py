"""A norm under the weights of many members at once.

Nearly every norm is a fixed function of the hidden states, times a gain, plus a shift: then what costs is computed once for
all members. Which norms are like that is found by calling them, not by their names; any other is called for each member.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap


@dataclass(frozen=True)
class Normed:
    """What members' norms make of hidden states: `states * gain + shift`, in float32."""

    states: Tensor  # [sites, d], or [members, sites, d]
    gain: Tensor  # [members, d]
    shift: Tensor  # [members, d]

    @property
    def full(self) -> Tensor:
        """[members, sites, d]."""
        return torch.addcmul(self.shift[:, None], self.states, self.gain[:, None])


def _call(norm: nn.Module, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    own = {"weight": weight, "bias": bias}
    result: Tensor = functional_call(norm, {n: own[n] for n, _ in norm.named_parameters()}, (hidden,))
    return result


def _fixed(norm: nn.Module, hidden: Tensor, offset: float) -> Tensor:
    """The norm in float32 where it multiplies by one and adds nothing."""
    plain = hidden.new_full(hidden.shape[-1:], 1 - offset, dtype=torch.float32)
    return _call(norm, hidden.float(), plain, torch.zeros_like(plain))


@torch.no_grad()
def offset_of(norm: nn.Module) -> float | None:
    """The number o for which norm(h) = f(h) * (weight + o) + bias, whatever the weights; None for another kind of norm.

    It is 0 for LayerNorm and RMSNorm, and 1 where the weight is kept as its difference from one, as in Gemma.
    """
    shapes = {n: p.shape for n, p in norm.named_parameters()}
    if not {"weight"} <= set(shapes) <= {"weight", "bias"} or any(len(shape) != 1 for shape in shapes.values()):
        return None
    drawn = torch.randn(4, *shapes["weight"], generator=torch.Generator().manual_seed(0))
    weight, bias, *hidden = drawn.to(next(norm.parameters()).device)
    states = torch.stack(hidden)
    expected = _call(norm, states, weight, bias)
    added = bias if "bias" in shapes else torch.zeros_like(bias)
    for offset in (0.0, 1.0):
        if torch.allclose(expected, _fixed(norm, states, offset) * (weight + offset) + added, atol=1e-5):
            return offset
    return None


class Norm:
    """A norm module, called with the weights of all members."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.offset = module, offset_of(module)

    def __call__(self, own: Mapping[str, Tensor], hidden: Tensor, members: int) -> Normed:
        """Hidden states [sites, d] or [members, sites, d] under members' weights `own`, each [members, ...].

        A weight that is not given is the module's. Weights are rounded to its dtype, as they are in a forward pass.
        """
        live = dict(self.module.named_parameters())
        own = {name: values.to(live[name].dtype) for name, values in own.items()}
        one = torch.ones((), device=hidden.device).expand(members, hidden.shape[-1])
        none = torch.zeros((), device=hidden.device).expand(members, hidden.shape[-1])
        if self.offset is None:
            return Normed(self._each(own, hidden).float(), one, none)
        gain = own.get("weight", live["weight"]).float() + self.offset
        shift = own.get("bias", live.get("bias", none)).float()
        return Normed(_fixed(self.module, hidden, self.offset), gain.expand_as(one), shift.expand_as(one))

    def _each(self, own: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """The module called for each member: [members, sites, d], or [sites, d] where members are all the same."""
        if not own:
            result: Tensor = self.module(hidden)
            return result
        each = 0 if hidden.dim() == 3 else None
        called = vmap(lambda weights, h: functional_call(self.module, weights, (h,)), in_dims=(0, each))
        return called(own, hidden)  # type: ignore[no-any-return]
