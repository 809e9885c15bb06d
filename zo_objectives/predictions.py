"""What a model said before and after, example by example, for people."""

from collections.abc import Sequence
from typing import Any

from zo_objectives.language.objectives import BUILTIN, Objective
from zo_objectives.language.outputs import Choices, Example, Generations, Outputs


def target_text(example: Example) -> str:
    return example.options[example.label].strip() if example.options else " | ".join(example.targets)


def describe(outputs: Outputs, index: int, example: Example, metric: Objective) -> tuple[str, bool | None, float | None]:
    """What was predicted for one example, whether it is right (where that can be said), and its own score (likewise)."""
    if isinstance(outputs, Choices):
        chosen = int(outputs.predictions[index])
        return example.options[chosen].strip(), chosen == example.label, None
    if isinstance(outputs, Generations):
        text = outputs.texts[index]
        right = text.strip() in {t.strip() for t in example.targets} if example.targets and metric.name in BUILTIN else None
        return text, right, metric(Generations([text]), [example]) if right is None else None
    return "", None, float(outputs.loglikelihoods[index])


def records(examples: Sequence[Example], before: Outputs, after: Outputs, metric: Objective) -> list[dict[str, Any]]:
    """The rows of predictions.jsonl."""
    rows = []
    for i, example in enumerate(examples):
        a, b = describe(before, i, example, metric), describe(after, i, example, metric)
        what = {"split": "test", "id": example.id, "prompt": example.prompt, "target": target_text(example)}
        said = {"before": a[0], "after": b[0], "correct_before": a[1], "correct_after": b[1]}
        rows.append(what | said | {"score_before": a[2], "score_after": b[2]})
    return rows
