"""Objectives of objectives: weighted sums, products, constraints; each part is logged by name (`Scored.parts`).

A constraint is an exact penalty: `penalty` (1 where not given) times what exceeds the limit, as a share of it, is taken off.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from zo_objectives.errors import InputError
from zo_objectives.language.objective import Bound, Examples, Needs, Objective, Pending, Scored
from zo_objectives.language.outputs import Outputs

Join = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class _Sum:
    weights: tuple[float, ...]

    def __call__(self, values: Sequence[float]) -> float:
        return math.fsum(w * v for w, v in zip(self.weights, values, strict=True))


@dataclass(frozen=True)
class Limit:
    """An objective that has to stay at or below (`at_most`) or at or above a value."""

    objective: Objective
    value: float
    at_most: bool = True

    def __str__(self) -> str:
        return f"{self.objective.name} {'<=' if self.at_most else '>='} {self.value:g}"


@dataclass(frozen=True)
class _Within:
    limits: tuple[tuple[float, bool], ...]
    penalty: float

    def __call__(self, values: Sequence[float]) -> float:
        over = [_exceeded(v, *limit) for v, limit in zip(values[1:], self.limits, strict=True)]
        return values[0] - self.penalty * math.fsum(over)


def _exceeded(score: float, value: float, at_most: bool) -> float:
    """By how much, as a share of the limit (of 1 where that is 0); 0 within it."""
    return max(0.0, (score - value) * (1 if at_most else -1)) / (abs(value) or 1.0)


def weighted(*terms: tuple[float, Objective], name: str | None = None) -> Objective:
    """The sum of weight * objective."""
    title = name or "".join(_term(i, w, o.name) for i, (w, o) in enumerate(terms))
    return _joined(title, [o for _, o in terms], _Sum(tuple(w for w, _ in terms)))


def _term(index: int, weight: float, name: str) -> str:
    """A term as it is written: + 0.5 * name."""
    sign = ("-" if weight < 0 else "") if index == 0 else " - " if weight < 0 else " + "
    return f"{sign}{'' if abs(weight) == 1 else f'{abs(weight):g} * '}{name}"


def product(*objectives: Objective, name: str | None = None) -> Objective:
    """The product of objectives; meant for those that are never negative."""
    return _joined(name or " * ".join(o.name for o in objectives), objectives, math.prod)


def subject_to(objective: Objective, *limits: Limit, penalty: float = 1.0, name: str | None = None) -> Objective:
    """`objective`, less `penalty` times what exceeds each limit, as a share of the limit."""
    if penalty <= 0:
        raise InputError(f"A constraint's penalty must be above 0, found {penalty:g}.")
    more = "" if penalty == 1 else f" with penalty {penalty:g}"
    title = name or f"{objective.name} subject to {' and '.join(map(str, limits))}{more}"
    join = _Within(tuple((limit.value, limit.at_most) for limit in limits), penalty)
    return _joined(title, [objective, *(limit.objective for limit in limits)], join)


def _joined(name: str, parts: Sequence[Objective], join: Join) -> Objective:
    if not parts:
        raise InputError(f"Objective {name!r} has no parts.")
    _tell_apart(name, parts)
    order = list(Needs)
    needs = max((p.needs for p in parts), key=order.index)
    start = partial(_start, tuple(parts), join) if any(p.start for p in parts) else None
    about = "; ".join(f"{p.name}: {p.about}" for p in parts if p.about)
    score, bind = partial(_score, tuple(parts), join), partial(_bind, tuple(parts), join)
    return Objective(name, score, needs, about, bind=bind, start=start, parts=tuple(parts), join=join)


def _tell_apart(name: str, parts: Sequence[Objective]) -> None:
    seen: dict[str, Objective] = {}
    for leaf in leaves(parts):
        if seen.setdefault(leaf.name, leaf) != leaf:
            raise InputError(f"Objective {name!r} has two parts called {leaf.name!r}: give one of them ?name=another.")


def leaves(parts: Sequence[Objective]) -> list[Objective]:
    """The parts that have no parts."""
    return [leaf for p in parts for leaf in (leaves(p.parts) if p.parts else [p])]


def _collected(parts: Sequence[Objective], scores: Sequence[Scored], join: Join) -> Scored:
    """The joined score; of each part that is whole itself its score, and what it logged."""
    logged: dict[str, float] = {}
    columns = {k: v for s in scores for k, v in s.columns.items()}
    for objective, score in zip(parts, scores, strict=True):
        if objective.parts:
            logged |= score.parts
        else:
            logged |= {objective.name: float(score), **{f"{objective.name}/{k}": v for k, v in score.parts.items()}}
    return Scored(join(scores), logged, columns)


def _score(parts: Sequence[Objective], join: Join, outputs: Outputs, examples: Examples) -> float:
    return _bind(parts, join, examples)(outputs)


def _bind(parts: Sequence[Objective], join: Join, examples: Examples) -> Bound:
    bound = [p.bound(examples) for p in parts]
    return lambda outputs: _collected(parts, [b(outputs) for b in bound], join)


def _start(parts: Sequence[Objective], join: Join, outputs: Outputs, examples: Examples) -> Pending:
    """Begins the parts that score elsewhere, then does the others."""
    pending = {i: p.start(outputs, examples) for i, p in enumerate(parts) if p.start is not None}
    here = {i: p.bound(examples)(outputs) for i, p in enumerate(parts) if i not in pending}
    return lambda: _collected(parts, [here[i] if i in here else pending[i]() for i in range(len(parts))], join)
