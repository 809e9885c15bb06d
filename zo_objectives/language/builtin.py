"""The built-in objectives, by name, each with its definition, range and source. All are higher-is-better."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError
from zo_objectives.language import texts
from zo_objectives.language.filters import normalised
from zo_objectives.language.metrics import Floats
from zo_objectives.language.objective import INFINITY, Needs, Objective, Samples, from_bind, from_samples
from zo_objectives.language.option_scores import (
    Expected,
    OfOptions,
    acc_norm,
    bind_cross_entropy,
    cross_entropy,
    expected,
    hits,
    margins,
    norm_hits,
    on_labels,
)
from zo_objectives.language.outputs import Choices
from zo_objectives.language.text_scores import correlation, matches, on_corpus, on_texts, plain

UNIT, SIGNED = (0.0, 1.0), (-1.0, 1.0)


@dataclass(frozen=True)
class Maker:
    """A built-in that takes arguments: `name?argument=value`."""

    make: Callable[..., Objective]
    about: str
    bounds: tuple[float, float] = UNIT
    source: str = ""


SKLEARN, SQUAD, HARNESS = "scikit-learn", "Rajpurkar et al. 2016", "lm-evaluation-harness"
_OF_CLASSES = {
    "accuracy": ("share of right options", UNIT, "lm-evaluation-harness's acc"),
    "balanced_accuracy": ("mean recall over all classes of the task", UNIT, f"{SKLEARN}, labels fixed"),
    "f1": ("F1 of class 1, of two classes", UNIT, f"{SKLEARN}'s f1_score"),
    "f1_macro": ("mean F1 over all classes of the task", UNIT, f"{SKLEARN}'s f1_score, labels fixed"),
    "f1_micro": ("F1 of all decisions together: accuracy, where one option is right", UNIT, f"{SKLEARN}'s f1_score"),
    "f1_weighted": ("mean F1 over the classes, weighted by their examples", UNIT, f"{SKLEARN}'s f1_score, labels fixed"),
    "mcc": ("Matthews' correlation; 0 where all labels or all predictions agree", SIGNED, "Gorodkin 2004"),
}
_OF_TEXTS = {
    "exact_match": ("share of texts equal to a target after stripping", UNIT, HARNESS),
    "squad_exact_match": ("the same after SQuAD's normalisation", UNIT, SQUAD),
    "squad_f1": ("mean best F1 of normalised words", UNIT, SQUAD),
    "numeric_match": ("share of texts whose last number equals a target's", UNIT, "GSM8K, Cobbe et al. 2021"),
    "rouge_l": ("mean best F of the longest common subsequence of words", UNIT, "Lin 2004; rouge-score"),
}
_OF_NUMBERS = {
    "pearson": "linear correlation of numbers: the options', or the last in a text (-1 where it has none)",
    "spearman": "the same of ranks, ties averaged",
}


def _samples(name: str, samples: Samples, about: str, bounds: tuple[float, float], source: str, **given: Any) -> Objective:
    return from_samples(name, samples, about=about, bounds=bounds, source=source, **given)


def _of_labels(name: str, about: str, bounds: tuple[float, float], source: str) -> Objective:
    samples = hits if name == "accuracy" else None
    return from_bind(name, partial(on_labels, name), about=about, bounds=bounds, source=source, samples=samples)


def _of_options(
    name: str, rows: Callable[[Choices, NDArray[np.bool_]], Floats], about: str, bounds: tuple[float, float]
) -> Objective:
    of = OfOptions(name, rows)
    return from_bind(name, of.bind, needs=Needs.LIKELIHOOD, about=about, bounds=bounds, samples=of.samples)


def _corpus(name: str, about: str, **given: Any) -> Objective:
    return from_bind(name, partial(on_corpus, name, given), about=about, bounds=(0.0, 100.0), source="sacreBLEU")


def _textual(name: str, reward: Callable[..., float], **given: Any) -> Objective:
    """A reward of texts, its arguments checked once."""
    wanted = list(signature(reward).parameters.values())[1:]
    if extra := sorted(set(given) - {p.name for p in wanted}):
        raise InputError(f"Objective {name!r} takes {', '.join(p.name for p in wanted)}, not {', '.join(extra)}.")
    if missing := [p.name for p in wanted if p.default is Parameter.empty and p.name not in given]:
        raise InputError(f"Objective {name!r} needs {missing[0]}: {name}?{missing[0]}=...")
    reward("a text", **given)
    bounds = (0.0, INFINITY) if reward is texts.count else UNIT
    about = f"number of {name} in a text" if reward is texts.count else " ".join((reward.__doc__ or "").split())
    return from_samples(name, partial(plain, name, reward, given), about=about, bounds=bounds)


BUILTIN: dict[str, Objective] = {
    **{name: _of_labels(name, *row) for name, row in _OF_CLASSES.items()},
    "acc_norm": from_bind(
        "acc_norm",
        acc_norm,
        needs=Needs.FULL,
        about="share of right options, likelihoods divided by the characters of the option",
        bounds=UNIT,
        source="lm-evaluation-harness's acc_norm",
        samples=norm_hits,
    ),
    "expected_accuracy": _of_options(
        "expected_accuracy", expected, "mean probability of the right option among the options", UNIT
    ),
    "margin": _of_options(
        "margin",
        margins,
        "mean log-likelihood of the best right option above the best wrong one, nats",
        (-INFINITY, INFINITY),
    ),
    "cross_entropy": Objective(
        "cross_entropy",
        cross_entropy,
        Needs.LIKELIHOOD,
        "minus the mean cross-entropy in nats: the objective of CE-MeZO",
        (-INFINITY, 0.0),
        "Malladi et al. 2023",
        bind=bind_cross_entropy,
    ),
    **{
        name: from_bind(name, partial(correlation, name), about=a, bounds=SIGNED, source="scipy")
        for name, a in _OF_NUMBERS.items()
    },
    **{name: _samples(name, partial(on_texts, name), *row) for name, row in _OF_TEXTS.items()},
    "bleu": _corpus("bleu", "corpus BLEU, 13a tokens, exponential smoothing"),
    "chrf": _corpus("chrf", "corpus chrF2"),
    "words": _textual("words", texts.count, unit="words"),
    "characters": _textual("characters", texts.count, unit="characters"),
}


def _matching(**given: Any) -> Objective:
    """Exact match of texts in which some things are left out; see filters.normalised."""
    try:
        normalised("", **given)
    except (TypeError, re.error) as error:
        raise InputError(
            f"Objective 'exact_match': {error}. It takes ignore_case, ignore_punctuation, ignore_numbers (true or false) and"
            " regexes_to_ignore (a list)."
        ) from error
    of = partial(matches, given)
    return from_samples("exact_match", of, about="exact match, less what is left out", bounds=UNIT, source=HARNESS)


def _expected(name: str, **given: Any) -> Objective:
    """A class metric of drawn options, in closed form."""
    if extra := sorted(set(given) - {"temperature"}):
        raise InputError(f"Objective 'expected_{name}' takes temperature, not {', '.join(extra)}.")
    temperature = given.get("temperature", 1.0)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < INFINITY:
        raise InputError(f"Objective 'expected_{name}?temperature={temperature}': give a number above 0, such as 1.")
    return from_bind(
        f"expected_{name}",
        Expected(name, float(temperature)).bind,
        needs=Needs.LIKELIHOOD,
        about=f"{name} of options drawn with their probabilities, in closed form",
        bounds=_OF_CLASSES[name][1],
    )


MAKERS: dict[str, Maker] = {
    **{
        f"expected_{name}": Maker(partial(_expected, name), f"{name} of options drawn at temperature=1.0", row[1])
        for name, row in _OF_CLASSES.items()
    },
    "exact_match": Maker(_matching, "exact match of texts in which some things are left out"),
    "bleu": Maker(partial(_corpus, "bleu", "corpus BLEU"), "", (0.0, 100.0)),
    "chrf": Maker(partial(_corpus, "chrf", "corpus chrF"), "", (0.0, 100.0)),
    "length": Maker(
        partial(_textual, "length", texts.length),
        "reward: 1 for at_least=1 to at_most=30 words (unit=characters), falling to 0",
    ),
    "format": Maker(partial(_textual, "format", texts.has_format), "reward: 1 where the text matches pattern=REGEX"),
    "keywords": Maker(
        partial(_textual, "keywords", texts.has_keywords), "reward: share of words=a,b that it has; 0 with one of without=c"
    ),
}
ALIASES = {"acc": "accuracy", "f1_binary": "f1", "em": "exact_match", "token_f1": "squad_f1", "matthews_correlation": "mcc"}
