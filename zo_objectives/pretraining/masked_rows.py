"""Rows of a masked model's training: texts in rows of their own, batches of like lengths, and what is masked in them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zo_objectives.pretraining.masked_recipe import CLS, MASK, PAD, SEP, Settings
from zo_objectives.pretraining.tokens import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENDING = 3  # a verdict is among so many last tokens of a row
Flags = NDArray[np.bool_]


def new_rows(texts: Sequence[str], tokenizer: "Tokenizer", row: int) -> list[list[int]]:
    """The texts cut into rows of at most `row` tokens, each row between the tokens of its beginning and its end."""
    chunks = (texts[start : start + 1_000] for start in range(0, len(texts), 1_000))
    encoded = (e.ids for chunk in chunks for e in tokenizer.encode_batch(chunk, add_special_tokens=False))
    return [[CLS, *ids[start : start + row - 2], SEP] for ids in encoded for start in range(0, len(ids), row - 2)]


def batches(rows: Sequence[Sequence[int]], size: int, rng: np.random.Generator) -> Iterator[Tokens]:
    """Every row once, beside rows of its length, in padded batches of at most `size` tokens; the batches in random order."""
    lengths, order = np.array([len(row) for row in rows]), rng.permutation(len(rows))
    groups: list[list[int]] = [[]]
    for i in order[np.argsort(lengths[order], kind="stable")]:
        if groups[-1] and (len(groups[-1]) + 1) * lengths[i] > size:
            groups.append([])
        groups[-1].append(i)
    for g in rng.permutation(len(groups)):
        out = np.full((len(groups[g]), lengths[groups[g][-1]]), PAD, dtype=np.uint16)
        for line, i in zip(out, groups[g], strict=True):
            line[: lengths[i]] = rows[i]
        yield out


def begins_word(tokenizer: "Tokenizer") -> Flags:
    """Of each token whether it begins a word: all but those that begin with a letter, with no space before."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return np.array([i > MASK and (t[0] in "ĠĊ" or not t[0].isalpha()) for t, i in tokens])


def choose(rows: Tokens, begins: Flags, verdicts: Flags, settings: Settings, rng: np.random.Generator) -> Flags:
    """What to mask: whole words, `masked` of them, and `masked_verdicts` of the verdicts that end a row."""
    drawn = np.take_along_axis(rng.random(rows.shape), np.cumsum(begins[rows], axis=1), axis=1)
    last = np.arange(rows.shape[1]) >= (rows != PAD).sum(axis=1, keepdims=True) - ENDING
    rate = np.where(verdicts[rows] & last, settings.masked_verdicts, settings.masked)
    return (drawn < rate) & (rows > MASK)
