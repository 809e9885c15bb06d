"""Stochastic rounding of float32 numbers to 16 bits, unbiased, with randomness that replays (noise.py, stream 3)."""

import torch
from torch import Tensor

from zo_objectives.search import kernels, noise


def round_stochastically(values: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """Float32 `values` in `dtype`, up or down with the probabilities that make the mean exact (to 2**-13 of a gap).

    `bits` are uniform integers on 0..65535. bfloat16 keeps float32's upper 16 bits; float16 drops 13 bits, and has a
    fixed gap of 2**-24 below 2**-14.
    """
    if dtype == torch.float32:
        return values
    drop = 16 if dtype == torch.bfloat16 else 13
    raised = values.view(torch.int32) + (bits >> (16 - drop))
    rounded = (raised >> drop << drop).view(torch.float32)
    if dtype == torch.float16:
        small = torch.floor(values * 2.0**24 + (bits >> 3) * 2.0**-13) * 2.0**-24
        rounded = torch.where(values.abs() < 2.0**-14, small, rounded)
    return rounded.to(dtype)


def _round(out: Tensor, values: Tensor, state: Tensor, first: Tensor) -> None:
    """`round_into` over flat tensors that begin with block `first` of the stream, to be compiled."""
    words = noise.block_words(state, first, (values.numel() + 7) // 8)
    bits = torch.stack((words & 0xFFFF, (words >> 16) & 0xFFFF), dim=-1).view(-1)[: values.numel()]
    out.copy_(round_stochastically(values, out.dtype, bits))


def round_into(out: Tensor, values: Tensor, key: int, tensor: int, start: int = 0) -> None:
    """out = float32 `values` in `out`'s dtype, each rounded with the bits of (key, tensor, its index), so in pieces as well.

    Both are flat and equally long; `start` is the index of their first element in the whole tensor. If `out` is float32 too,
    it gets a copy.
    """
    if out.dtype == torch.float32:
        out.copy_(values)
        return
    if kernels.on_cpu.run("round", out, values, start, tensor, key):
        return
    if values.device.type != "cpu" and start % 8 == 0:
        state = noise.state_of([key], noise.ROUNDING, tensor, values.device)[0]
        if kernels.elsewhere.run(_round, out, values, state, torch.tensor(start // 8, device=values.device)):
            return
    with kernels.on_cpu.eager():
        for at in range(0, len(values), noise.CHUNK):
            piece = values[at : at + noise.CHUNK]
            bits = noise.rounding_bits(key, tensor, range(start + at, start + at + len(piece)), values.device)
            out[at : at + noise.CHUNK].copy_(round_stochastically(piece, out.dtype, bits))
