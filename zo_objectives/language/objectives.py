"""Objectives: (outputs, examples) -> float, higher is better. Built in, or anybody's function; see the modules below."""

from zo_objectives.language.builtin import ALIASES, BUILTIN, MAKERS
from zo_objectives.language.callables import from_callable
from zo_objectives.language.composite import Limit, product, subject_to, weighted
from zo_objectives.language.context import scoring
from zo_objectives.language.evaluating import from_evaluate
from zo_objectives.language.isolation import Isolation, isolated
from zo_objectives.language.objective import Failure, Needs, Objective, Scored
from zo_objectives.language.option_scores import cross_entropy
from zo_objectives.language.resolve import resolve
from zo_objectives.language.rewards import from_trl
from zo_objectives.language.scikit import from_sklearn

__all__ = [
    "ALIASES",
    "BUILTIN",
    "MAKERS",
    "Failure",
    "Isolation",
    "Limit",
    "Needs",
    "Objective",
    "Scored",
    "cross_entropy",
    "from_callable",
    "from_evaluate",
    "from_sklearn",
    "from_trl",
    "isolated",
    "product",
    "resolve",
    "scoring",
    "subject_to",
    "weighted",
]
