"""Laws 7 and 8 of objectives: equal outputs, equal scores; it looks at them; it changes nothing."""

from collections.abc import Sequence

import numpy as np

from zo_objectives.errors import InputError
from zo_objectives.language.examine import blind, faults
from zo_objectives.language.objective import Objective
from zo_objectives.language.outputs import Choices, Example, Generations, Outputs


def choice_batch(options: tuple[str, ...] = (" no", " yes"), size: int = 8) -> tuple[Outputs, list[Example]]:
    """Options' log-likelihoods, two of three right, and their examples."""
    labels = [i % len(options) for i in range(size)]
    said = [(y + (i % 3 == 0)) % len(options) for i, y in enumerate(labels)]
    values = np.log(np.full((size, len(options)), 0.5 / len(options), dtype=np.float32))
    values[np.arange(size), said] = np.linspace(-0.5, -0.2, size, dtype=np.float32)
    return Choices(values), [Example(i, f"question {i}", {"n": i}, options, y) for i, y in enumerate(labels)]


def text_batch(size: int = 8) -> tuple[Outputs, list[Example]]:
    """Generated texts, half of them right, and their examples."""
    targets = [f"the sum of {i} and {i + 1} is {2 * i + 1}" for i in range(size)]
    said = [t if i % 2 else f"{t} or {i}" for i, t in enumerate(targets)]
    return Generations(said), [Example(i, f"question {i}", {"n": i}, targets=(t,)) for i, t in enumerate(targets)]


def check_objective(objective: Objective, outputs: Outputs | None = None, examples: Sequence[Example] = ()) -> None:
    """The laws of an objective, on `outputs` and `examples` or on small batches of options and of texts.

    Finite; the same for the same outputs, whatever was asked in between and in whatever order the examples come; different
    for different outputs; within its bounds; bound to a batch, and of many members, as alone; a reward's score is the mean
    of its samples; what it is given stays as it is. Raises AssertionError.
    """
    accepted: list[str | None] = []
    for batch in [choice_batch(), text_batch()] if outputs is None else [(outputs, list(examples))]:
        try:
            found = list(faults(objective, *batch))
        except InputError as error:
            refusal = error
            continue
        assert not found, f"objective {objective.name!r}: {'; '.join(found)}"
        accepted.append(blind(objective, objective(*batch), *batch))
    assert accepted, f"objective {objective.name!r} scores neither options nor texts: {refusal}"
    assert None in accepted, accepted[0]
