"""Options that several commands share, and what their texts mean."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from zo_objectives.errors import InputError

Model = Annotated[str | None, typer.Option("--model", help="Folder, hub name, or reviews-1m (embedded).")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Read DIR/<task>/{train,validation,test}.jsonl, not the hub.")
]
Include = Annotated[
    Path | None, typer.Option("--include-path", "--include_path", help="A folder with task files of your own.")
]
ObjectiveOption = Annotated[
    str | None, typer.Option("--objective", help="A name, module:function, file.py:function or a sum; see objectives ls.")
]
Tune = Annotated[
    str | None,
    typer.Option(
        "--tune", help="all, head, features:K, norms, layers:A-B, pattern:REGEX, lora, prefix, prompt; joined by +."
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting, as key=value; repeat it.")]
Seeds = Annotated[str, typer.Option("--seeds", help="How many, from 0, or the seeds themselves, as in 13,21,42.")]
Budget = Annotated[int | None, typer.Option("--budget", help="Forward passes for each zeroth-order run, or chain of them.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="A YAML file of settings, also under tasks.TASK and methods.METHOD.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


MOST_SEEDS = 10_000  # that a number stands for


def settings_of(*, set_: list[str] | None, config: Path | None = None, **given: Any) -> dict[str, Any]:
    """The user's settings: a file's first, then options, then --set."""
    from zo_objectives.settings import merge, parse_set, read_settings

    options = {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    return merge(merge(read_settings(config) if config else {}, options), parse_set(set_ or []))


def seeds_of(text: str) -> list[int]:
    """`3` is 0, 1, 2; `13,21` is those; `13,` is one."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts[:-1]) or not (parts[-1].isdigit() or (len(parts) > 1 and not parts[-1])):
        raise InputError(f"--seeds {text}: give a number of seeds, as in 3, or the seeds, as in 13,21,42.")
    if len(parts) == 1 and int(text) > MOST_SEEDS:
        raise InputError(f"--seeds {text}: that is how many seeds. For this one alone write {text}, with the comma.")
    seeds = [int(part) for part in parts if part] if len(parts) > 1 else list(range(int(text)))
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text}: give at least one seed, and each once.")
    return seeds


def scales_of(text: str | None) -> list[float] | None:
    """`0.1,0.3` as numbers."""
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--scales {text}: give numbers with commas, as in 0.1,0.3.") from error
    if not all(math.isfinite(scale) and scale > 0 for scale in found):
        raise InputError(f"--scales {text}: a scale is a finite number above 0.")
    return found


def names_in(text: str) -> list[str]:
    """`zo,ft:lora` as names; empty ones are left out."""
    return [name.strip() for name in text.split(",") if name.strip()]
