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
    from zo_objectives.estimators import Probe as Probe
    from zo_objectives.estimators import Spsa as Spsa
    from zo_objectives.geometry import Dense as Dense
    from zo_objectives.geometry import Scaled as Scaled
    from zo_objectives.journal import Journal as Journal
    from zo_objectives.loop import climb as climb
    from zo_objectives.loop import sequential as sequential
    from zo_objectives.noise import Law as Law
    from zo_objectives.rules import adam as adam
    from zo_objectives.rules import constant as constant
    from zo_objectives.rules import cosine as cosine
    from zo_objectives.rules import linear as linear
    from zo_objectives.rules import sgd as sgd
    from zo_objectives.weights import Weights as Weights

_WHERE = {
    "api": ("Tuned", "tune"),
    "errors": ("InputError", "RunError"),
    "estimators": ("Probe", "Spsa"),
    "geometry": ("Dense", "Scaled"),
    "journal": ("Journal",),
    "loop": ("climb", "sequential"),
    "noise": ("Law",),
    "rules": ("adam", "constant", "cosine", "linear", "sgd"),
    "weights": ("Weights",),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'zo_objectives' has no attribute {name!r}")
    return getattr(import_module(f"zo_objectives.{_MODULE[name]}"), name)
