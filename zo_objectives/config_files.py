"""A run's configuration as its folder keeps it: written, read again, and told from another run's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError
from zo_objectives.methods import PROBING
from zo_objectives.settings import Settings

HOW = {"on_failure", "isolation"}  # settings that say how a run is made, not which run it is: it may go on with others


def identity(config: RunConfig) -> Settings:
    """What makes a run the run it is, in JSON's terms: all settings, also of the runs before it, but those of HOW."""
    before = identity(config.before) if config.before else None
    return {**config.model_dump(mode="json", exclude={*HOW, "before"}), "before": before}


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting, as in `ft.steps`, in which two identities differ, with both values; None where none does."""
    for key in wanted:
        was, now = found.get(key), wanted[key]
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            if inner := difference(was, now):
                return f"{key}.{inner[0]}", *inner[1:]
        elif was != now:
            return key, was, now
    return None


def dump(config: RunConfig) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def upgraded(content: Mapping[str, Any]) -> Settings:
    """A run's settings as version 0.1.0 wrote them, in today's terms: `start: lp` is a linear probe before the run."""
    kept = {key: value for key, value in content.items() if key != "start"}
    return kept | ({"before": {**kept, "method": PROBING, "label": ""}} if content.get("start") == PROBING else {})


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder. Raises InputError."""
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{folder} is no run folder: {path.name} cannot be read ({type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is empty or half-written. Remove the folder and start the run again.")
    return make_config(upgraded(content))
