"""Sheets against naive code: ranges, renumbering, likelihoods on logits small enough to add up by hand."""

import math
from itertools import takewhile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zo_objectives.language import sheet as sheets
from zo_objectives.language.sheet import Ids, Ranges, Sheet, common_prefix, continued

TOKENS = st.integers(0, 9)


def make_sheet(given: list[tuple[list[Ids], int]]) -> Sheet:
    """The sheet of examples, each its options' whole sequences and how many leading tokens they share."""
    return sheets.make_sheet([continued(full, [start] * len(full)) for full, start in given])


@st.composite
def examples(draw: st.DrawFn) -> list[tuple[list[Ids], int]]:
    """Examples for `make_sheet`: options behind a common prefix, of one token or of several."""
    result = []
    for _ in range(draw(st.integers(1, 5))):
        prefix = tuple(draw(st.lists(TOKENS, min_size=1, max_size=3)))
        longest = draw(st.sampled_from((1, 3)))
        tails = draw(st.lists(st.lists(TOKENS, min_size=1, max_size=longest), min_size=1, max_size=4))
        result.append(([(*prefix, *tail) for tail in tails], len(prefix)))
    return result


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.data())
def test_ranges_take_what_naive_slicing_takes(counts: list[int], data: st.DataObject) -> None:
    ranges = Ranges.of(counts)
    items = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8))
    entries, taken = ranges.take(np.array(items, dtype=np.int64))
    spans = [list(range(sum(counts[:i]), sum(counts[: i + 1]))) for i in items]
    assert entries.tolist() == [entry for span in spans for entry in span]
    assert np.diff(taken.starts).tolist() == [counts[i] for i in items]
    assert taken.owner.tolist() == [n for n, span in enumerate(spans) for _ in span]


@given(examples(), st.data())
def test_a_taken_sheet_is_the_sheet_of_the_taken_examples(given_: list[tuple[list[Ids], int]], data: st.DataObject) -> None:
    items = data.draw(st.lists(st.integers(0, len(given_) - 1), min_size=1, max_size=6))
    taken, fresh = make_sheet(given_).take(np.array(items)), make_sheet([given_[i] for i in items])
    assert taken.sequences == fresh.sequences
    for name in ("site_sequence", "site_position", "read_site", "read_token", "read_option", "read_counts", "columns"):
        assert getattr(taken, name).tolist() == getattr(fresh, name).tolist(), name
    for name in ("sequences_of", "sites_of", "reads_of"):
        assert getattr(taken, name).starts.tolist() == getattr(fresh, name).starts.tolist(), name
    assert taken.tokens == sum(map(len, taken.sequences))
    assert len(taken) == len(items)


@given(examples())
def test_likelihoods_add_up_to_the_naive_sum(given_: list[tuple[list[Ids], int]]) -> None:
    """The logits of a site are a made-up function of the tokens before it, so every sequence can be scored on its own."""
    sheet = make_sheet(given_)
    table = np.random.default_rng(0).normal(size=(100, 10))
    prefixes = [sheet.sequences[s][: p + 1] for s, p in zip(sheet.site_sequence, sheet.site_position, strict=True)]
    got = sheet.likelihoods(torch.tensor(np.array([table[hash(p) % 100] for p in prefixes])), None).numpy()
    assert got.shape == (len(given_), max(len(full) for full, _ in given_))
    for row, (full, start) in zip(got, given_, strict=True):
        logits = [[table[hash(ids[:i]) % 100] for i in range(start, len(ids))] for ids in full]
        expected = [
            sum(
                at[token] - (0.0 if sheet.closed else math.log(np.exp(at).sum()))
                for at, token in zip(ats, ids[start:], strict=True)
            )
            for ats, ids in zip(logits, full, strict=True)
        ]
        np.testing.assert_allclose(row[: len(full)], expected, atol=1e-9)
        assert np.all(row[len(full) :] == -np.inf)


def test_one_token_options_share_one_site_and_leave_out_the_normaliser() -> None:
    sheet = make_sheet([([(7, 1), (7, 2)], 1), ([(8, 9, 1), (8, 9, 2), (8, 9, 4)], 2)])
    assert sheet.closed
    assert sheet.sequences == ((7,), (8, 9))
    assert sheet.columns.tolist() == [1, 2, 4]
    logits = torch.tensor([[10.0, 20.0, 40.0], [11.0, 22.0, 44.0]])
    assert sheet.likelihoods(logits, sheet.columns).tolist() == [[10.0, 20.0, -math.inf], [11.0, 22.0, 44.0]]


def test_options_of_several_tokens_are_sums_of_log_probabilities() -> None:
    sheet = make_sheet([([(5, 0), (5, 1, 0)], 1)])
    assert not sheet.closed
    assert sheet.sequences == ((5, 1),)  # which holds what is read behind (5,) too
    quarter, half = [0.0, math.log(3.0)], [0.0, 0.0]
    expected = [math.log(0.25), math.log(0.75) + math.log(0.5)]
    assert sheet.likelihoods(torch.tensor([quarter, half]), None)[0].tolist() == pytest.approx(expected)


def test_likelihoods_keep_leading_dimensions_and_gradients() -> None:
    sheet = make_sheet([([(1, 2), (1, 3)], 1), ([(1, 2), (1, 4)], 1)])
    logits = torch.randn(3, len(sheet.site_position), 6, requires_grad=True)
    together = sheet.likelihoods(logits, None)
    assert together.shape == (3, 2, 2)
    assert torch.equal(together[1], sheet.likelihoods(logits[1], None))
    together.sum().backward()
    assert logits.grad is not None
    assert int(logits.grad.count_nonzero()) == 12  # three members, four reads each


@given(st.lists(st.lists(TOKENS, min_size=1, max_size=5).map(tuple), min_size=1, max_size=4))
def test_common_prefix_is_the_naive_one_and_leaves_a_token(sequences: list[Ids]) -> None:
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))))
    assert common_prefix(sequences) == min(shared, min(map(len, sequences)) - 1)


@pytest.mark.parametrize(
    ("sequences", "length"),
    [([(1, 2, 3), (1, 2, 4)], 2), ([(1, 2), (1, 2, 3)], 1), ([(1, 2), (3, 4)], 0), ([(1, 2, 3)], 2)],
)
def test_common_prefix_by_hand(sequences: list[Ids], length: int) -> None:
    assert common_prefix(sequences) == length


def test_a_target_alone_is_not_closed() -> None:
    sheet: Sheet = make_sheet([([(1, 2, 3)], 2)])
    assert not sheet.closed
    assert sheet.read_counts.tolist() == [1]
