"""An objective by name: how the command line and task files say what Python says with objects.

    accuracy   length?at_most=20                      a builtin, with arguments (builtin.py); or a plug-in's
    pkg.module:name   pkg.module.name   file.py:name  any callable (callables.py), as f?argument=value#key
    sklearn:f1_score?average=macro                    a metric or scorer of scikit-learn
    evaluate:squad#f1   evaluate:./my/metric          a metric of evaluate: on the hub, or a folder
    trl:pkg.mod:f,file.py:g?weights=1,0.5             reward functions of TRL's; format=conversational for lists of messages
    accuracy + 0.1 * length   f1 subject to words <= 30   several of these (composite.py)

Everywhere: name=..., direction=min for what should be small, and timeout=, workers=, pure= (isolation.py).
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zlib import crc32

from zo_objectives.errors import InputError, unknown
from zo_objectives.language import plugins
from zo_objectives.language.builtin import ALIASES, BUILTIN, MAKERS
from zo_objectives.language.callables import from_callable
from zo_objectives.language.composite import weighted
from zo_objectives.language.evaluating import from_evaluate
from zo_objectives.language.expressions import is_expression, parse
from zo_objectives.language.isolation import Isolation, isolated
from zo_objectives.language.objective import Objective
from zo_objectives.language.rewards import from_trl, made_reward
from zo_objectives.language.scikit import find, from_sklearn

SCHEMES = ("sklearn", "evaluate", "trl")
FORMATS = ("standard", "conversational")  # of prompts and completions, in TRL's words


@dataclass(frozen=True)
class Said:
    """A name taken apart: scheme:path?arguments#key."""

    scheme: str
    path: str
    given: tuple[tuple[str, str], ...]
    key: str | None

    @classmethod
    def of(cls, text: str) -> "Said":
        scheme, _, rest = text.partition(":")
        scheme, rest = (scheme, rest) if scheme in SCHEMES else ("", text)
        rest, _, query = rest.partition("?")
        rest, hash_, key = rest.partition("#")
        if not hash_:
            query, hash_, key = query.partition("#")
        pairs = [p.partition("=") for p in query.split("&") if p]
        if bad := [name for name, sign, _ in pairs if not sign or not name.isidentifier()]:
            raise InputError(f"Cannot read {bad[0]!r} in objective {text!r}: arguments are ?name=value&name=value.")
        return cls(scheme, rest, tuple((n, v) for n, _, v in pairs), unquote(key) if hash_ else None)


