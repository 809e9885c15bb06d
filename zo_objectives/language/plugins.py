"""What other packages add, by entry points: `zo_objectives.objectives` and `zo_objectives.tasks`.

    [project.entry-points."zo_objectives.objectives"]
    politeness = "my_package.scores:politeness"       # an Objective or any callable of a user's
    [project.entry-points."zo_objectives.tasks"]
    mine = "my_package:TASKS"                         # a folder of task files: a path, a package, or a function for it

One that cannot be loaded is a warning that names its distribution, and the others work.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from zo_objectives.errors import InputError

OBJECTIVES, TASKS = "zo_objectives.objectives", "zo_objectives.tasks"


@dataclass(frozen=True)
class Plugin:
    """An entry point, not yet loaded."""

    name: str
    distribution: str
    entry: EntryPoint

    def load(self) -> Any:
        """What it stands for. Raises InputError that names the distribution."""
        try:
            return self.entry.load()
        except Exception as error:
            raise InputError(
                f"Plug-in {self.name!r} of distribution {self.distribution!r} is broken ({self.entry.value}):"
                f" {type(error).__name__}: {error}. Mend or uninstall it."
            ) from error


def found(group: str) -> dict[str, Plugin]:
    """The plug-ins of a group by name; of two with one name the first, with a warning."""
    known: dict[str, Plugin] = {}
    for entry in entry_points(group=group):
        plugin = Plugin(entry.name, entry.dist.name if entry.dist is not None else "unknown", entry)
        if (other := known.setdefault(entry.name, plugin)) is not plugin:
            warn(f"Plug-in {entry.name!r} of {plugin.distribution!r} is left out: {other.distribution!r} has one, too.")
    return known


def loaded(group: str) -> Iterator[tuple[Plugin, Any]]:
    """Each plug-in with what it stands for; a broken one is a warning."""
    for plugin in found(group).values():
        try:
            yield plugin, plugin.load()
        except InputError as error:
            warn(str(error))


def task_folders() -> dict[str, Path]:
    """Folders of task files that other packages bring, by plug-in's name."""
    folders = {}
    for plugin, value in loaded(TASKS):
        try:
            folders[plugin.name] = _folder(value)
        except Exception as error:
            warn(f"Plug-in {plugin.name!r} of distribution {plugin.distribution!r} gives no folder of tasks: {error}.")
    return folders


def _folder(value: Any) -> Path:
    given = value() if callable(value) else value
    path = Path(str(given.__file__)).parent if isinstance(given, ModuleType) else Path(given)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is no folder")
    return path


def warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
