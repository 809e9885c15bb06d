"""Is it a measure at all? What shows when an objective is asked about outputs that differ, and again about the same.

`notes` says it to a user before a run; `faults` is the same for the conformance suite (testing.check_objective), stricter.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from zo_objectives.errors import RunError
from zo_objectives.language.culprits import take
from zo_objectives.language.objective import Examples, Objective
from zo_objectives.language.outputs import Choices, Generations, Likelihoods, Outputs


def variants(outputs: Outputs, examples: Examples) -> Iterator[Outputs]:
    """Other outputs on the same examples: right ones, wrong ones, those of the neighbours."""
    if isinstance(outputs, Choices):
        values, rows = outputs.loglikelihoods, np.arange(len(outputs))
        labels = np.array([e.label for e in examples])
        sizes = np.array([len(e.options) for e in examples])
        for shift in range(min(3, int(sizes.max()))):
            changed = values.copy()
            changed[rows, (labels + shift) % sizes] = values.max(axis=1) + 3
            yield replace(outputs, loglikelihoods=changed)
    elif isinstance(outputs, Generations):
        texts = list(outputs.texts)
        yield replace(outputs, texts=[e.targets[0] if e.targets else e.prompt for e in examples])
        yield replace(outputs, texts=texts[1:] + texts[:1])
        yield replace(outputs, texts=[f"{t} {t}" for t in texts])
        yield replace(outputs, texts=["" for _ in texts])
    elif isinstance(outputs, Likelihoods):
        yield replace(outputs, loglikelihoods=outputs.loglikelihoods * 2)


def notes(objective: Objective, outputs: Outputs, examples: Examples) -> list[str]:
    """What a user should know of an objective before a run, a sentence each. Raises what it raises on `outputs`."""
    first = objective(outputs, examples)
    found = [blind(objective, first, outputs, examples), *unsteady(objective, first, outputs, examples)]
    return [note for note in found if note is not None]


def blind(objective: Objective, first: float, outputs: Outputs, examples: Examples) -> str | None:
    """Whether other outputs never get another score. What it makes of outputs that no model gave is its own affair."""
    scores = [first]
    for other in variants(outputs, examples):
        try:
            scores.append(objective(other, examples))
        except (RunError, ValueError):
            continue
    if len(scores) == 1 or len(set(scores)) > 1:
        return None
    return (
        f"Objective {objective.name!r} gave {first:g} for {len(scores)} batches of outputs that differ: a constant, or a"
        " function that does not look at them, cannot be climbed."
    )


def unsteady(objective: Objective, first: float, outputs: Outputs, examples: Examples) -> Iterator[str]:
    """Whether the same outputs get another score, later or in another order."""
    if (again := objective(outputs, examples)) != first:
        yield (
            f"Objective {objective.name!r} gave {first:g} and then {again:g} for the same outputs: it depends on chance or"
            " on the order of calls, and that is noise to climb in."
        )
        return
    order = list(reversed(range(len(examples))))
    turned = objective(take(outputs, order), [examples[i] for i in order])
    if not math.isclose(turned, first, rel_tol=1e-6, abs_tol=1e-9):
        yield (
            f"Objective {objective.name!r} gave {first:g}, and {turned:g} for the same examples in another order: it should"
            " not depend on that."
        )


def faults(objective: Objective, outputs: Outputs, examples: Examples) -> Iterator[str]:
    """Where an objective breaks the laws of objectives on this batch, blindness left out."""
    before = _seen(outputs, examples)
    score = objective(outputs, examples)
    blind(objective, score, outputs, examples)
    yield from unsteady(objective, score, outputs, examples)
    low, high = objective.bounds
    if not low - 1e-9 <= score <= high + 1e-9:
        yield f"{score} is outside of its bounds {low} to {high}"
    if objective.bound(examples)(outputs) != score:
        yield "bound to a batch it scores otherwise"
    if objective.scores(iter([outputs, outputs]), examples) != [score, score]:
        yield "members with equal outputs get other scores"
    if objective.samples is not None:
        found = [v for v in objective.samples(outputs, examples) if v is not None]
        if not math.isclose(float(np.mean(found)), score, rel_tol=1e-9, abs_tol=1e-12):
            yield f"its samples' mean is {np.mean(found)}, its score {score}"
    if _seen(outputs, examples) != before:
        yield "it changes the outputs or examples that it is given"


def _seen(outputs: Outputs, examples: Examples) -> str:
    """All that an objective could change, as text."""
    return repr((outputs, examples, [e.row for e in examples]))
