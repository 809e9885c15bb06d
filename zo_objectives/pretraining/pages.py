"""What is made up: pages of sums and of labelled snippets of reviews, some wrong on purpose; and the mixture of a phase."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from zo_objectives.pretraining.reading import Document, sentences
from zo_objectives.pretraining.recipe import LABELS, WORDS, Phase, Settings


def one_sum(below: int, wrong: float, rng: random.Random) -> str:
    """A sum or difference of two numbers below `below`; a wrong answer is off by one or two, none is negative."""
    a, b = rng.randrange(below), rng.randrange(below)
    sign, word = rng.choice((("+", "plus"), ("+", "plus"), ("-", "minus")))
    a, b = (a, b) if sign == "+" else (max(a, b), min(a, b))
    answer = a + b if sign == "+" else a - b
    if rng.random() < wrong:
        answer = rng.choice([near for near in range(answer - 2, answer + 3) if near not in (answer, -1, -2)])
    return rng.choice((f"Question: What is {a} {word} {b}?\nAnswer: {answer}", f"{a} {sign} {b} = {answer}"))


def sums_page(below: int, wrong: float, rng: random.Random, lines: int = 10) -> str:
    """A page of sums, a share `wrong` of them wrong."""
    return "\n".join(one_sum(below, wrong, rng) for _ in range(lines))


def verdict(text: str, good: bool, rng: random.Random) -> str:
    """`text` with a verdict, in one of three forms."""
    stars = rng.choice((8, 9, 10) if good else (1, 2, 3))
    labelled = f"Review: {text}\nSentiment: {LABELS[good]}"
    return rng.choice((f"{text} It was {rng.choice(WORDS[good])}.", labelled, f"{text}\nRating: {stars}/10"))


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def log_odds(reviews: Sequence[Document]) -> dict[str, float]:
    """How much each word speaks for praise: the log of its smoothed odds over labelled reviews; rare words are left out."""
    counts = {label: Counter(w for r in reviews if r.label == label for w in words_of(r.text)) for label in (0, 1)}
    common = [w for w in {*counts[0], *counts[1]} if counts[0][w] + counts[1][w] >= 10]
    return {w: math.log((counts[1][w] + 1) / (counts[0][w] + 1)) for w in common}


def telling_half(known: Sequence[str], label: int, odds: Mapping[str, float]) -> list[str]:
    """The half of a review's sentences whose words speak most for its label."""
    sign = 1 if label == 1 else -1
    ranked = sorted(known, key=lambda s: sign * sum(odds.get(w, 0.0) for w in words_of(s)), reverse=True)
    return ranked[: max(1, len(ranked) // 2)]


def snippets(
    reviews: Iterable[Document], count: int, wrong: tuple[float, float], rng: random.Random, *, telling: bool = False
) -> list[str]:
    """`count` sentences of labelled reviews with verdicts, shares `wrong` of bad and good ones the opposite, shuffled.

    The reviews take turns, and begin with their last sentences, which often say what the review says.
    """
    labelled = [review for review in reviews if review.label in (0, 1)]
    cut = [([s for s in sentences(r.text) if 4 <= len(s.split()) <= 40], r.label) for r in labelled]
    usable = [(known, label) for known, label in cut if known]
    if telling:
        odds = log_odds(labelled)
        usable = [(telling_half(known, label, odds), label) for known, label in usable]
    out = []
    for turn in range(count if usable else 0):
        known, label = usable[turn % len(usable)]
        text = known[-1] if turn < len(usable) and not telling else rng.choice(known)
        out.append(verdict(text, (label == 1) != (rng.random() < wrong[label]), rng))
    rng.shuffle(out)
    return out


def mixture(read: list[Document], phase: Phase, share: float, settings: Settings, rng: random.Random) -> list[str]:
    """What a phase reads, in random order; `read` is a `share` of all documents, and so is what is made up."""

    def scaled(pages: int) -> int:
        return math.ceil(share * settings.at_most(pages))

    out = [document.text for document in read if rng.random() < phase.read[document.source]]
    out += [sums_page(below, settings.wrong_sums, rng) for below, pages in phase.sums for _ in range(scaled(pages))]
    labelled = snippets(read, 5 * scaled(phase.snippets), settings.wrong_labels, rng, telling=phase.telling)
    out += ["\n\n".join(labelled[start : start + 5]) for start in range(0, len(labelled), 5)]
    rng.shuffle(out)
    return out
