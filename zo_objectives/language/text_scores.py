"""Scores of texts: of what was generated, or of the predicted options' texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from zo_objectives.errors import InputError
from zo_objectives.language import texts
from zo_objectives.language.filters import normalised
from zo_objectives.language.metrics import CORRELATIONS
from zo_objectives.language.objective import Bound, Examples
from zo_objectives.language.option_scores import choices
from zo_objectives.language.outputs import Choices, Generations, Outputs
from zo_objectives.language.texts import TEXT_METRICS

NO_NUMBER = -1.0  # as T5 counts a text in which there is no number (Raffel et al. 2020, STS-B)


def generations(name: str, outputs: Outputs) -> Generations:
    """The outputs, of generated text. Raises InputError for others."""
    if isinstance(outputs, Generations):
        return outputs
    raise InputError(
        f"Objective {name!r} looks at generated text, and another objective of this task at log-likelihoods: one pass over a"
        " generation task gives one of them, so they cannot be joined."
    )


def said_texts(name: str, outputs: Outputs, examples: Examples) -> Sequence[str]:
    """What was said: the predicted options' texts, stripped, or what was generated."""
    if isinstance(outputs, Choices):
        return [e.options[p].strip() for e, p in zip(examples, outputs.predictions.tolist(), strict=True)]
    return generations(name, outputs).texts


def wanted_texts(name: str, examples: Examples) -> list[Sequence[str]]:
    """The right texts of each example. Raises InputError where there are none."""
    found: list[Sequence[str]] = [
        [e.options[i].strip() for i in (e.label, *e.also)] if e.options else e.targets for e in examples
    ]
    if not all(found):
        raise InputError(
            f"Objective {name!r} compares texts with targets, and this task has none. Use a reward or another objective."
        )
    return found


def on_texts(name: str, outputs: Outputs, examples: Examples) -> list[float]:
    metric, wanted = TEXT_METRICS[name], wanted_texts(name, examples)
    return [metric(t, r) for t, r in zip(said_texts(name, outputs, examples), wanted, strict=True)]


def matches(given: Mapping[str, Any], outputs: Outputs, examples: Examples) -> list[float]:
    """Whether each text is one of its targets once both are normalised, as lm-evaluation-harness's exact_match has it."""
    wanted = wanted_texts("exact_match", examples)
    said = said_texts("exact_match", outputs, examples)
    return [
        float(normalised(t.strip(), **given) in {normalised(r.strip(), **given) for r in refs})
        for t, refs in zip(said, wanted, strict=True)
    ]


def on_corpus(name: str, given: dict[str, Any], examples: Examples) -> Bound:
    metric = texts.sacrebleu(name, wanted_texts(name, examples), **given)
    return lambda outputs: metric(said_texts(name, outputs, examples))


def plain(
    name: str, reward: Callable[..., float], given: dict[str, Any], outputs: Outputs, examples: Examples
) -> list[float]:
    return [reward(t, **given) for t in said_texts(name, outputs, examples)]


def _number(text: str) -> float:
    found = texts.number_in(text)
    return NO_NUMBER if found is None else float(found)


def correlation(name: str, examples: Examples) -> Bound:
    """Numbers as the options or texts have them; the options' positions where one of them is no number."""
    metric = CORRELATIONS[name]
    if not (examples and examples[0].options):
        wanted = np.array([_number(w[0]) for w in wanted_texts(name, examples)])
        return lambda outputs: metric(wanted, np.array([_number(t) for t in generations(name, outputs).texts]))
    values = [_values(e.options) for e in examples]
    wanted = np.array([v[e.label] for v, e in zip(values, examples, strict=True)])

    def score(outputs: Outputs) -> float:
        said = choices(name, outputs).predictions.tolist()
        return metric(wanted, np.array([v[p] for v, p in zip(values, said, strict=True)]))

    return score


def _values(options: Sequence[str]) -> list[float]:
    try:
        return [float(o) for o in options]
    except ValueError:
        return [float(i) for i in range(len(options))]
