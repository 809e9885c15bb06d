"""What an objective is made of, as a short text: the same for the same code and arguments, another one for others.

The user's functions count with their code and defaults, and with the functions, classes and constants that they close over
or find in their module; what is installed (this package, scikit-learn, ...) counts with its name. Objects count with their
class and their public attributes that are numbers, texts or functions. Lists and dictionaries beside functions do not
count: they may be what a function remembers. The same on every machine, for one minor version of Python.
"""

import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from zo_objectives.language.objective import Objective

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"  # whose code it is
SIMPLE = (int, float, complex, str, bytes, bool, type(None))
COUNTED = (*SIMPLE, tuple, FunctionType, MethodType, partial, type)  # among the attributes of an object
BESIDE = ("about", "source", "recipe")  # what is said of an objective, and where it was found
OWN = Path(__file__).parents[1]
INSTALLED = (str(OWN), *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")))


def fingerprint(objective: Objective) -> str:
    """Sixteen hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in _told(objective, set()):
        digest.update(part.encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()


def _told(thing: Any, seen: set[int]) -> Iterator[str]:
    """The parts of a thing's description."""
    if isinstance(thing, SIMPLE):
        yield repr(thing)
        return
    if id(thing) in seen:
        yield "again"
        return
    seen.add(id(thing))
    if isinstance(thing, partial):
        yield from _told((thing.func, thing.args, thing.keywords), seen)
    elif isinstance(thing, MethodType):
        yield from _told((thing.__func__, thing.__self__), seen)
    elif isinstance(thing, FunctionType):
        yield from _function(thing, seen)
    elif isinstance(thing, type):
        yield from _class(thing, seen)
    elif isinstance(thing, Mapping):
        yield from _told([(key, thing[key]) for key in sorted(thing, key=str)], seen)
    elif isinstance(thing, list | tuple):
        for inner in thing:
            yield from _told(inner, seen)
    elif isinstance(thing, set | frozenset):
        yield repr(sorted(map(str, thing)))
    elif hasattr(thing, "__module__") and hasattr(thing, "__qualname__"):
        yield f"{thing.__module__}.{thing.__qualname__}"
    elif is_dataclass(thing):
        told = (field.name for field in fields(thing) if not (isinstance(thing, Objective) and field.name in BESIDE))
        yield from _told((type(thing), *(getattr(thing, name) for name in told)), seen)
    else:
        own = getattr(thing, "__dict__", {}).items()
        yield from _told((type(thing), {k: v for k, v in own if k[:1] != "_" and isinstance(v, COUNTED)}), seen)


def _function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    yield function.__qualname__
    if function.__code__.co_filename.startswith(INSTALLED):
        yield str(function.__module__)
        return
    yield from _code(function.__code__)
    yield from _told((function.__defaults__, function.__kwdefaults__), seen)
    for name, used in _beside(function):
        if not isinstance(used, ModuleType | list | dict | set):
            yield name
            yield from _told(used, seen)


def _beside(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function finds by name: around it, and in its module."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty one
            yield name, cell.cell_contents
    for name in sorted(_names(function.__code__) & set(function.__globals__)):
        yield name, function.__globals__[name]


def _class(kind: type, seen: set[int]) -> Iterator[str]:
    yield f"{kind.__qualname__}"
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None) or ""
    if kind.__module__ == "builtins" or file.startswith(INSTALLED):
        yield kind.__module__
        return
    for name, value in sorted(vars(kind).items()):
        plain = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if isinstance(plain, FunctionType) or (isinstance(plain, SIMPLE) and name[:1] != "_"):
            yield name
            yield from _told(plain, seen)


def _code(code: CodeType) -> Iterator[str]:
    """What a code object does: no line numbers, no places."""
    yield from (code.co_name, code.co_code.hex(), repr(code.co_names), repr(code.co_varnames))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def _names(code: CodeType) -> set[str]:
    """The names that code looks up, in functions within it too."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))
