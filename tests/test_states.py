"""Stored hidden states against one tensor: any order of appending and reading, in memory, spilled, and partly both."""

import gc
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zo_objectives import states
from zo_objectives.errors import RunError
from zo_objectives.states import States

WIDTH = 3
ROW = 4 * WIDTH  # bytes in float32


def rows(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    limit=st.one_of(st.integers(0, 40 * ROW), st.just(1 << 20)),
    block=st.integers(1, 10 * ROW),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    data=st.data(),
)
def test_what_is_read_has_the_bits_that_were_appended(
    sizes: list[int], limit: int, block: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    whole = torch.empty(0, WIDTH, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "BLOCK", block)
        kept = States(limit)
        for seed, size in enumerate(sizes):
            added = rows(size, seed, dtype)
            assert kept.append(added) == range(len(whole), len(whole) + size)
            whole = torch.cat((whole, added))
            assert kept.memory <= limit
            if not len(whole):
                continue
            shape = data.draw(st.sampled_from([(0,), (1,), (7,), (2, 4)]))
            numbers = np.random.default_rng(seed).integers(0, len(whole), shape)
            found = kept.take(numbers)
            assert found.dtype == dtype and torch.equal(found, whole[torch.from_numpy(numbers)])
        assert torch.equal(kept.take(np.arange(len(kept))), whole) or not len(whole)
        assert (kept.spilled > 0) == (kept.memory // (WIDTH * dtype.itemsize) < len(whole))


def test_appending_does_not_copy_what_is_there() -> None:
    kept = States(1 << 30)
    kept.append(rows(1))
    blocks = [part.block.data_ptr() for part in kept._parts]
    for seed in range(20):
        kept.append(rows(1 << 16, seed))
    assert [part.block.data_ptr() for part in kept._parts][:1] == blocks
    assert len(kept._parts) < 5


def test_rows_read_before_stay_as_they_are() -> None:
    for limit in (1 << 20, 0):
        kept = States(limit)
        kept.append(rows(4))
        before = kept.take(np.arange(4))
        kept.append(rows(3000, 1))
        before.zero_()
        assert torch.equal(kept.take(np.arange(4)), rows(4)), "a copy, not a window"


def test_the_file_goes_with_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = States(0)
    kept.append(rows(5000))
    found = kept.take(np.arange(5000))
    file = kept._parts[0].file
    del kept
    gc.collect()
    assert file.closed
    assert list(tmp_path.iterdir()) == []
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()
    assert torch.equal(found, rows(5000))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """While open, no file may grow beyond `size` bytes: what a full disk does, for this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_the_store_goes_on() -> None:
    kept = States(0)
    kept.append(rows(10))
    with files_of_at_most(1000), pytest.raises(RunError, match=r"temporary file cannot grow.*TMPDIR.*trunk_mb"):
        kept.append(rows(1000, 1))
    assert len(kept) == 10
    assert kept.append(rows(1000, 2)).start == 10
    assert torch.equal(kept.take(np.arange(1010)), torch.cat((rows(10), rows(1000, 2))))


def test_no_temporary_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match="TMPDIR"):
        States(0).append(rows(1))
