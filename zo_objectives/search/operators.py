"""Functions of torch with a tuned parameter, computed for every member: the tables that an overlay goes by.

Handlers have the functions' own signatures. States come as [N, ..., d] and go so; within, they are [P, rows, d].
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zo_objectives.search.overlay import Function, Matrix, Overlay


def _affine(over: Overlay, x: Tensor, weight: Tensor, own: Matrix | None, bias: Tensor | None) -> Tensor:
    """x @ weight + bias, where weight is [n, m]: what is a member's own first, the shared product on top of it, in place."""
    if bias is not None and bias.dim() != 1:
        over.refuse(f"with a bias of shape {list(bias.shape)}")
    states, shift = over.split(x), over.vector(bias)
    flat = states.reshape(-1, states.shape[-1])
    if own is None:
        assert shift is not None
        return (flat @ weight).view(over.count, -1, weight.shape[1]).add_(shift).view(*x.shape[:-1], -1)
    inner = torch.bmm(own.left, states.mT).mT  # [P, rows, r]
    out = torch.bmm(inner, own.right) if shift is None else torch.baddbmm(shift, inner, own.right)
    return out.view(-1, weight.shape[1]).addmm_(flat, weight).view(*x.shape[:-1], -1)


def _linear(over: Overlay, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    own = over.matrix(weight)
    return _affine(over, input, weight.t(), own and own.transposed, bias)


def _addmm(over: Overlay, input: Tensor, mat1: Tensor, mat2: Tensor, **other: Any) -> Tensor:
    if other:
        over.refuse(f"with {', '.join(other)}")
    return _affine(over, mat1, mat2, over.matrix(mat2), input)


def _matmul(over: Overlay, input: Tensor, other: Tensor, **more: Any) -> Tensor:
    own = over.matrix(other)
    if more or own is None:
        over.refuse("other than as states @ matrix")
    return _affine(over, input, other, own, None)


def _embedding(
    over: Overlay, input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, **_: Any
) -> Tensor:
    """Looks up ids [N, T], or [1, T] that all rows share; result [N, T, d]."""
    own = over.matrix(weight)
    shared = input.dim() == 2 and len(input) == 1 and input.shape[1] == over.tokens
    ids = input.expand(over.total, -1) if shared else input
    if own is None or max_norm is not None:
        over.refuse("other than to look up ids in it")
    if over.by_member or ids.dim() < 2 or len(ids) != over.total:
        over.refuse(
            f"with ids of shape {list(input.shape)} where {over.count} members of {over.rows} rows have [{over.total}, T]"
        )
    place = ids.reshape(over.count, 1, -1).expand(-1, own.left.shape[1], -1)
    out = functional.embedding(ids, weight)
    out.view(over.count, -1, weight.shape[1]).baddbmm_(own.left.gather(2, place).mT, own.right)
    return out


def _norm(over: Overlay, input: Tensor, plain: Function, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """A norm, `plain` without gain and shift, then each member's."""
    normed: Tensor = plain(over.split(input))
    gain, shift = over.vector(weight), over.vector(bias)
    if gain is not None and shift is not None:
        normed = torch.addcmul(shift, normed, gain)
    elif gain is not None:
        normed = normed * gain
    elif shift is not None:
        normed = normed + shift
    return normed.view(input.shape)


def _layer_norm(
    over: Overlay,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _norm(over, input, lambda x: functional.layer_norm(x, normalized_shape, None, None, eps), weight, bias)


def _rms_norm(
    over: Overlay,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    return _norm(over, input, lambda x: functional.rms_norm(x, normalized_shape, None, eps), weight, None)


def _pointwise(func: Function) -> Function:
    """Sums and products of states with a vector, or of a vector with a number."""

    def handler(over: Overlay, a: Any, b: Any, **more: Any) -> Tensor:
        own, other = (a, b) if id(a) in over.own else (b, a)
        if more:
            over.refuse(f"with {', '.join(more)}")
        if isinstance(other, int | float):
            return over.derive(own, func, other)
        states, values = over.split(other), over.vector(own)
        assert values is not None
        if values.shape[-1] not in (1, states.shape[-1]):
            over.refuse(f"with states of shape {list(other.shape)}")
        result: Tensor = func(states, values).to(torch.result_type(a, b))  # a number has no say in the dtype
        return result.view(other.shape)

    return handler


def _cast(func: Function) -> Function:
    """Casts of a vector, or of states to the dtype of whatever is tuned."""

    def handler(over: Overlay, tensor: Tensor, *args: Any, **more: Any) -> Tensor:
        made: Tensor = func(tensor, *args, **more)
        moved = id(tensor) in over.own and made is not tensor
        return over.derive(tensor, Tensor.to, made.device, made.dtype) if moved else made

    return handler


def _transpose(over: Overlay, input: Tensor, *dims: int, **named: int) -> Tensor:
    dims = (*dims, *named.values())
    if dims and sorted(d % 2 for d in dims) != [0, 1]:
        over.refuse("to move other dimensions than its two")
    return over.transpose(input)


HANDLERS: dict[Function, Function] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _pointwise(torch.mul)),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _pointwise(torch.add)),
    **{cast: _cast(cast) for cast in (Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type_as)},
    **dict.fromkeys((torch.t, torch.transpose, Tensor.t, Tensor.transpose), _transpose),
    **{getattr(Tensor, name).__get__: _transpose for name in ("T", "mT")},
}
