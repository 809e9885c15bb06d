"""Slot coverage of E2E: which of the facts of a meaning representation does a text tell? By words, without a model."""

import re
import unicodedata

SLOT = re.compile(r"([^,\[\]]+)\[([^\]]*)\]")
PATTERNS = {  # of values that texts tell in other words; the others are looked for as they are
    ("eattype", "coffee shop"): r"coffee|caf[eé]",
    ("eattype", "pub"): r"\bpubs?\b",
    ("eattype", "restaurant"): r"restaurant|eatery|diner",
    ("area", "city centre"): r"(city|town) cent(re|er)|cent(re|er) of (the |town)|downtown|in the cent(re|er)",
    ("area", "riverside"): r"river",
    ("food", "fast food"): r"fast.?food",
    ("pricerange", "cheap"): r"cheap|inexpensive|low.{0,3}(pric|cost)|affordable|budget",
    ("pricerange", "moderate"): r"moderate|average|mid.?(pric|rang)|medium|reasonabl",
    ("pricerange", "high"): r"high|expensive|pric(e)?y|costly|upscale",
    ("pricerange", "less than £20"): r"(less|lower|cheaper) than .?20|(under|below) .?20|up to .?20|cheap|low|inexpensive",
    ("pricerange", "£20-25"): r"20\W{0,5}(to|and|through)?\W{0,5}25|moderate|average|mid.?(pric|rang)",
    ("pricerange", "more than £30"): r"(more|higher) than .?30|(over|above) .?30|expensive|high|30\+",
    ("customer rating", "low"): r"low|poor|bad|not? .{0,12}(good|well|high|recommend)|1 (out )?of 5",
    ("customer rating", "average"): r"average|moderate|decent|middl|3 (out )?of 5|mediocre",
    ("customer rating", "high"): r"high|excellent|great|good|well|5 (out )?of 5|top",
    ("customer rating", "1 out of 5"): r"\b(1|one)\b.{0,12}(5|five|star)|1/5|low|poor",
    ("customer rating", "3 out of 5"): r"\b(3|three)\b.{0,12}(5|five|star)|3/5|average|moderate|decent",
    ("customer rating", "5 out of 5"): r"\b(5|five)\b.{0,12}(5|five|star)|5/5|high|excellent|great",
}
FAMILY = r"famil|kid|child"
REFUSED = (  # before or behind the family word
    r"\b(no|not|non|never|without|isn't|aren't|doesn't|don't|unsuitable|unfriendly|un)\b.{0,45}(famil|kid|child)"
    r"|(famil|kid|child)\w*.{0,25}\b(no|not|unfriendly|unwelcome|prohibited)\b"
    r"|unfamily|adults? only|adult.{0,12}(estab|venue|place)"
)


def slots(completions: list[str], meaning_representation: list[str], **columns: object) -> list[float]:
    """The share of each meaning representation's slots that its completion tells, 0 to 1."""
    return [_coverage(text, meaning) for text, meaning in zip(completions, meaning_representation, strict=True)]


def _coverage(text: str, meaning: str) -> float:
    pairs = [(name.strip().lower(), value.strip().lower()) for name, value in SLOT.findall(meaning)]
    return sum(_told(name, value, _plain(text)) for name, value in pairs) / len(pairs) if pairs else 0.0


def _plain(text: str) -> str:
    """Lower case, without accents, with straight apostrophes."""
    text = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'"))
    return "".join(c for c in text if not unicodedata.combining(c))


def _told(name: str, value: str, text: str) -> bool:
    if name == "familyfriendly":
        refused = bool(re.search(REFUSED, text))
        return refused if value == "no" else bool(re.search(FAMILY, text)) and not refused
    return bool(re.search(PATTERNS.get((name, value), re.escape(_plain(value))), text))
