"""What a run is judged by, kept in its folder: results on one objective are not taken for those on another.

A function that failed may be mended, and the run then goes on with it; that is noted. A finished run is only shown again for
the objective that it was made with.
"""

import json
from pathlib import Path
from typing import Any

from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError
from zo_objectives.language.fingerprint import PYTHON, fingerprint
from zo_objectives.language.objectives import Objective, resolve
from zo_objectives.results import write_atomically

JUDGED = "judged.json"
CHANGED = "The code of {name} was changed after the run had begun: steps before that were scored by the code as it was."
ELSEWHERE = "Choose another output, or remove that folder."
Record = dict[str, Any]


def record(config: RunConfig, own: Objective | None) -> Record:
    """Names and fingerprints of the objective and the metric; None for the task's. `own` is an objective from Python."""
    climbed = own or (resolve(config.objective) if config.objective else None)
    given = {"objective": climbed, "metric": resolve(config.metric) if config.metric else None}
    told = {role: {"name": o.name, "code": fingerprint(o)} if o else None for role, o in given.items()}
    return {**told, "python": PYTHON, "notes": []}


def keep(output: Path, config: RunConfig, own: Objective | None, *, begun: bool, finished: bool) -> list[str]:
    """Keeps what a run in `output` is judged by, and returns notes of what has changed since it began.

    Raises InputError where the run that is there is judged by something else. One of an earlier version says nothing.
    """
    path, now = output / JUDGED, record(config, own)
    if not begun:
        write_atomically(path, json.dumps(now, indent=1) + "\n")
    if not path.exists():
        return []
    kept: Record = json.loads(path.read_text(encoding="utf-8"))
    for role in ("objective", "metric"):
        was, name = kept[role] or {"name": None}, (now[role] or {"name": None})["name"]
        if was["name"] != name:
            raise InputError(
                f"{output} holds a run whose {role} is {_called(was['name'])}, not {_called(name)}. {ELSEWHERE}"
            )
        if kept["python"] == PYTHON and name is not None and was["code"] != now[role]["code"]:
            if finished:
                raise InputError(f"{output} holds a finished run on {name!r}, whose code has changed since. {ELSEWHERE}")
            kept[role] = now[role]
            kept["notes"] = list(dict.fromkeys([*kept["notes"], CHANGED.format(name=name)]))
            write_atomically(path, json.dumps(kept, indent=1) + "\n")
    notes: list[str] = kept["notes"]
    return notes


def _called(name: str | None) -> str:
    return "the task's own" if name is None else repr(name)