def value_of(text: str) -> Any:
    """An argument's value: a Python literal, true, false or null; else the text."""
    text = unquote(text)
    known = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in known:
        return known[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def resolve(name: str | Callable[..., Any] | Objective, folder: Path = Path()) -> Objective:
    """An objective by name (see the module's text; files are looked up from `folder`) or from a callable. The same name
    gives the same objective while its file is as it was. Raises InputError."""
    if isinstance(name, Objective):
        return name
    if not isinstance(name, str):
        return from_callable(name)
    return _by_name(name, folder.resolve(), True)


def plainly(name: str, folder: Path) -> Objective:
    """The same without timeout, workers and memory: what runs inside a worker."""
    return _by_name(name, folder.resolve(), False)


def _by_name(name: str, folder: Path, apart: bool) -> Objective:
    name = " ".join(name.split())
    return _kept(name, folder, apart, tuple(stamp for word in name.split() for stamp in _stamps(word, folder)))


def _stamps(word: str, folder: Path) -> list[int]:
    """When the Python files in a name were last changed."""
    files = [folder / f"{entry.rpartition('.py:')[0]}.py" for entry in word.split(",") if ".py:" in entry]
    return [f.stat().st_mtime_ns if f.is_file() else 0 for f in files]


@cache
def _kept(name: str, folder: Path, apart: bool, stamps: tuple[int, ...]) -> Objective:
    if is_expression(name):
        found = parse(name, lambda word: _by_name(word, folder, apart))
        return replace(found, recipe=(name, str(folder)))
    if (known := ALIASES.get(name, name)) in BUILTIN:
        return BUILTIN[known]
    said = Said.of(name)
    given = {n: value_of(v) for n, v in said.given}
    isolation = Isolation.of(given)
    title, direction = given.pop("name", None), given.pop("direction", "max")
    if direction not in ("max", "min"):
        raise InputError(f"direction={direction!r} in objective {name!r}: it is max or min.")
    found = _single(said, given, folder)
    told = "&".join(f"{n}={v}" for n, v in said.given if n in given)
    label = f"{found.name}?{told}" if told and said.scheme != "trl" else found.name
    found = replace(found, name=str(title or label), recipe=(name, str(folder)))
    if direction == "min":
        found = replace(weighted((-1.0, found), name=f"-{found.name}"), recipe=(name, str(folder)))
    return isolated(found, isolation) if apart else found


def _single(said: Said, given: dict[str, Any], folder: Path) -> Objective:
    """The objective that a name without isolation stands for."""
    match said.scheme:
        case "sklearn":
            return from_sklearn(find(said.path), **given)
        case "evaluate":
            return from_evaluate(said.path, said.key, folder=folder, **given)
        case "trl":
            return _rewards(said, given, folder)
    known = ALIASES.get(said.path, said.path)
    if known in MAKERS and (given or known not in BUILTIN):
        return MAKERS[known].make(**given)
    if known in BUILTIN:
        raise InputError(f"Objective {known!r} takes no arguments, found {', '.join(given) or f'#{said.key}'}.")
    if (plugin := plugins.found(plugins.OBJECTIVES).get(said.path)) is not None:
        return from_callable(plugin.load(), said.path, key=said.key, **given)
    if "*" in said.path:
        raise InputError(f"Cannot read {said.path!r}: write 0.7 * NAME + NAME, with spaces around + - *.")
    if ":" in said.path or "." in said.path:
        if given.get("format") in FORMATS:
            return _rewards(said, given, folder)
        name = said.path.rpartition(":")[2] or said.path
        return from_callable(imported(said.path, folder), name, key=said.key, **given)
    raise unknown("objective", said.path, {*BUILTIN, *MAKERS, *ALIASES, *plugins.found(plugins.OBJECTIVES)})


def _rewards(said: Said, given: dict[str, Any], folder: Path) -> Objective:
    form, weights = given.get("format"), given.get("weights")
    if form not in (None, *FORMATS):
        raise InputError(f"format={form!r}: completions are texts (standard) or lists of messages (conversational).")
    arguments = {k: v for k, v in given.items() if k not in ("format", "weights")}
    functions = [made_reward(imported(path, folder), arguments) for path in said.path.split(",")]
    several = [weights] if isinstance(weights, (int, float)) else weights
    chat = None if form is None else form == "conversational"
    return from_trl(functions if several or len(functions) > 1 else functions[0], conversational=chat, weights=several)


def imported(path: str, folder: Path) -> Any:
    """The object that `module:name`, `module.name` or `file.py:name` stands for; files are looked up from `folder`."""
    module_name, _, attribute = path.rpartition(":") if ":" in path else path.rpartition(".")
    if path.endswith(".py"):
        raise InputError(f"Objective {path!r} names no function: write {path}:FUNCTION.")
    try:
        module = _file(folder / module_name) if module_name.endswith(".py") else _module(module_name, folder)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"Cannot import {module_name!r} for objective {path!r}: {type(error).__name__}: {error}."
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        ours = (n for n, v in vars(module).items() if n[:1] != "_" and callable(v) and v.__module__ == module.__name__)
        raise unknown(f"function in {module_name}", attribute, ours) from None


def _module(name: str, folder: Path) -> Any:
    """A module that is installed, or lies in `folder` or where the command was given."""
    for place in (str(Path.cwd()), str(folder)):
        if place not in sys.path:
            sys.path.append(place)
    return importlib.import_module(name)


def _file(file: Path) -> Any:
    """The module in a file, registered so that classes in it can be found again."""
    if not file.is_file():
        raise InputError(f"Objective file {file} does not exist.")
    name = f"{file.stem}_{crc32(str(file.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
