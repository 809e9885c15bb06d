"""Tune language models on the metric itself, with forward passes only.

`tune` runs a task as the command line does. The search side below it works on any `nn.Module`: `Weights`, `Spsa`, `climb`.
Names are imported when they are first used, so that `import zo_objectives` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zo_objectives.api import Tuned as Tuned
    from zo_objectives.api import tune as tune
    from zo_objectives.errors import InputError as InputError
    from zo_objectives.errors import RunError as RunError
    from zo_objectives.errors import SkipStep as SkipStep
    from zo_objectives.language.objectives import Isolation as Isolation
    from zo_objectives.language.objectives import Limit as Limit
    from zo_objectives.language.objectives import Objective as Objective
    from zo_objectives.language.objectives import Scored as Scored
    from zo_objectives.language.objectives import from_evaluate as from_evaluate
    from zo_objectives.language.objectives import from_sklearn as from_sklearn
    from zo_objectives.language.objectives import from_trl as from_trl
    from zo_objectives.language.objectives import isolated as isolated
    from zo_objectives.language.objectives import product as product
    from zo_objectives.language.objectives import resolve as resolve
    from zo_objectives.language.objectives import subject_to as subject_to
    from zo_objectives.language.objectives import weighted as weighted
    from zo_objectives.search.adaptive import Adaptive as Adaptive
    from zo_objectives.search.adaptive import backprop_norms as backprop_norms
    from zo_objectives.search.adaptive import parameter_norms as parameter_norms
    from zo_objectives.search.adaptive import zeroth_order_norms as zeroth_order_norms
    from zo_objectives.search.estimators import Clipped as Clipped
    from zo_objectives.search.estimators import Es as Es
    from zo_objectives.search.estimators import OnePoint as OnePoint
    from zo_objectives.search.estimators import OneSided as OneSided
    from zo_objectives.search.estimators import Probe as Probe
    from zo_objectives.search.estimators import RoundRobin as RoundRobin
    from zo_objectives.search.estimators import Spsa as Spsa
    from zo_objectives.search.estimators import growing as growing
    from zo_objectives.search.geometry import Dense as Dense
    from zo_objectives.search.geometry import LowRank as LowRank
    from zo_objectives.search.geometry import Masked as Masked
    from zo_objectives.search.geometry import Scaled as Scaled
    from zo_objectives.search.geometry import largest as largest
    from zo_objectives.search.geometry import smallest as smallest
    from zo_objectives.search.journal import Journal as Journal
    from zo_objectives.search.journal import header_for as header_for
    from zo_objectives.search.layers import Modified as Modified
    from zo_objectives.search.layers import by_layer as by_layer
    from zo_objectives.search.loop import climb as climb
    from zo_objectives.search.members import batched as batched
    from zo_objectives.search.members import distributed as distributed
    from zo_objectives.search.members import sequential as sequential
    from zo_objectives.search.noise import Law as Law
    from zo_objectives.search.pace import Paced as Paced
    from zo_objectives.search.rules import adam as adam
    from zo_objectives.search.rules import adam_of_signs as adam_of_signs
    from zo_objectives.search.rules import anchored as anchored
    from zo_objectives.search.rules import momentum as momentum
    from zo_objectives.search.rules import recomputed as recomputed
    from zo_objectives.search.rules import sgd as sgd
    from zo_objectives.search.rules import sign as sign
    from zo_objectives.search.schedules import constant as constant
    from zo_objectives.search.schedules import cosine as cosine
    from zo_objectives.search.schedules import linear as linear
    from zo_objectives.search.schedules import warmed_up as warmed_up
    from zo_objectives.search.tuned import matching as matching
    from zo_objectives.search.tuned import trainable as trainable
    from zo_objectives.search.weights import Weights as Weights

_WHERE = {
    "search.adaptive": ("Adaptive", "backprop_norms", "parameter_norms", "zeroth_order_norms"),
    "api": (
        "Tuned",
        "tune",
    ),
    "errors": ("InputError", "RunError", "SkipStep"),
    "language.objectives": (
        "Isolation",
        "Limit",
        "Objective",
        "Scored",
        "from_evaluate",
        "from_sklearn",
        "from_trl",
        "isolated",
        "product",
        "resolve",
        "subject_to",
        "weighted",
    ),
    "search.estimators": (
        "Clipped",
        "Es",
        "OnePoint",
        "OneSided",
        "Probe",
        "RoundRobin",
        "Spsa",
        "growing",
    ),
    "search.geometry": (
        "Dense",
        "LowRank",
        "Masked",
        "Scaled",
        "largest",
        "smallest",
    ),
    "search.journal": (
        "Journal",
        "header_for",
    ),
    "search.layers": ("Modified", "by_layer"),
    "search.loop": ("climb",),
    "search.members": ("batched", "distributed", "sequential"),
    "search.noise": ("Law",),
    "search.pace": ("Paced",),
    "search.rules": (
        "adam",
        "adam_of_signs",
        "anchored",
        "momentum",
        "recomputed",
        "sgd",
        "sign",
    ),
    "search.schedules": (
        "constant",
        "cosine",
        "linear",
        "warmed_up",
    ),
    "search.tuned": (
        "matching",
        "trainable",
    ),
    "search.weights": ("Weights",),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'zo_objectives' has no attribute {name!r}")
    return getattr(import_module(f"zo_objectives.{_MODULE[name]}"), name)
