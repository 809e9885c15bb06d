"""Noise spec v1: every random number is a pure function of (key, stream, tensor, element index).

    words(key, stream, tensor, block) =
        Philox4x32-10(counter = (block, stream, tensor_low, tensor_high), key = (key_low, key_high))

where `tensor` is the 64-bit `keys.name_key` of the parameter's name. Elements are counted in row-major order, bits from the
lowest, and words 0..3 within a block:

    Rademacher  stream 1, 128 elements a block: element i is +1 where bit i mod 128 of block i // 128 is set, else -1
    Gaussian    stream 2, 8 elements a block: element i is GAUSSIAN[u], u = 16-bit field i mod 8 of block i // 8
    rounding    stream 3, 8 elements a block: element i is u / 2**16 with u as above (stochastic rounding of 16-bit weights)

GAUSSIAN[u] is the normal quantile of (u + 1/2) / 2**16, divided by the standard deviation of that table, as float32: 65,536
equally likely values, |z| < 4.33, variance 1, excess kurtosis -0.001. A table look-up has the same bits on every device.

Both laws are integer arithmetic and look-ups, and `axpy` is one float32 product, one sum and one rounding to the output's
dtype, none of them fused or approximate, so the bits depend on no device, thread count, chunk or library version. Each has
two forms of the same bits: eager, and a kernel that makes one pass over memory (see kernels.py, which decides).
"""

import math
from collections.abc import Sequence
from enum import Enum
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zo_objectives.search import kernels
from zo_objectives.search.keys import MULTIPLIERS, ROUNDS, WEYL, WORD, philox, words

SPEC = "zo-noise-v1"
CHUNK = 1 << 18  # elements an eager pass handles at a time: about what stays in a core's cache
FEW = 12  # blocks that are drawn faster one by one
ROW = 1 << 13  # elements of a direction from which on a kernel for each row is faster than all rows at once
CPU = torch.device("cpu")


class Law(Enum):
    """A distribution with mean 0 and variance 1; the value is its stream."""

    RADEMACHER = 1
    GAUSSIAN = 2


ROUNDING = 3
PER_BLOCK = {Law.RADEMACHER.value: 128, Law.GAUSSIAN.value: 8, ROUNDING: 8}  # elements, by stream
KERNELS = {Law.RADEMACHER: "signs", Law.GAUSSIAN: "normals"}


def _philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`keys.philox` on int64 tensors that hold 32-bit words; a product wraps in 64 bits and loses nothing."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def block_words(state: Tensor, first: Tensor, count: int) -> Tensor:
    """Words of `count` blocks from `first`, int32 [..., 4 * count]; `state` [..., 5]: stream, tensor, key (low, high)."""
    index = torch.arange(count, device=state.device) + first
    stream, low, high, *key = state.unsqueeze(-1).unbind(-2)
    index, stream, low, high = torch.broadcast_tensors(index, stream, low, high)  # type: ignore[no-untyped-call]
    drawn = torch.stack(_philox((index, stream, low, high), key), dim=-1)
    return drawn.to(torch.int32).flatten(-2)


def state_of(keys: Sequence[int], stream: int, tensor: int, device: torch.device) -> Tensor:
    return torch.tensor([(stream, *words(tensor), *words(key)) for key in keys], dtype=torch.int64, device=device)


def _drawn(keys: Sequence[int], stream: int, tensor: int, blocks: range) -> Tensor:
    """What `block_words` gives, on a CPU: `keys.philox` on whole numbers or on arrays of them, with the least overhead."""
    drawn, rest = np.empty((len(keys), len(blocks), 4), dtype=np.uint32), (stream, *words(tensor))
    if drawn.size <= 4 * FEW:
        for row, key in enumerate(keys):
            for place, block in enumerate(blocks):
                drawn[row, place] = philox((block, *rest), words(key))
    else:
        index: Any = np.arange(blocks.start, blocks.stop, dtype=np.uint64)
        pair: Any = words(keys[0]) if len(keys) == 1 else np.array([words(k) for k in keys], dtype=np.uint64).T[..., None]
        for place, word in enumerate(philox((index, *rest), tuple(pair))):
            drawn[..., place] = word
    return torch.from_numpy(drawn.reshape(len(keys), -1).view(np.int32))


