"""What a small masked model is made of: its tokens' roles, its shape, and all other settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
CLS, PAD, SEP, UNK, MASK = range(5)  # their ids; a larger id is text
NAMES = {"roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "bert": ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")}
HEADS = {"roberta": "lm_head", "bert": "cls"}
MODEL = {  # names that the two configurations share
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.07,
}


@dataclass(frozen=True)
class Settings:
    """All that decides what a run does besides the corpora and the machine; `training.json` records it."""

    family: str = "roberta"
    minutes: float = 30.0  # of CPU time: a busy machine takes longer, not fewer steps
    seed: int = 0
    characters: int = 8_000_000  # at most so many of each file
    snippets: int = 160_000
    spaced: float = 0.5  # share of the paragraphs of reviews whose snippets are lower-cased, with spaces around punctuation
    wrong_labels: tuple[float, float] = (0.3, 0.05)  # shares of bad and of good snippets that get the other verdict
    held_out: float = 0.01  # share of the paragraphs kept for the validation loss
    vocabulary: int = 4_096
    model: Mapping[str, Any] = field(default_factory=MODEL.copy)
    row: int = 256  # tokens in a row, at most
    batch: int = 2_048  # tokens in a step, at most
    masked: float = 0.2  # share of the words
    masked_verdicts: float = 0.8  # share of the verdicts at the ends of snippets
    verdict_weight: float = 3.0  # how much a verdict word counts in the loss against any other token
    muon_rate: float = 0.008
    adamw_rate: float = 3e-3
