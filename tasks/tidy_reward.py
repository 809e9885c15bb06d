"""A reward in thirty lines: is a completion one tidy sentence? In the form TRL's trainers take, so it runs there too."""

import re
from itertools import pairwise


def tidy(completions: list[str], **columns: object) -> list[float]:
    """The mean of three marks, each 0 to 1: it ends as one sentence, it has 4 to 14 words, it repeats nothing."""
    return [(_ends(text) + _length(text) + _fresh(text)) / 3 for text in map(str.strip, completions)]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _ends(text: str) -> float:
    """1 for one sentence that ends at its end, 0.5 for several that do, 0 for a text that breaks off."""
    if not re.search(r"[.!?][\"')]*$", text):
        return 0.0
    return 1.0 if len(re.findall(r"[.!?]+", text)) == 1 else 0.5


def _length(text: str) -> float:
    """1 for 4 to 14 words, falling to 0 at none and at 28."""
    count = len(_words(text))
    return min(1.0, count / 4, max(0.0, (28 - count) / 14))


def _fresh(text: str) -> float:
    """The share of pairs of neighbouring words that come for the first time; 0 for fewer than two words."""
    pairs = list(pairwise(_words(text)))
    return len(set(pairs)) / len(pairs) if pairs else 0.0