def _fields(keys: Sequence[int], stream: int, tensor: int, span: range, device: torch.device) -> Tensor:
    """The words of the blocks that cover `span`, as int32 [K, 4 * blocks]."""
    per_block = PER_BLOCK[stream]
    blocks = range(span.start // per_block, max(-(-span.stop // per_block), span.start // per_block))
    if device.type == "cpu":
        return _drawn(keys, stream, tensor, blocks)
    return block_words(state_of(keys, stream, tensor, device), torch.tensor(blocks.start, device=device), len(blocks))


def _halves(keys: Sequence[int], stream: int, tensor: int, span: range, device: torch.device) -> Tensor:
    """uint16 [K, len(span)]: 16-bit fields."""
    halves = _fields(keys, stream, tensor, span, device).contiguous().view(torch.uint16)
    offset = span.start % 8
    return halves[:, offset : offset + len(span)]


@cache
def _sign_table(device: torch.device) -> Tensor:
    """float32 [256, 8]: the signs that a byte's bits stand for, lowest bit first."""
    byte = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return (byte & 1).float().mul_(2).sub_(1)


@cache
def _normal_table(device: torch.device) -> Tensor:
    """float32 [65536]: see the module's text."""
    half = [NormalDist().inv_cdf(0.5 + (u + 0.5) / 65536) for u in range(32768)]
    sd = math.sqrt(math.fsum(z * z for z in half) / len(half))
    return torch.tensor([-z / sd for z in reversed(half)] + [z / sd for z in half], dtype=torch.float32, device=device)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    if index.device.type == "cpu":
        return torch.from_numpy(np.take(table.numpy(), index.numpy(), axis=0, mode="clip"))
    return table[index.long()]


def _scaled(
    law: Law, keys: Sequence[int], tensor: int, span: range, device: torch.device, c: Tensor | None = None
) -> Tensor:
    """float32 [len(keys), len(span)]: c * z, eagerly."""
    if law is Law.GAUSSIAN:
        z = _look_up(_normal_table(device), _halves(keys, law.value, tensor, span, device))
        return z if c is None else z.mul_(c)
    drawn = _fields(keys, law.value, tensor, span, device).contiguous().view(torch.uint8)
    table = _sign_table(device) if c is None else _sign_table(device) * c
    offset = span.start % 128
    return _look_up(table, drawn).flatten(1)[:, offset : offset + len(span)]


def directions(law: Law, keys: Sequence[int], tensor: int, span: range, device: torch.device) -> Tensor:
    """float32 [len(keys), len(span)]: elements `span` of the directions that `keys` stand for in one tensor."""
    if device.type == "cpu" and (len(keys) == 1 or len(span) >= ROW) and kernels.on_cpu.ready():
        z = torch.zeros(len(keys), len(span), dtype=torch.float32)
        for row, key in zip(z, keys, strict=True):
            axpy(law, row, row, key, tensor, 1.0, span.start)
        return z
    with kernels.on_cpu.eager():
        return _scaled(law, keys, tensor, span, device)


def rounding_bits(key: int, tensor: int, span: range, device: torch.device) -> Tensor:
    """int32 [len(span)], uniform on 0..65535: the randomness of a stochastic rounding."""
    return _halves([key], ROUNDING, tensor, span, device)[0].int()


def _axpy_signs(out: Tensor, base: Tensor, state: Tensor, first: Tensor, coefficient: Tensor) -> None:
    """out = base + coefficient * z over flat tensors, to be compiled: one pass over memory besides n / 8 bytes of bits."""
    count = base.numel()
    drawn = block_words(state, first, (count + 127) // 128)
    bit = (drawn[:, None] >> torch.arange(32, dtype=torch.int32, device=base.device)) & 1
    signs = (bit * 2 - 1).view(-1)[:count]
    out.copy_(base.float() + coefficient * signs)


def _axpy_eager(law: Law, out: Tensor, base: Tensor, key: int, tensor: int, coefficient: float, start: int) -> None:
    c = torch.tensor(coefficient, dtype=torch.float32)
    for at in range(0, len(base), CHUNK):
        rest = base[at : at + CHUNK]
        moved = _scaled(law, [key], tensor, range(start + at, start + at + len(rest)), base.device, c)[0]
        torch.add(rest, moved, out=out[at : at + CHUNK])


def axpy(law: Law, out: Tensor, base: Tensor, key: int, tensor: int, coefficient: float, start: int = 0) -> None:
    """out = base + float32(coefficient) * z(key), computed in float32 and rounded to `out`'s dtype.

    `out` and `base` are flat, contiguous and equally long (`out` may be `base`); `start` is the index of their first
    element in the whole tensor, so a tensor may be handled in pieces with the same result.
    """
    table = _normal_table(CPU) if law is Law.GAUSSIAN else None
    if kernels.on_cpu.run(KERNELS[law], out, base, start, tensor, key, coefficient, table):
        return
    if base.device.type != "cpu" and law is Law.RADEMACHER and start % 128 == 0:
        state = state_of([key], law.value, tensor, base.device)[0]
        numbers = torch.tensor(start // 128), torch.tensor(coefficient, dtype=torch.float32)
        if kernels.elsewhere.run(_axpy_signs, out, base, state, *(number.to(base.device) for number in numbers)):
            return
    with kernels.on_cpu.eager():
        _axpy_eager(law, out, base, key, tensor, coefficient, start)
