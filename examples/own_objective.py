"""An objective of your own on log-likelihoods: how often the right option is among the likeliest two. And is it sound?"""

from collections.abc import Sequence

import numpy as np

from zo_objectives.language.objectives import from_callable
from zo_objectives.language.outputs import Choices, Example
from zo_objectives.testing import check_objective, choice_batch


def top_two(outputs: Choices, examples: Sequence[Example]) -> float:
    """Share of examples whose right option is among the likeliest two."""
    best = np.argsort(-outputs.loglikelihoods, axis=1, kind="stable")[:, :2]
    return float(np.mean([e.label in row for e, row in zip(examples, best, strict=True)]))


if __name__ == "__main__":
    batch = choice_batch((" a", " b", " c", " d"))
    check_objective(from_callable(top_two), *batch)
    print(f"top_two: {from_callable(top_two)(*batch):.3f}, and it keeps the laws")
