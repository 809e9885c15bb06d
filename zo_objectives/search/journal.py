"""The journal: a run's header and, for every step, the float32 numbers from which its weights follow.

Format 1, little-endian: b"ZOJ1", uint32 length, that many bytes of JSON (the header), uint32 CRC-32 of the JSON; then blocks
of 64 steps, each full block followed by the CRC-32 of its bytes. A step is float32 numbers in this order:

    layer sizes    header["sizes"] = [groups, every]: `groups` numbers in step 0 and every `every` steps (0: in step 0 only)
    coefficients   header["directions"]: as many in every step, or [[first step, count], ...]; with header["parts"], so many
                   for each direction
    memory         header["memory"]: what the estimator remembers of the step (nothing where the header does not say)

A step that was left out is NaN, but for layer sizes that were measured before it failed.

The last block may be open: its whole records count, a torn record does not, nor does anything that runs into zero bytes
at the file's very end (what a power cut can leave; a run recomputes it to the same bits). A number 0 is written as -0.0, so
that no step looks like that. A full block whose checksum is wrong is refused.

An SPSA step is 4 bytes and a sixteenth: 20,000 of them are 81 KB (MeZO, section 2.1, promises 0.1 MB).
"""

import json
import os
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError
from zo_objectives.search.adaptive import Adaptive
from zo_objectives.search.estimators import Estimator, Memory, Pieces, ProjectedGradient, count_at
from zo_objectives.search.keys import direction_keys, fold_in, root_key
from zo_objectives.search.noise import SPEC
from zo_objectives.search.weights import Weights

MAGIC = b"ZOJ1"
BLOCK = 64  # steps
SYNC_SECONDS = 1.0
Header = dict[str, Any]
Numbers = NDArray[np.float32]
NOTHING: Numbers = np.zeros(0, dtype=np.float32)


class Record(NamedTuple):
    """One step: its coefficients, what the estimator remembers of it, and the layer sizes measured before it, if any."""

    coefficients: Numbers
    memory: Numbers = NOTHING
    sizes: Numbers = NOTHING

    @property
    def skipped(self) -> bool:
        """Whether the step was left out."""
        return bool(np.isnan(self.coefficients).any())


class Layout(NamedTuple):
    """How many numbers of each kind a step has."""

    directions: Pieces
    memory: int
    groups: int
    every: int

    @classmethod
    def of(cls, header: Header) -> Self:
        given = header["directions"]
        groups, every = header.get("sizes", (0, 0))
        pieces = ((0, given),) if isinstance(given, int) else tuple((s, n) for s, n in given)
        return cls(pieces, header.get("memory", 0), groups, every)

    def sized(self, t: int) -> int:
        """How many layer sizes step `t` has."""
        return self.groups if t == 0 or (self.every and t % self.every == 0) else 0

    def width(self, t: int) -> int:
        """Bytes of step `t`."""
        return 4 * (self.sized(t) + count_at(self.directions, t) + self.memory)

    def record(self, t: int, body: bytes) -> Record:
        numbers = np.frombuffer(body, dtype="<f4").astype(np.float32)
        first, last = self.sized(t), len(numbers) - self.memory
        return Record(numbers[first:last], numbers[last:], numbers[:first])


def header_for(weights: Weights, estimator: Estimator, seed: int, adaptive: Adaptive | None = None, **more: Any) -> Header:
    """The header of a run, with `more` of the caller's own entries (JSON)."""
    steady = len(estimator.counts) == 1
    header: Header = {
        "seed": seed,
        "directions": estimator.counts[0][1] if steady else [list(piece) for piece in estimator.counts],
        "base": weights.fingerprint(),
        "noise": SPEC,
        **more,
    }
    if estimator.remembers:
        header["memory"] = estimator.remembers
    if estimator.blocks:
        header["blocks"] = estimator.blocks
    if estimator.parts:
        header["parts"] = estimator.parts
    if adaptive is not None:
        header["sizes"] = [len(weights.sizes), adaptive.every]
    return header


def _read_header(data: bytes, path: Path) -> tuple[Header, int]:
    """The header and where the blocks begin."""
    if not data.startswith(MAGIC[:3]):
        raise InputError(f"{path} is not a journal. Give a run folder that `zo-objectives run` has written.")
    if not data.startswith(MAGIC):
        raise InputError(f"{path} has journal format {data[3:4]!r}; this version reads format 1. Use a newer version.")
    cure = "The run cannot be resumed: remove the folder and start again."
    if len(data) < 8:
        raise InputError(f"{path} ends inside its header. {cure}")
    (length,) = struct.unpack_from("<I", data, 4)
    text, check = data[8 : 8 + length], data[8 + length : 12 + length]
    if len(check) < 4 or zlib.crc32(text) != struct.unpack("<I", check)[0]:
        raise InputError(f"{path} has a damaged or unfinished header. {cure}")
    header: Header = json.loads(text)
    return header, 12 + length


def _read_blocks(data: bytes, layout: Layout, path: Path) -> tuple[list[Record], int]:
    """The steps' records and how many bytes of `data` hold them."""
    records: list[Record] = []
    at = 0
    while True:
        first = len(records)
        sizes = [layout.width(t) for t in range(first, first + BLOCK)]
        body = data[at : at + sum(sizes)]
        check = data[at + sum(sizes) : at + sum(sizes) + 4]
        full = len(check) == 4
        if full and zlib.crc32(body) != struct.unpack("<I", check)[0]:
            if any(data[at + sum(sizes) :]):
                raise InputError(f"{path} is damaged in steps {first} to {first + BLOCK - 1}. Restore it from a backup.")
            full = False
        if not full:  # a full block counts once its checksum is there
            sizes = _whole(sizes[:-1], body)
        for t, size in enumerate(sizes, first):
            records.append(layout.record(t, data[at : at + size]))
            at += size
        if not full:
            return records, at
        at += 4


