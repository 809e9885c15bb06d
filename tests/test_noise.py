"""Noise spec v1: Random123's known answers, a plain re-implementation of the text, and the rounding made with it."""

import math
from hashlib import sha256
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import CPU, FIXED, LAWS

from zo_objectives.search import keys, noise
from zo_objectives.search.noise import Law
from zo_objectives.search.rounding import round_into, round_stochastically

ONES = 0xFFFFFFFF
KNOWN = [  # Random123, kat_vectors, philox4x32 with 10 rounds: counter, key, words
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KEYS = st.integers(0, 2**64 - 1)
BITS_16 = torch.arange(1 << 16, dtype=torch.int32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert keys.philox(counter, key) == expected
    drawn = noise._philox([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    assert tuple(int(word) for word in drawn) == expected
    arrays = keys.philox(*(tuple(np.array([[c]], dtype=np.uint64) for c in part) for part in (counter, key)))
    assert tuple(int(word.item()) for word in arrays) == expected


# The specification once more, written from the text of noise.py, one element at a time.


def field(key: int, stream: int, tensor: int, element: int, width: int) -> int:
    """The element's bits, `width` of them: fields of a 128-bit block from the lowest, words 0..3."""
    block, position = divmod(element, 128 // width)
    counter = (block, stream, tensor % 2**32, tensor >> 32)
    low_to_high = keys.philox(counter, (key % 2**32, key >> 32))
    whole = sum(word << (32 * i) for i, word in enumerate(low_to_high))
    return whole >> (position * width) & ((1 << width) - 1)


def quantile(u: int) -> float:
    return NormalDist().inv_cdf((u + 0.5) / 2**16)


def spec_direction(law: Law, key: int, tensor: int, element: int) -> float:
    if law is Law.RADEMACHER:
        return 1.0 if field(key, 1, tensor, element, 1) else -1.0
    return quantile(field(key, 2, tensor, element, 16)) / SD


SD = math.sqrt(math.fsum(quantile(u) ** 2 for u in range(2**16)) / 2**16)


@pytest.mark.parametrize("law", LAWS)
@FIXED
@given(key=KEYS, tensor=KEYS, start=st.integers(0, 2**31), length=st.integers(0, 300))
def test_the_text_is_the_code(law: Law, key: int, tensor: int, start: int, length: int) -> None:
    span = range(start, start + length)
    expected = torch.tensor([spec_direction(law, key, tensor, i) for i in span])
    found = noise.directions(law, [key], tensor, span, CPU)
    assert found.dtype == torch.float32 and found.shape == (1, length)
    if law is Law.RADEMACHER:
        assert torch.equal(found[0], expected)
    else:  # a quantile may differ in its last bit, as 1 - p and p are rounded differently
        torch.testing.assert_close(found[0], expected, rtol=3e-7, atol=1e-9)
    uniform = [field(key, 3, tensor, i, 16) for i in span]
    assert noise.rounding_bits(key, tensor, span, CPU).tolist() == uniform


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("span", [range(0), range(3, 200), range(700, 9000)])
def test_several_keys_are_several_rows(law: Law, span: range) -> None:
    some = [5, 6 + 2**40]
    rows = noise.directions(law, some, 9, span, CPU)
    assert rows.shape == (2, len(span))
    assert torch.equal(rows, torch.stack([noise.directions(law, [key], 9, span, CPU)[0] for key in some]))


@FIXED
@given(key=KEYS, tensor=KEYS, first=st.integers(0, 2**32 - 21), count=st.integers(0, 20), stream=st.integers(1, 3))
def test_blocks_are_the_same_drawn_in_every_way(key: int, tensor: int, first: int, count: int, stream: int) -> None:
    """One by one, as arrays, and as tensors, which is what other devices do."""
    several = [key, key ^ 1]
    expected = noise.block_words(noise.state_of(several, stream, tensor, CPU), torch.tensor(first), count)
    blocks = range(first, first + count)
    assert torch.equal(noise._drawn(several, stream, tensor, blocks), expected)
    assert torch.equal(noise._drawn([key], stream, tensor, blocks)[0], expected[0])


def test_keys_follow_the_text_for_ever() -> None:
    words = keys.philox((7, 0, keys.FOLD, 0), (5, 0))
    assert keys.fold_in(5, 7) == words[0] + (words[1] << 32)
    assert keys.direction_keys(5, 9)[7] == keys.fold_in(5, 7)
    assert keys.root_key(-1) == keys.fold_in(2**64 - 1, 0) != keys.root_key(1)
    assert keys.name_key("model.norm.weight") == 0x3BBD05D3E6D4D252  # pinned: a journal depends on it


def test_the_table_of_quantiles_is_pinned() -> None:
    table = noise._normal_table(CPU)
    assert table.double().square().mean().item() == pytest.approx(1, abs=1e-7)
    assert table.double().mean().item() == 0 and table.abs().max() < 4.33
    kurtosis = table.double().pow(4).mean().item() - 3
    assert kurtosis == pytest.approx(-0.001, abs=5e-4)
    assert sha256(table.numpy().tobytes()).hexdigest()[:16] == "8babbcaf96568f10"


def test_the_table_does_not_depend_on_the_library_of_logarithms() -> None:
    """No exact entry is near a point where its rounding to float32 turns: errors of 1e-13 (its own are 1e-15) move none."""
    exact = np.array([quantile(u) / SD for u in range(2**16)])
    rounded = noise._normal_table(CPU).numpy()
    for side in (-math.inf, math.inf):
        turn = (rounded.astype(float) + np.nextafter(rounded, np.float32(side)).astype(float)) / 2
        assert np.abs(turn / exact - 1).min() > 1e-12


def test_moments() -> None:
    n = 1 << 18
    for law, fourth in ((Law.RADEMACHER, 1), (Law.GAUSSIAN, 2.999)):
        z = noise.directions(law, [1], 2, range(n), CPU)[0].double()
        assert abs(z.mean()) < 5 / math.sqrt(n)
        assert abs(z.square().mean() - 1) <= 5 * math.sqrt((fourth - 1) / n)
        assert abs(z.pow(4).mean() - fourth) <= 5 * math.sqrt(96 / n) * (fourth > 1)
        assert abs((z[1:] * z[:-1]).mean()) < 5 / math.sqrt(n)  # neighbours
        assert abs((z[128:] * z[:-128]).mean()) < 5 / math.sqrt(n)  # blocks
    u = noise.rounding_bits(1, 2, range(n), CPU)
    assert u.min() >= 0 and u.max() <= 65535
    assert abs(u.double().mean() - 32767.5) < 5 * 65536 / math.sqrt(12 * n)


# Stochastic rounding.


def neighbours(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """The nearest numbers of `dtype` at or below and at or above `value`."""
    nearest = torch.tensor(value).to(dtype)
    n = float(nearest)
    if n == value:
        return n, n
    other = float(torch.nextafter(nearest, torch.tensor(math.copysign(math.inf, value - n), dtype=dtype)))
    return min(n, other), max(n, other)


SAMPLES = [
    1.0,
    1.001,
    -1.001,
    3.14159,
    -0.1,
    1e-3,
    -777.7,
    6e-5,
    6.2e-5,
    -6.1035e-5,
    3.3e-6,
    -3.3e-6,
    5.9e-8,
    1e-8,
    -1e-8,
    0.0,
]


@pytest.mark.parametrize("value", SAMPLES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_unbiased_and_goes_to_a_neighbour(value: float, dtype: torch.dtype) -> None:
    exact = float(torch.tensor(value))
    rounded = round_stochastically(torch.full((1 << 16,), value), dtype, BITS_16)
    assert rounded.dtype == dtype
    low, high = neighbours(exact, dtype)
    assert set(rounded.double().tolist()) <= {low, high}
    bias = float(rounded.double().mean()) - exact  # over all bits there are, so nothing is left to chance
    assert abs(bias) <= (high - low) * 2**-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_keeps_what_the_dtype_can_hold(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    every = every[every.isfinite()].float()
    for u in (0, 1, 7, 8, 32768, 65534, 65535):
        rounded = round_stochastically(every, dtype, torch.full(every.shape, u, dtype=torch.int32))
        assert torch.equal(rounded.float(), every)


@FIXED
@given(value=st.floats(-60000, 60000, width=32) | st.floats(-(2**-13), 2**-13, width=32), u=st.integers(0, 65535))
def test_rounding_never_passes_a_neighbour(value: float, u: int) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        rounded = round_stochastically(torch.tensor([value]), dtype, torch.tensor([u], dtype=torch.int32))
        assert float(rounded) in neighbours(value, dtype)


def test_rounding_leaves_float32_alone() -> None:
    values = torch.tensor([0.1, -3e-42])
    assert round_stochastically(values, torch.float32, BITS_16[:2]) is values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_into_is_rounding_with_the_tensors_bits_in_any_pieces(dtype: torch.dtype) -> None:
    values = torch.linspace(-1, 1, 1000).pow(9)
    expected = round_stochastically(values, dtype, noise.rounding_bits(5, 8, range(40, 1040), CPU))
    for cut in (0, 1, 128, 999):
        out = torch.empty(1000, dtype=dtype)
        round_into(out[:cut], values[:cut], 5, 8, 40)
        round_into(out[cut:], values[cut:], 5, 8, 40 + cut)
        assert torch.equal(out, expected)
