"""The journal's format, read back by a parser of the test's own, and everything that may have happened to a file."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small import FIXED, Tiny, coefficients, header_of, records, sgd, weights_of

from zo_objectives.errors import InputError
from zo_objectives.search import journal
from zo_objectives.search.adaptive import Adaptive, parameter_norms
from zo_objectives.search.estimators import OnePoint, RoundRobin, Spsa
from zo_objectives.search.geometry import Dense
from zo_objectives.search.journal import Journal, Record
from zo_objectives.search.keys import fold_in, root_key
from zo_objectives.search.layers import by_layer
from zo_objectives.search.weights import Weights

HEADER = {"seed": 3, "directions": 2, "base": "0ff", "config": {"model": {"name": "é"}, "steps": 10}}
Rows = NDArray[np.float32]


def rows(steps: int, directions: int = 2) -> Rows:
    return np.arange(1, steps * directions + 1, dtype=np.float32).reshape(steps, directions) / 8


def write(path: Path, values: Rows, header: dict[str, Any] = HEADER) -> bytes:
    with Journal.open(path, header) as opened:
        for row in values:
            opened.append(Record(row))
    return path.read_bytes()


def parse(data: bytes) -> tuple[dict[str, Any], list[list[float]]]:
    """The format as the module's text tells it, byte by byte."""
    assert data[:4] == b"ZOJ1"
    (length,) = struct.unpack("<I", data[4:8])
    text = data[8 : 8 + length]
    assert struct.unpack("<I", data[8 + length : 12 + length]) == (zlib.crc32(text),)
    header, rest, steps = json.loads(text), data[12 + length :], []
    while rest:
        block = []
        start = rest
        while rest and len(block) < 64:
            block.append(list(struct.unpack(f"<{header['directions']}f", rest[: 4 * header["directions"]])))
            rest = rest[4 * header["directions"] :]
        if len(block) == 64:
            assert struct.unpack("<I", rest[:4]) == (zlib.crc32(start[: len(start) - len(rest)]),)
            rest = rest[4:]
        steps += block
    return header, steps


COEFFICIENT = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda x: x == 0 or abs(x) > 1e-37)


@FIXED
@given(steps=st.integers(0, 200), directions=st.integers(1, 5), first=COEFFICIENT, cut=st.integers(0, 200), data=st.data())
def test_the_format_is_the_text(
    steps: int, directions: int, first: float, cut: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("format") / "journal"
    header = HEADER | {"directions": directions}
    values = rows(steps, directions)
    values[: steps // 2] = first
    values[steps - data.draw(st.integers(0, steps)) :, -1] = 0.0  # ties, at the end too
    write(path, values[:cut], header)
    whole = write(path, values[cut:], header)  # opened again, and appended to
    assert parse(whole) == (header, values.tolist())
    found, steps_read = journal.read(path)
    assert found == header and len(steps_read) == steps
    assert all(r.coefficients.dtype == np.float32 for r in steps_read)
    assert np.array_equal(coefficients(steps_read).reshape(-1, directions), values)
    again = path.with_name("at_once")
    assert write(again, values, header) == whole


def test_an_open_journal_is_on_its_way_to_the_disk_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "journal", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(len(path.read_bytes())))
    with Journal.open(path, HEADER) as opened:
        assert len(opened.records) == 0
        for count, row in enumerate(rows(3), 1):
            opened.append(Record(row))
            assert len(journal.read(path)[1]) == count
        assert synced == []
        monkeypatch.setattr(journal, "SYNC_SECONDS", -1.0)
        opened.append(Record(rows(1)[0]))
        assert synced == [len(path.read_bytes())]
    assert len(synced) == 2  # and at the end
    assert [p.name for p in tmp_path.iterdir()] == ["journal"]


def test_opening_gives_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "journal", rows(70))
    with Journal.open(tmp_path / "journal", HEADER) as opened:
        assert np.array_equal(coefficients(opened.records), rows(70)) and opened.header == HEADER


