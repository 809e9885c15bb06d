"""What `objectives ls` shows: every objective that has a name, built in or of another package."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from zo_objectives.errors import InputError
from zo_objectives.language import plugins
from zo_objectives.language.builtin import ALIASES, BUILTIN, MAKERS
from zo_objectives.language.callables import from_callable
from zo_objectives.language.objective import Objective

OTHERS = """\
Also: module:function, file.py:function, sklearn:f1_score?average=macro, evaluate:NAME_OR_FOLDER#key, trl:module:reward,
with ?argument=value; and several: '0.7 * accuracy + 0.3 * f1_macro', 'squad_f1 subject to words <= 30'."""


@dataclass(frozen=True)
class Row:
    """One line of the list."""

    name: str
    about: str
    bounds: str
    direction: str
    source: str
    aliases: str


def rows() -> Iterator[Row]:
    """The builtins, those with arguments, and plug-ins; a broken plug-in is a warning."""
    for name, objective in BUILTIN.items():
        yield _row(name, objective, objective.source)
    for name, maker in MAKERS.items():
        if name not in BUILTIN:
            yield Row(name, maker.about, _range(*maker.bounds), "higher", maker.source, "")
    for plugin, value in plugins.loaded(plugins.OBJECTIVES):
        if plugin.name in BUILTIN or plugin.name in MAKERS or plugin.name in ALIASES:
            plugins.warn(f"Plug-in {plugin.name!r} of {plugin.distribution!r} is left out: there is a builtin of that name.")
            continue
        try:
            yield _row(plugin.name, from_callable(value, plugin.name), plugin.distribution)
        except InputError as error:
            plugins.warn(f"Plug-in {plugin.name!r} of distribution {plugin.distribution!r} is broken: {error}")


def _row(name: str, objective: Objective, source: str) -> Row:
    aliases = ", ".join(a for a, of in ALIASES.items() if of == name)
    return Row(name, objective.about or "-", _range(*objective.bounds), "higher", source, aliases)


def _range(low: float, high: float) -> str:
    if math.isinf(low):
        return "any" if math.isinf(high) else f"below {high:g}"
    return f"above {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
