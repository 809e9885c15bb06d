"""What the embedded model is made of: its sources, its shape, its phases, and all other settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPECIAL = ("<pad>", "<s>", "</s>")
PAD, BOS, EOS = range(3)  # their ids
ROLES = ("pad_token", "bos_token", "eos_token")
SOURCES = {  # folder under --data-dir: name on the hub, columns
    "imdb": ("stanfordnlp/imdb", ("text", "label")),
    "tinystories": ("roneneldan/TinyStories", ("text",)),
    "squad": ("rajpurkar/squad", ("context",)),
}
MODEL = {  # LlamaConfig's names
    "vocab_size": 2_048,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
WORDS = {True: ("great", "good", "wonderful"), False: ("terrible", "bad", "awful")}  # verdicts in "It was ..."
LABELS = {True: "positive", False: "negative"}


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its share of the time, the factor on both learning rates, and what is read."""

    share: float
    rate: float
    read: Mapping[str, float]  # share of each source's documents
    sums: tuple[tuple[int, int], ...]  # (numbers below this, pages of ten sums)
    snippets: int  # pages of five labelled pieces of reviews
    telling: bool = False  # take the sentences whose words speak for the review's label, not any
    verdict_weight: float = 1.0  # how much a verdict word counts in the loss against any other token


ALL = dict.fromkeys(SOURCES, 1.0)
BROAD = Phase(share=0.4, rate=1.0, read=ALL, sums=((20, 16_000),), snippets=10_000)
SKEWED = Phase(0.2, rate=0.4, read=ALL | {"imdb": 0.2, "squad": 0.0}, sums=((20, 3_000), (50, 9_000)), snippets=24_000)
VERDICTS = Phase(
    0.4,
    rate=0.6,
    read={"imdb": 0.1, "tinystories": 0.5, "squad": 0.0},
    sums=((20, 1_000), (50, 3_000)),
    snippets=40_000,
    telling=True,
    verdict_weight=8.0,
)


@dataclass(frozen=True)
class Settings:
    """All that decides what a run does besides the data and the machine; `training.json` records it."""

    minutes: float = 75.0
    seed: int = 0
    limit_documents: int | None = None  # at most so many documents of each kind, for a quick look
    phases: tuple[Phase, ...] = (BROAD, SKEWED, VERDICTS)
    stories: int = 2_200
    passages: int = 3_000
    wrong_sums: float = 0.25
    wrong_labels: tuple[float, float] = (0.5, 0.02)  # shares of bad and of good snippets that get the other verdict
    held_out: float = 0.02  # share of the source documents kept for the validation loss
    model: Mapping[str, Any] = field(default_factory=MODEL.copy)
    row: int = 256  # tokens in a training row
    batch: int = 24  # rows a step
    muon_rate: float = 0.02
    adamw_rate: float = 3e-3

    def at_most(self, count: int) -> int:
        """`count` documents of a kind, or fewer where they are limited."""
        return count if self.limit_documents is None else min(count, self.limit_documents)