CHANGES = [
    ({"seed": 4}, "seed was 3 there and is 4 now"),
    ({"base": "1ff"}, "base was '0ff' there and is '1ff' now"),
    ({"config": {"model": {"name": "e"}, "steps": 10}}, "config.model.name was 'é' there and is 'e' now"),
    ({"config": {"model": {"name": "é"}}}, "config.steps was 10 there and is None now"),
    ({"more": 1}, "more was None there and is 1 now"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_another_runs_header_is_refused_by_the_setting_that_differs(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    before = write(path, rows(3))
    with pytest.raises(InputError, match=message):
        Journal.open(path, HEADER | change)
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", [0, 63, 64, 127])
def test_a_flipped_bit_in_a_closed_block_is_refused_by_its_steps(step: int, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = bytearray(write(path, rows(130)))
    start = len(data) - (130 * 8 + 2 * 4)
    data[start + step * 8 + step // 64 * 4] ^= 1
    path.write_bytes(data)
    first = step // 64 * 64
    for attempt in (journal.read, lambda p: Journal.open(p, HEADER)):
        with pytest.raises(InputError, match=f"damaged in steps {first} to {first + 63}"):
            attempt(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("steps", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("lost", range(1, 8))
def test_a_torn_tail_is_dropped_and_written_again(steps: int, lost: int, tmp_path: Path) -> None:
    path, values = tmp_path / "journal", rows(steps)
    whole = write(path, values)
    path.write_bytes(whole[:-lost])
    kept = coefficients(journal.read(path)[1])
    assert len(kept) == steps - 1 and np.array_equal(kept, values[:-1])
    assert write(path, values[steps - 1 :]) == whole


@pytest.mark.parametrize("zeros", [1, 8, 200, 4096])
@pytest.mark.parametrize("end", range(9))
@pytest.mark.parametrize("steps", [5, 64, 66])
def test_zeros_that_a_power_cut_leaves_are_dropped(zeros: int, end: int, steps: int, tmp_path: Path) -> None:
    """A file may have its new length before its new data, from any byte on; what is read is a prefix all the same."""
    path, values = tmp_path / "journal", rows(steps)
    whole = write(path, values)
    path.write_bytes(whole[: len(whole) - end] + bytes(end + zeros))
    if steps == 64 and end in (1, 2, 3):
        with pytest.raises(InputError, match="damaged in steps 0 to 63"):  # inside a checksum: refused, not misread
            journal.read(path)
        return
    kept = coefficients(journal.read(path)[1])
    assert steps - 2 <= len(kept) <= steps and np.array_equal(kept, values[: len(kept)])
    assert write(path, values[len(kept) :]) == whole


def test_zeros_do_not_excuse_a_damaged_block(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = bytearray(write(path, rows(64)))
    data[-10] ^= 1
    path.write_bytes(bytes(data) + bytes(4096))
    with pytest.raises(InputError, match="damaged in steps 0 to 63"):
        journal.read(path)


def test_steps_that_are_ties_count(tmp_path: Path) -> None:
    """Momentum and weight decay move the weights in them: they are not a power cut's zeros."""
    values = np.zeros((5, 2), dtype=np.float32)
    write(tmp_path / "journal", values)
    assert np.array_equal(coefficients(journal.read(tmp_path / "journal")[1]), values)


FOREIGN = [b"", b"ZO", b"PK\x03\x04 something else", b"seed: 3\n"]


@pytest.mark.parametrize("data", FOREIGN)
def test_another_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InputError, match="file is not a journal"):
        journal.read(tmp_path / "file")
    with pytest.raises(InputError, match="file is not a journal"):
        Journal.open(tmp_path / "file", HEADER)
    assert (tmp_path / "file").read_bytes() == data


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read the journal .*nowhere: No such file"):
        journal.read(tmp_path / "nowhere")


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = write(path, rows(3))
    path.write_bytes(b"ZOJ2" + data[4:])
    with pytest.raises(InputError, match=r"format b'2'; this version reads format 1"):
        journal.read(path)


def test_half_a_header_is_refused_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = write(path, rows(0))
    for end in range(4, len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match="header"):
            journal.read(path)
    path.write_bytes(data[:20] + b"!" + data[21:])
    with pytest.raises(InputError, match="damaged or unfinished header"):
        journal.read(path)


def test_a_foreign_base_model_is_refused() -> None:
    header = header_of(weights_of(Tiny()))
    model = Tiny()
    model.lin.bias.data[0] += 1
    other = weights_of(model)
    before = other.fingerprint()
    with pytest.raises(InputError, match="base model's fingerprint differs"):
        journal.replay(header, records(rows(3)), other)
    assert other.fingerprint() == before


def test_replay_goes_on_from_a_step() -> None:
    """For a rule without memory, the state after `start` steps is the weights alone."""
    whole, first = weights_of(Tiny()), weights_of(Tiny())
    header = header_of(whole)
    journal.replay(header, records(rows(5) / 50), whole)
    journal.replay(header, records(rows(3) / 50), first)
    assert first.fingerprint() != whole.fingerprint()
    journal.replay(header, records(rows(5) / 50), first, start=3)
    assert first.fingerprint() == whole.fingerprint()


def test_keys_follow_from_seed_and_step() -> None:
    gradient = journal.gradient_of(HEADER, 7, rows(1)[0])
    expected = Spsa(1.0, 2).gradient(fold_in(root_key(3), 7), (1, 0, 1, 0))
    assert (gradient.key, gradient.keys) == (expected.key, expected.keys)


def test_twenty_thousand_spsa_steps_take_less_than_a_tenth_of_a_megabyte(tmp_path: Path) -> None:
    values = rows(20_000, 1)
    data = write(tmp_path / "journal", values, HEADER | {"directions": 1})
    assert 80_000 < len(data) < 100_000
    assert np.array_equal(coefficients(journal.read(tmp_path / "journal")[1]), values)


def mixed(steps: int) -> tuple[dict[str, Any], list[Record]]:
    """A journal of everything: growing directions, a memory, and layer sizes every five steps."""
    header = HEADER | {"directions": [[0, 1], [3, 2], [70, 4]], "memory": 1, "sizes": [3, 5]}
    made = []
    for t in range(steps):
        n = 1 if t < 3 else 2 if t < 70 else 4
        sizes = np.array([1, 2, 0.5], dtype=np.float32) * (t + 1) if t % 5 == 0 else journal.NOTHING
        made.append(Record(np.full(n, t / 8, dtype=np.float32), np.array([t / 16], dtype=np.float32), sizes))
    return header, made


def same(a: list[Record], b: list[Record]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=True)
    )


def test_records_of_every_kind_come_back_from_any_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    header, made = mixed(140)
    with Journal.open(path, header) as opened:
        for record in made[:77]:
            opened.append(record)
    with Journal.open(path, header) as opened:
        assert same(opened.records, made[:77])
        for record in made[77:]:
            opened.append(record)
    data = path.read_bytes()
    assert journal.read(path)[0] == header and same(journal.read(path)[1], made)
    start = len(data) - sum(4 * sum(map(len, r)) for r in made) - 2 * 4  # two full blocks
    counts = []
    for end in range(start, len(data) + 1, 3):
        path.write_bytes(data[:end])
        kept = journal.read(path)[1]
        assert same(kept, made[: len(kept)])
        counts.append(len(kept))
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] >= 139
    path.write_bytes(data)
    with Journal.open(path, header, at_most=70) as opened:
        assert same(opened.records, made[:70])
        for record in made[70:]:
            opened.append(record)
    assert path.read_bytes() == data


def test_a_record_of_another_shape_is_refused_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    header, made = mixed(2)
    with Journal.open(path, header) as opened:
        before = path.read_bytes()
        for wrong in (
            made[0]._replace(memory=journal.NOTHING),
            made[1],
            made[0]._replace(coefficients=np.ones(2, np.float32)),
        ):
            with pytest.raises(ValueError, match="Step 0 has"):
                opened.append(wrong)
        assert path.read_bytes() == before


def test_another_noise_is_refused() -> None:
    weights = weights_of(Tiny())
    with pytest.raises(InputError, match="noise 'zo-noise-v9'"):
        journal.replay(header_of(weights) | {"noise": "zo-noise-v9"}, records(rows(3)), weights)


def test_a_header_says_what_its_estimator_and_weights_need() -> None:
    names = ["lin.weight", "emb.weight"]
    weights = Weights(Tiny(), names, geometry=Dense(), rule=sgd(), layers=by_layer(names))
    estimator = RoundRobin(OnePoint(0.5), 2)
    header = journal.header_for(weights, estimator, 3, Adaptive(parameter_norms, every=4), config={"a": 1})
    wanted = {"seed": 3, "directions": 1, "memory": 1, "blocks": 2, "sizes": [2, 4], "config": {"a": 1}}
    assert {k: header[k] for k in wanted} == wanted and header["base"] == weights.fingerprint()
    assert json.loads(json.dumps(header)) == header
    plain = journal.header_for(weights, Spsa(0.5, 3), 3)
    assert plain["directions"] == 3 and not {"memory", "blocks", "sizes"} & set(plain)
    assert journal.header_for(weights, Spsa(0.5, ((0, 1), (4, 2))), 3)["directions"] == [[0, 1], [4, 2]]
    assert journal.gradient_of(header, 3, np.ones(1, np.float32)).group == 1
