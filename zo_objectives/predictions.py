"""What a model said before and after, example by example, for people."""

from collections.abc import Sequence
from typing import Any

from zo_objectives.language.objectives import BUILTIN, Objective
from zo_objectives.language.outputs import Choices, Example, Generations, Outputs


def target_text(example: Example) -> str:
    return example.options[example.label].strip() if example.options else " | ".join(example.targets)


def describe(outputs: Outputs, examples: Sequence[Example], metric: Objective) -> list[dict[str, Any]]:
    """Of each example what was predicted, whether it is right (where that can be said), and its own score (likewise).

    Only a reward has a score for each example; a metric of the whole batch is not asked for one.
    """
    own: Sequence[float | None] = [None] * len(examples)
    if metric.samples is not None and isinstance(outputs, Generations):
        own = metric.samples(outputs, examples)
    return [
        {"text": _said(outputs, i, e), "correct": _right(outputs, i, e, metric), "score": own[i]}
        for i, e in enumerate(examples)
    ]


def _said(outputs: Outputs, index: int, example: Example) -> str:
    if isinstance(outputs, Choices):
        return example.options[int(outputs.predictions[index])].strip()
    return outputs.texts[index] if isinstance(outputs, Generations) else ""


def _right(outputs: Outputs, index: int, example: Example, metric: Objective) -> bool | None:
    if isinstance(outputs, Choices):
        return int(outputs.predictions[index]) in (example.label, *example.also)
    if isinstance(outputs, Generations) and example.targets and metric.name in BUILTIN:
        return outputs.texts[index].strip() in {t.strip() for t in example.targets}
    return None


def records(examples: Sequence[Example], before: Outputs, after: Outputs, metric: Objective) -> list[dict[str, Any]]:
    """The rows of predictions.jsonl."""
    rows = []
    for example, a, b in zip(examples, describe(before, examples, metric), describe(after, examples, metric), strict=True):
        what = {"split": "test", "id": example.id, "prompt": example.prompt, "target": target_text(example)}
        said = {"before": a["text"], "after": b["text"], "correct_before": a["correct"], "correct_after": b["correct"]}
        rows.append(what | said | {"score_before": a["score"], "score_after": b["score"]})
    return rows
