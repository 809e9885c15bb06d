"""Norms under many members' weights: against the module itself, called with each member's."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from zo_objectives.norms import Norm, offset_of

WIDTH, MEMBERS = 12, 3


class Odd(nn.Module):
    """A norm that is no gain and shift of anything."""

    def __init__(self, *shape: int) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(shape), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(hidden * self.weight.flatten().sum())


KINDS = {
    "LayerNorm": (nn.LayerNorm(WIDTH), 0.0),
    "LayerNorm without bias": (nn.LayerNorm(WIDTH, bias=False), 0.0),
    "RMSNorm": (nn.RMSNorm(WIDTH), 0.0),
    "LLaMA's": (LlamaRMSNorm(WIDTH), 0.0),
    "Gemma's": (GemmaRMSNorm(WIDTH), 1.0),
    "no weights": (nn.LayerNorm(WIDTH, elementwise_affine=False), None),
    "not a gain": (Odd(WIDTH), None),
    "a matrix": (Odd(WIDTH, 2), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_norm_is_is_found_by_calling_it(kind: str) -> None:
    norm, offset = KINDS[kind]
    assert offset_of(norm) == offset


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("leading", [(5,), (MEMBERS, 5)], ids=["shared states", "own states"])
@pytest.mark.parametrize("kind", KINDS)
def test_members_get_what_the_norm_gives_them(kind: str, leading: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    norm, _ = KINDS[kind]
    norm = norm.requires_grad_(False).to(dtype)
    for parameter in norm.parameters():
        parameter.copy_(drawn(*parameter.shape))
    hidden = drawn(*leading, WIDTH).to(dtype)
    names = [n for n, _ in norm.named_parameters()]
    bound = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    for tuned in (names, names[:1], names[1:]):
        own = {n: drawn(MEMBERS, *norm.get_parameter(n).shape) for n in tuned}
        found = Norm(norm)(own, hidden, MEMBERS)
        for m in range(MEMBERS):
            states = hidden[m] if len(leading) == 2 else hidden
            expected = functional_call(norm, {n: values[m].to(dtype) for n, values in own.items()}, (states,))
            torch.testing.assert_close(found.full[m], expected.float(), atol=bound, rtol=bound)
