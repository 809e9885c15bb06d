"""Countdown: reach a target number with some of the given numbers and + - * /; instances are made with a solution."""

import random
from typing import Any

Term = tuple[int, str]  # a value and the expression it comes from
SIZES = {"train": 2000, "validation": 500, "test": 1000}
LARGEST = 25  # number given
TARGETS = range(10, 101)


def countdown(split: str, seed: int = 0) -> list[dict[str, Any]]:
    """Three or four numbers from 1 to 25 and a target from 10 to 100; no bag of numbers comes twice, in any split.

    Columns: numbers (list of int), target (int), solution (text, an expression that uses every number once).
    """
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    seen: set[tuple[int, ...]] = set()
    while len(rows) < sum(SIZES.values()):
        numbers = [rng.randint(1, LARGEST) for _ in range(rng.randint(3, 4))]
        target, solution = _joined([(n, str(n)) for n in numbers], rng)
        if target in TARGETS and target not in numbers and tuple(sorted(numbers)) not in seen:
            seen.add(tuple(sorted(numbers)))
            rows.append({"numbers": numbers, "target": target, "solution": solution})
    start = sum(size for name, size in SIZES.items() if list(SIZES).index(name) < list(SIZES).index(split))
    return rows[start : start + SIZES[split]]


def _joined(terms: list[Term], rng: random.Random) -> Term:
    """One term of all, two of them joined at a time; every value on the way is a positive integer."""
    while len(terms) > 1:
        rng.shuffle(terms)
        (a, left), (b, right), *rest = terms
        values = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if a % b == 0 else 0}
        sign = rng.choice([s for s, value in values.items() if value > 0])
        terms = [(values[sign], f"({left} {sign} {right})"), *rest]
    value, text = terms[0]
    return value, text[1:-1]
