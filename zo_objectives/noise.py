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

Both laws are integer arithmetic and look-ups, so the bits depend on no device, thread count, chunk or library version.
`axpy` is the one fused operation on it. It runs eagerly in cache-sized chunks and moves to a kernel of `torch.compile` once
that would pay for itself; both give the same bits, because c * z is exact for z = +-1 (Gaussian noise stays eager).
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

from zo_objectives.keys import MULTIPLIERS, ROUNDS, WEYL, WORD, words

SPEC = "zo-noise-v1"
CHUNK = 1 << 18  # elements an eager pass handles at a time: about what stays in a core's cache
PAYBACK = 20.0  # seconds spent in eager passes before compiling, which costs about as much


class Law(Enum):
    """A distribution with mean 0 and variance 1; the value is its stream."""

    RADEMACHER = 1
    GAUSSIAN = 2


ROUNDING = 3


def _philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`keys.philox` on int64 tensors that hold 32-bit words; a product wraps in 64 bits and loses nothing."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def _blocks(state: Tensor, first: Tensor, count: int) -> Tensor:
    """Words of `count` blocks from `first`, int32 [..., 4 * count]; `state` [..., 5]: stream, tensor, key (low, high)."""
    index = torch.arange(count, device=state.device) + first
    stream, low, high, *key = state.unsqueeze(-1).unbind(-2)
    index, stream, low, high = torch.broadcast_tensors(index, stream, low, high)  # type: ignore[no-untyped-call]
    drawn = torch.stack(_philox((index, stream, low, high), key), dim=-1)
    return drawn.to(torch.int32).flatten(-2)


def _state(keys: Sequence[int], stream: int, tensor: int, device: torch.device) -> Tensor:
    return torch.tensor([(stream, *words(tensor), *words(key)) for key in keys], dtype=torch.int64, device=device)


def _fields(keys: Sequence[int], stream: int, tensor: int, span: range, per_block: int, device: torch.device) -> Tensor:
    """The words of the blocks that cover `span`, as int32 [K, 4 * blocks], with the position of the span's first element."""
    first, last = span.start // per_block, -(-span.stop // per_block)
    state = _state(keys, stream, tensor, device)
    return _blocks(state, torch.tensor(first, device=device), max(last - first, 0))


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
    return torch.tensor([-z / sd for z in reversed(half)] + [z / sd for z in half], device=device)


def _halves(keys: Sequence[int], stream: int, tensor: int, span: range, device: torch.device) -> Tensor:
    """int32 [K, len(span)]: 16-bit fields."""
    drawn = _fields(keys, stream, tensor, span, 8, device)
    halves = torch.stack((drawn & 0xFFFF, (drawn >> 16) & 0xFFFF), dim=-1).flatten(-2)
    offset = span.start % 8
    return halves[:, offset : offset + len(span)]


def directions(law: Law, keys: Sequence[int], tensor: int, span: range, device: torch.device) -> Tensor:
    """float32 [len(keys), len(span)]: elements `span` of the directions that `keys` stand for in one tensor."""
    if law is Law.GAUSSIAN:
        return _normal_table(device)[_halves(keys, law.value, tensor, span, device).long()]
    drawn = _fields(keys, law.value, tensor, span, 128, device).contiguous().view(torch.uint8)
    signs = torch.nn.functional.embedding(drawn.int(), _sign_table(device)).flatten(-2)
    offset = span.start % 128
    return signs[:, offset : offset + len(span)]


def rounding_bits(key: int, tensor: int, span: range, device: torch.device) -> Tensor:
    """int32 [len(span)], uniform on 0..65535: the randomness of a stochastic rounding."""
    return _halves([key], ROUNDING, tensor, span, device)[0]


def _axpy_signs(out: Tensor, base: Tensor, state: Tensor, first: Tensor, coefficient: Tensor) -> None:
    """out = base + coefficient * z over flat tensors, to be compiled: one pass over memory besides n / 8 bytes of bits."""
    count = base.numel()
    drawn = _blocks(state, first, (count + 127) // 128)
    bit = (drawn[:, None] >> torch.arange(32, dtype=torch.int32, device=base.device)) & 1
    signs = (bit * 2 - 1).view(-1)[:count]
    out.copy_(base.float() + coefficient * signs)


def _axpy_eager(law: Law, out: Tensor, base: Tensor, key: int, tensor: int, coefficient: float, span: range) -> None:
    c = torch.tensor(coefficient, dtype=torch.float32)
    for start in range(0, len(span), CHUNK):
        stop = min(start + CHUNK, len(span))
        part = directions(law, [key], tensor, span[start:stop], base.device)[0]
        out[start:stop].copy_(part.mul_(c).add_(base[start:stop]))


class _Compiler:
    """Decides when `axpy` moves from eager chunks to the compiled kernel; holds no state that changes a bit."""

    def __init__(self) -> None:
        self.spent = 0.0  # seconds in eager passes so far
        self.kernel: Callable[..., None] | None = None
        self.broken = False

    def ready(self, law: Law, span: range) -> bool:
        """Whether this pass should run compiled: signs only, on a block's edge, and worth compiling."""
        return law is Law.RADEMACHER and span.start % 128 == 0 and not self.broken and self.spent > PAYBACK

    def run(self, *arguments: Tensor) -> bool:
        """Runs the compiled kernel; False, once and for all, where this machine cannot compile."""
        try:
            if self.kernel is None:
                self.kernel = torch.compile(_axpy_signs, dynamic=True)
            self.kernel(*arguments)
        except Exception as error:
            self.broken = True
            warnings.warn(f"torch.compile does not work here ({type(error).__name__}); noise stays eager.", stacklevel=3)
        return not self.broken


compiler = _Compiler()


def axpy(law: Law, out: Tensor, base: Tensor, key: int, tensor: int, coefficient: float, start: int = 0) -> None:
    """out = base + float32(coefficient) * z(key), computed in float32 and rounded to `out`'s dtype.

    `out` and `base` are flat, contiguous and equally long (`out` may be `base`); `start` is the index of their first
    element in the whole tensor, so a tensor may be handled in pieces with the same result.
    """
    span = range(start, start + base.numel())
    if compiler.ready(law, span):
        state = _state([key], law.value, tensor, base.device)[0]
        first = torch.tensor(start // 128, device=base.device)
        if compiler.run(out, base, state, first, torch.tensor(coefficient, dtype=torch.float32, device=base.device)):
            return
    began = time.perf_counter()
    _axpy_eager(law, out, base, key, tensor, coefficient, span)
    compiler.spent += time.perf_counter() - began
