"""Metrics of texts, as they are published: on one text and its references, or on a whole corpus."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from zo_objectives.errors import InputError

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+(?:[eE][-+]?\d+)?")


@lru_cache(1 << 16)
def normalise_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the stripped prediction is one of the references, else 0."""
    return float(prediction.strip() in {r.strip() for r in references})


def squad_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Exact match after SQuAD's normalisation."""
    return float(normalise_answer(prediction) in {normalise_answer(r) for r in references})


def squad_f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1 over the references of the bags of normalised words, 0 to 1; two empty answers agree."""
    return max(_word_f1(normalise_answer(prediction).split(), normalise_answer(r).split()) for r in references)


def _word_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    if not prediction or not reference:
        return float(list(prediction) == list(reference))
    shared = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * shared / (len(prediction) + len(reference))


def number_in(text: str) -> Decimal | None:
    """The last number in a text, its thousands separators left out: 'so 1,250.50 dollars' has 1250.50."""
    found = NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def numeric_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the last number in the prediction equals the last number in one of the references, else 0."""
    said = number_in(prediction)
    return float(said is not None and any(said == number_in(r) for r in references))


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """The best F-measure over the references of the longest common subsequence of words, 0 to 1 (Lin 2004, as rouge-score
    has it, without stemming)."""
    return max(_lcs_f1(_words(prediction), _words(r)) for r in references)


@lru_cache(1 << 16)
def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def _lcs_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    if not prediction or not reference:
        return 0.0
    row = [0] * (len(reference) + 1)
    for word in prediction:
        before = 0
        for i, other in enumerate(reference):
            before, row[i + 1] = row[i + 1], before + 1 if word == other else max(row[i + 1], row[i])
    precision, recall = row[-1] / len(prediction), row[-1] / len(reference)
    return 2 * precision * recall / (precision + recall) if row[-1] else 0.0


def sacrebleu(name: str, references: Sequence[Sequence[str]], **given: Any) -> Callable[[Sequence[str]], float]:
    """sacreBLEU's corpus BLEU or chrF against the references, whose n-grams are counted once: texts in, 0 to 100 out."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise InputError(f"Objective {name!r} needs sacrebleu: pip install 'zo-objectives[text]'.") from error
    width = max(map(len, references))
    streams: Any = [[r[i] if i < len(r) else None for r in references] for i in range(width)]  # None: has fewer
    try:
        metric = (BLEU if name == "bleu" else CHRF)(**given, references=streams)
    except TypeError as error:
        raise InputError(f"Objective {name!r}: {error}. Its arguments are those of sacrebleu.metrics.") from error
    return lambda texts: float(metric.corpus_score(list(texts), None).score)


# Rewards that need no reference


def length(text: str, at_least: int = 1, at_most: int = 30, unit: str = "words") -> float:
    """1 for a text of `at_least` to `at_most` words (or characters), falling linearly to 0 at none and at twice as many."""
    size = count(text, unit)
    if size < at_least:
        return size / at_least
    return 1.0 if size <= at_most else max(0.0, 2 - size / at_most)


def count(text: str, unit: str = "words") -> int:
    """How many words (parted by spaces) or characters a stripped text has."""
    if unit not in ("words", "characters"):
        raise InputError(f"Unknown unit {unit!r}: length is counted in words or characters.")
    return len(text.split()) if unit == "words" else len(text.strip())


def has_format(text: str, pattern: str) -> float:
    """1 where the whole stripped text matches the regular expression, else 0; `.` matches line ends too."""
    return float(_compiled(pattern).fullmatch(text.strip()) is not None)


@lru_cache(64)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InputError(f"Objective 'format': {pattern!r} is not a regular expression: {error}.") from error


def has_keywords(text: str, words: str = "", without: str = "") -> float:
    """The share of the words (parted by commas) that a text has, whole and in any case; 0 if it has one of `without`."""
    wanted, barred = _listed(words), _listed(without)
    if not wanted and not barred:
        raise InputError("Objective 'keywords' needs words: keywords?words=good,great, or keywords?without=bad.")
    if any(_has(text, word) for word in barred):
        return 0.0
    return sum(_has(text, word) for word in wanted) / len(wanted) if wanted else 1.0


def _listed(words: str) -> list[str]:
    return [w.strip() for w in words.split(",") if w.strip()]


def _has(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


TEXT_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "squad_exact_match": squad_exact_match,
    "squad_f1": squad_f1,
    "numeric_match": numeric_match,
    "rouge_l": rouge_l,
}
