"""Texts as tokens: the byte-level BPE, rows of one length, batches of rows, and what a token counts in the loss."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError
from zo_objectives.pretraining.recipe import EOS, LABELS, SPECIAL, WORDS

if TYPE_CHECKING:
    import torch
    from tokenizers import AddedToken, Tokenizer

Tokens = NDArray[np.uint16]  # [rows, tokens in a row]


def train_tokenizer(
    texts: Iterable[str],
    vocabulary: int,
    special: Sequence["str | AddedToken"] = SPECIAL,
    single: str = "<s> $A",
    pair: str = "<s> $A $B:1",
) -> "Tokenizer":
    """A byte-level BPE in which each digit stands alone and every prompt begins with <s>; it loses no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    ids = [(str(token), i) for i, token in enumerate(special)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*special], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(texts: Sequence[str], tokenizer: "Tokenizer", row: int) -> Tokens:
    """The documents, each between <s> and </s>, end to end and cut into rows; what the last row lacks is dropped."""
    chunks = (texts[start : start + 1_000] for start in range(0, len(texts), 1_000))
    encoded = (encoding.ids for chunk in chunks for encoding in tokenizer.encode_batch(chunk))
    stream = np.concatenate([np.array([*ids, EOS], dtype=np.uint16) for ids in encoded])
    if len(stream) < row:
        raise InputError(f"The documents come to {len(stream)} tokens, fewer than a row of {row}; give more of them.")
    return stream[: len(stream) // row * row].reshape(-1, row)


def batches(rows: Tokens, size: int, rng: np.random.Generator) -> Iterator[Tokens]:
    """Batches of at most `size` rows, for ever: each pass takes every row once, in a new order."""
    while True:
        order = rng.permutation(len(rows))
        yield from (rows[order[start : start + size]] for start in range(0, len(order), size))


def verdict_weights(tokenizer: "Tokenizer", vocabulary: int, weight: float) -> "torch.Tensor":
    """A weight for each token: `weight` for those that begin a verdict, 1 for the others."""
    import torch

    weights = torch.ones(vocabulary)
    for word in (*WORDS[True], *WORDS[False], *LABELS.values()):
        weights[tokenizer.encode(" " + word, add_special_tokens=False).ids[0]] = weight
    return weights
