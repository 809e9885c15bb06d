"""Several objectives in one name, with spaces around the signs:

accuracy + 0.1 * length?at_most=30
f1_macro * expected_accuracy
f1_macro subject to words <= 30 and mine.py:polite >= 0.9 with penalty 5
"""

import math
from collections.abc import Callable, Sequence

from zo_objectives.errors import InputError
from zo_objectives.language.composite import Limit, product, subject_to, weighted
from zo_objectives.language.objective import Objective


def is_expression(text: str) -> bool:
    """Whether a name is of several objectives."""
    return bool({"+", "-", "*", "subject"} & set(text.split()))


def parse(text: str, resolve: Callable[[str], Objective]) -> Objective:
    """An objective from an expression; `resolve` finds those in it. Raises InputError."""
    base, _, rest = text.partition(" subject to ")
    if "subject" in base.split():
        raise InputError(f"Cannot read {text!r}: write ... subject to NAME <= NUMBER.")
    rest, _, penalty = rest.partition(" with penalty ")
    objective = _terms(text, base.split(), resolve)
    if not rest:
        return objective
    limits = [_limit(text, words.split(), resolve) for words in rest.split(" and ")]
    return subject_to(objective, *limits, penalty=_number(text, penalty.strip() or "1"))


def _terms(text: str, words: Sequence[str], resolve: Callable[[str], Objective]) -> Objective:
    """A sum of products."""
    terms: list[tuple[float, list[str]]] = [(1.0, [])]
    for word in words:
        if word in "+-":
            terms.append((1.0 if word == "+" else -1.0, []))
        else:
            terms[-1][1].append(word)
    if not terms[0][1]:
        terms = terms[1:]
    found = [_factors(text, sign, factors, resolve) for sign, factors in terms]
    if len(found) == 1 and found[0][0] == 1:
        return found[0][1]
    return weighted(*found)


def _factors(text: str, sign: float, words: Sequence[str], resolve: Callable[[str], Objective]) -> tuple[float, Objective]:
    """A weight and the product of the objectives."""
    if len(words) % 2 == 0 or any(w != "*" for w in words[1::2]):
        raise InputError(f"Cannot read {text!r} at {' '.join(words)!r}: write 0.7 * NAME + NAME, with spaces around + - *.")
    weight, objectives = sign, []
    for word in words[::2]:
        try:
            weight *= float(word)
        except ValueError:
            objectives.append(resolve(word))
    if not objectives:
        raise InputError(f"Cannot read {text!r}: {' '.join(words)!r} has no objective.")
    return weight, objectives[0] if len(objectives) == 1 else product(*objectives)


def _limit(text: str, words: Sequence[str], resolve: Callable[[str], Objective]) -> Limit:
    if len(words) != 3 or words[1] not in ("<=", ">="):
        raise InputError(f"Cannot read {' '.join(words)!r} in {text!r}: a constraint is NAME <= NUMBER or NAME >= NUMBER.")
    return Limit(resolve(words[0]), _number(text, words[2]), words[1] == "<=")


def _number(text: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{word!r} in {text!r} is no number.")
    return value