def _whole(sizes: list[int], body: bytes) -> list[int]:
    """The sizes of the whole records that an open block begins with, less those that run into zero bytes."""
    ends = np.cumsum(sizes).tolist()
    while ends and (ends[-1] > len(body) or body[ends[-1] - 1] == 0):
        ends.pop()
    return sizes[: len(ends)]


def read(path: Path) -> tuple[Header, list[Record]]:
    """A journal's header and its steps. Raises InputError for any other file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the journal {path}: {error.strerror}.") from error
    header, start = _read_header(data, path)
    return header, _read_blocks(data[start:], Layout.of(header), path)[0]


def gradient_of(header: Header, t: int, coefficients: Numbers) -> ProjectedGradient:
    """Step `t` as it was applied: keys follow from the seed and the step."""
    key = fold_in(root_key(header["seed"]), t)
    group = t % header["blocks"] if header.get("blocks") else None
    parts = header.get("parts", 0)
    return ProjectedGradient(key, direction_keys(key, len(coefficients) // max(parts, 1)), coefficients, group, parts)


def replay(header: Header, records: Sequence[Record], weights: Weights, start: int = 0) -> Memory:
    """Applies the steps to `weights`, which must hold the base that the header names (or the state after `start` steps).

    Returns what the estimator remembers of the last one. Needs neither data nor a forward pass. Raises InputError for
    weights of another base and for a journal of another noise.
    """
    if header.get("noise", SPEC) != SPEC:
        raise InputError(f"The journal was made with noise {header['noise']!r}; this version has {SPEC!r}.")
    if start == 0 and weights.fingerprint() != header["base"]:
        raise InputError(
            "The journal belongs to other weights: the base model's fingerprint differs. Give the model the run began with."
        )
    for t, record in enumerate(records[start:], start):
        if len(record.sizes) and not np.isnan(record.sizes).any():
            weights.resize(record.sizes.tolist())
        if record.skipped:
            continue
        weights.ascend(t, gradient_of(header, t, record.coefficients))
    return memory_of(records)


def memory_of(records: Sequence[Record]) -> Memory:
    """What the estimator remembers of the last step that was taken."""
    last = next((r for r in reversed(records) if not r.skipped), None)
    return tuple(last.memory.tolist()) if last is not None else ()


class Journal:
    """An open journal: `with Journal.open(path, header) as journal`. Appends go through at once, synced every second."""

    def __init__(self, path: Path, header: Header, records: list[Record], end: int) -> None:
        self.header = header
        self.records = records  # what was there at opening, to be replayed
        self._file = path.open("r+b")
        self._file.truncate(end)
        self._file.seek(end)
        self._layout = Layout.of(header)
        self._steps = len(records)
        open_block = records[len(records) - len(records) % BLOCK :]
        self._block = b"".join(map(_bytes, open_block))
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: Path, header: Header, at_most: int | None = None) -> Self:
        """A new journal, or the one at `path` if its header is the same. Raises InputError naming what differs.

        Steps beyond `at_most` are cut off: what was not fully recorded elsewhere is taken again, to the same bits.
        """
        if not path.exists():
            text = _encode(header)
            temporary = path.with_suffix(".new")
            temporary.write_bytes(MAGIC + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text)))
            os.replace(temporary, path)
        data = path.read_bytes()
        found, start = _read_header(data, path)
        if differing := sorted(k for k in {*found, *header} if found.get(k) != header.get(k)):
            raise InputError(
                f"{path} belongs to another run: {_difference(found, header, differing[0])}."
                " Repeat the run's own settings to go on with it, or choose another --output."
            )
        records, used = _read_blocks(data[start:], Layout.of(header), path)
        if at_most is not None and len(records) > at_most:
            records = records[:at_most]
            used = sum(map(Layout.of(header).width, range(at_most))) + 4 * (at_most // BLOCK)
        return cls(path, found, records, start + used)

    def append(self, record: Record) -> None:
        """One step, before it is applied. Raises ValueError for one that does not fit the header."""
        body = _bytes(record)
        if len(body) != self._layout.width(self._steps) or len(record.sizes) != self._layout.sized(self._steps):
            raise ValueError(
                f"Step {self._steps} has {len(body) // 4} numbers, which is not what the journal's header says."
            )
        self._block += body
        self._steps += 1
        if self._steps % BLOCK == 0:
            body += struct.pack("<I", zlib.crc32(self._block))
            self._block = b""
        self._file.write(body)
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def skip(self, sizes: Numbers = NOTHING) -> None:
        """One step that is left out, with the layer sizes that were measured before it failed, if any."""
        t, layout = self._steps, self._layout
        widths = (count_at(layout.directions, t), layout.memory, layout.sized(t))
        coefficients, memory, unknown = (np.full(n, np.nan, dtype=np.float32) for n in widths)
        self.append(Record(coefficients, memory, sizes if len(sizes) else unknown))

    def sync(self) -> None:
        """Returns once everything appended is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sync()
        self._file.close()


def _bytes(record: Record) -> bytes:
    numbers = np.concatenate((record.sizes, record.coefficients, record.memory))
    return np.where(numbers == 0, np.float32(-0.0), numbers).astype("<f4").tobytes()


def _encode(header: Header) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _difference(found: Any, wanted: Any, key: str) -> str:
    """The first entry that differs, in words, down through nested mappings."""
    a, b = found.get(key), wanted.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
        inner = sorted(k for k in {*a, *b} if a.get(k) != b.get(k))[0]
        return f"{key}." + _difference(a, b, inner)
    return f"{key} was {a!r} there and is {b!r} now"
