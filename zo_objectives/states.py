"""Stored hidden states: rows appended and read by number, in memory up to a limit and in a temporary file beyond it.

Blocks in memory grow with what is stored and are never copied, so appending n rows costs O(n). The file is written through
and read by mapping, so its pages are the system's to keep or drop; it lies in the temporary folder (environment variable
TMPDIR), has no name where the system allows that, and goes with the object or the process, however that ends.
"""

import mmap
import sys
import tempfile
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zo_objectives.errors import RunError

BLOCK = 1 << 22  # bytes of the first block in memory; each later one is as large as all before


class _Memory:
    """A block of rows on one device."""

    def __init__(self, like: Tensor, capacity: int) -> None:
        self.block, self.filled = like.new_empty(capacity, like.shape[1]), 0

    @property
    def room(self) -> int:
        return len(self.block) - self.filled

    def put(self, rows: Tensor) -> None:
        self.block[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def take(self, numbers: Tensor) -> Tensor:
        return self.block[numbers.to(self.block.device)]


class _File:
    """Rows in a temporary file."""

    room = sys.maxsize

    def __init__(self, like: Tensor) -> None:
        self.like, self.filled, self.mapped = like, 0, like
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # open as long as this object lives
        weakref.finalize(self, self.file.close)

    def put(self, rows: Tensor) -> None:
        left = rows.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
        self.file.seek(self.filled * rows[0].nbytes)  # behind the last whole row, should an earlier write have failed
        while left:
            left = left[self.file.write(left) :]
        self.filled += len(rows)

    def take(self, numbers: Tensor) -> Tensor:
        if len(self.mapped) < self.filled:
            width = self.like.shape[1]
            buffer = mmap.mmap(self.file.fileno(), self.filled * width * self.like.element_size())
            self.mapped = torch.frombuffer(buffer, dtype=self.like.dtype).view(self.filled, width)
        return self.mapped[numbers].to(self.like.device)


class States:
    """Rows [d] of hidden states, numbered from 0 in the order in which they come; at most `limit` bytes are in memory.

    What is read has the bits that were appended, wherever they lay.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self._parts: list[_Memory | _File] = []  # a file comes last
        self._starts: list[int] = []  # the number of each part's first row
        self._like = torch.empty(0, 0)

    def __len__(self) -> int:
        return self.count

    @property
    def memory(self) -> int:
        """The bytes that are taken in memory."""
        return sum(part.block.nbytes for part in self._parts if isinstance(part, _Memory))

    @property
    def spilled(self) -> int:
        """How many rows are in the file."""
        return sum(part.filled for part in self._parts if isinstance(part, _File))

    def append(self, rows: Tensor) -> range:
        """Stores rows [n, d] and returns their numbers. Raises RunError where the file cannot grow."""
        first = self.count
        while len(rows):
            try:
                part = self._with_room(rows)
                part.put(taken := rows[: part.room])
            except OSError as error:
                raise RunError(
                    f"No room for the hidden states below what is tuned: {self.limit >> 20} MiB of memory are full, and a"
                    f" temporary file cannot grow: {error}. Free some disk, point TMPDIR to a folder that has room, or raise"
                    " trunk_mb."
                ) from error
            self.count += len(taken)
            rows = rows[len(taken) :]
        return range(first, self.count)

    def _with_room(self, rows: Tensor) -> _Memory | _File:
        if self._parts and self._parts[-1].room:
            return self._parts[-1]
        taken = self.memory
        capacity = min(max(taken, BLOCK), self.limit - taken) // rows[0].nbytes
        self._like = rows[:0].clone()
        self._parts.append(_Memory(self._like, capacity) if capacity else _File(self._like))
        self._starts.append(self.count)
        return self._parts[-1]

    def take(self, numbers: NDArray[np.int64]) -> Tensor:
        """The rows [*numbers.shape, d] with these numbers."""
        flat = numbers.reshape(-1)
        if len(self._parts) == 1:
            rows = self._parts[0].take(torch.from_numpy(flat))
        else:
            rows = self._like.new_empty(len(flat), self._like.shape[1])
            owner = np.searchsorted(self._starts, flat, side="right") - 1
            for k in np.unique(owner):
                place = np.flatnonzero(owner == k)
                found = self._parts[k].take(torch.from_numpy(flat[place] - self._starts[k]))
                rows[torch.from_numpy(place).to(rows.device)] = found
        return rows.view(*numbers.shape, rows.shape[1])
