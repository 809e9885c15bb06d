"""The journal: a run's header and the float32 coefficients of every step, from which its weights follow.

Format 1, little-endian: b"ZOJ1", uint32 length, that many bytes of JSON (the header), uint32 CRC-32 of the JSON; then blocks
of 64 steps, each step `directions` float32, each full block followed by the CRC-32 of its bytes. The last block may be open:
its whole records count, a torn record does not, nor does anything that runs into zero bytes at the file's very end (what a
power cut can leave; a run recomputes it to the same bits). A coefficient of 0 is written as -0.0, so that no step looks like
that. A full block whose checksum is wrong is refused.

An SPSA step is 4 bytes and a sixteenth: 20,000 of them are 81 KB (MeZO, section 2.1, promises 0.1 MB).
"""

import json
import os
import struct
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError
from zo_objectives.estimators import ProjectedGradient
from zo_objectives.keys import direction_keys, fold_in, root_key
from zo_objectives.weights import Weights

MAGIC = b"ZOJ1"
BLOCK = 64  # steps
SYNC_SECONDS = 1.0
Header = dict[str, Any]


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


def _read_blocks(data: bytes, directions: int, path: Path) -> tuple[NDArray[np.float32], int]:
    """The steps' coefficients [steps, directions] and how many bytes of `data` hold them."""
    record, block = 4 * directions, 4 * directions * BLOCK
    parts, at = [], 0
    while len(data) - at >= block + 4:
        body = data[at : at + block]
        if zlib.crc32(body) != struct.unpack_from("<I", data, at + block)[0]:
            if not any(data[at + block :]):
                break
            first = at // (block + 4) * BLOCK
            raise InputError(f"{path} is damaged in steps {first} to {first + BLOCK - 1}. Restore it from a backup.")
        parts.append(body)
        at += block + 4
    tail = data[at : at + block - record]  # a full block counts once its checksum is there
    tail = tail[: len(tail) // record * record]
    while tail and tail[-1] == 0:
        tail = tail[:-record]
    values = np.frombuffer(b"".join((*parts, tail)), dtype="<f4").astype(np.float32)
    return values.reshape(-1, directions), at + len(tail)


def read(path: Path) -> tuple[Header, NDArray[np.float32]]:
    """A journal's header and its coefficients, float32 [steps, directions]. Raises InputError for any other file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the journal {path}: {error.strerror}.") from error
    header, start = _read_header(data, path)
    return header, _read_blocks(data[start:], header["directions"], path)[0]


def gradient_of(header: Header, t: int, coefficients: NDArray[np.float32]) -> ProjectedGradient:
    """Step `t` as it was applied: keys follow from the seed and the step."""
    key = fold_in(root_key(header["seed"]), t)
    return ProjectedGradient(key, direction_keys(key, len(coefficients)), coefficients)


def replay(header: Header, coefficients: NDArray[np.float32], weights: Weights, start: int = 0) -> None:
    """Applies the steps to `weights`, which must hold the base that the header names (or the state after `start` steps)."""
    if start == 0 and weights.fingerprint() != header["base"]:
        raise InputError(
            "The journal belongs to other weights: the base model's fingerprint differs. Give the model the run began with."
        )
    for t, row in enumerate(coefficients[start:], start):
        weights.ascend(t, gradient_of(header, t, row))


class Journal:
    """An open journal: `with Journal.open(path, header) as journal`. Appends go through at once, synced every second."""

    def __init__(self, path: Path, header: Header, coefficients: NDArray[np.float32], end: int) -> None:
        self.header = header
        self.coefficients = coefficients  # what was there at opening, to be replayed
        self._file = path.open("r+b")
        self._file.truncate(end)
        self._file.seek(end)
        self._steps = len(coefficients)
        open_steps = self._steps % BLOCK
        self._block = coefficients[len(coefficients) - open_steps :].astype("<f4").tobytes()
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
        coefficients, used = _read_blocks(data[start:], header["directions"], path)
        if at_most is not None and len(coefficients) > at_most:
            coefficients = coefficients[:at_most]
            used = 4 * coefficients.size + 4 * (at_most // BLOCK)
        return cls(path, found, coefficients, start + used)

    def append(self, coefficients: NDArray[np.float32]) -> None:
        """One step, before it is applied."""
        record = np.where(coefficients == 0, np.float32(-0.0), coefficients).astype("<f4").tobytes()
        self._block += record
        self._steps += 1
        if self._steps % BLOCK == 0:
            record += struct.pack("<I", zlib.crc32(self._block))
            self._block = b""
        self._file.write(record)
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

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


def _encode(header: Header) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _difference(found: Any, wanted: Any, key: str) -> str:
    """The first entry that differs, in words, down through nested mappings."""
    a, b = found.get(key), wanted.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
        inner = sorted(k for k in {*a, *b} if a.get(k) != b.get(k))[0]
        return f"{key}." + _difference(a, b, inner)
    return f"{key} was {a!r} there and is {b!r} now"
