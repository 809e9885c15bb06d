"""What a page is made of: folders of comparisons and runs, as read, and their rows in one table."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from zo_objectives.errors import InputError
from zo_objectives.families import UNTUNED

WORDS = ["task", "model", "method", "objective", "tune", "split", "metric", "run"]
COSTS = ["forwards", "examples", "tokens", "seconds", "peak_memory_mb", "parameters"]
NUMBERS = ["seed", "value", "n", *COSTS, "best_step"]
HISTORY = ["step", "forwards", "tie_rate", "validation"]
RUN = ["task", "model", "method", "objective", "tune", "precision", "seed"]  # what one run is known by
OPTIONAL = ["dtype"]  # columns of results.csv that old files lack
OF_SEED = re.compile(r"(.*), seed (\d+)(: .*)", re.DOTALL)  # a note of one run


class Source(NamedTuple):
    """One folder as read: its rows and what is known of how they were made."""

    folder: Path
    results: pd.DataFrame
    about: dict[str, Any]
    config: str
    notes: list[str]


def source(folder: Path) -> Source:
    """Read a folder; comparison.json and config.yaml are optional, and so is notes.txt of a run."""
    if not (folder / "results.csv").is_file():
        raise InputError(f"{folder} holds no results.csv. Give the output folder of `compare` or `run`.")
    results = read_csv(folder / "results.csv", [*WORDS, *OPTIONAL], NUMBERS)
    if results.empty:
        raise InputError(f"{folder / 'results.csv'} has no rows: nothing finished there. Run it again, then report.")
    about, config, notes = folder / "comparison.json", folder / "config.yaml", folder / "notes.txt"
    known = read_json(about, "\0")[0] if about.is_file() else {}
    run = results.iloc[0]
    said = [f"{run['task']}, {run['method']}, seed {run['seed']:g}: {line}" for line in _lines(notes)]
    return Source(folder, results, known, "\n".join(_lines(config)), merge_notes([*known.get("notes", []), *said]))


def _lines(path: Path) -> list[str]:
    """The lines of a text file; none where there is no such file."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def merge_notes(notes: Sequence[str]) -> list[str]:
    """The notes, each once; those that differ only in `, seed N:` become one, `, seeds M, N:`, where the first stood."""
    seeds = dict[tuple[str, str], list[str]]()
    for note in notes:
        found = OF_SEED.fullmatch(note)
        what, seed, said = found.groups() if found else (note, "", "")
        others = seeds.setdefault((what, said), [])
        others += [seed] if seed and seed not in others else []
    return [f"{what}, seed{'s' * (len(n) > 1)} {', '.join(n)}{said}" if n else what for (what, said), n in seeds.items()]


def read_json(path: Path, separator: str) -> list[dict[str, Any]]:
    """The JSON objects in a file, blank parts between separators skipped."""
    cure = "Repair or delete it; the report works without."
    try:
        found = [json.loads(part) for part in path.read_text(encoding="utf-8").split(separator) if part.strip()]
    except (ValueError, OSError) as error:
        raise InputError(f"Cannot read {path}: {error}. {cure}") from error
    if strange := [part for part in found if not isinstance(part, dict)]:
        raise InputError(f"{path} holds {str(strange[0])[:40]!r} where an object should be. {cure}")
    return found or [{}]


def read_csv(path: Path, words: list[str], numbers: list[str]) -> pd.DataFrame:
    """The named columns of a CSV file, words as text ("" where blank or optional) and numbers as floats (NaN where
    blank)."""
    cure = "Repeat the run that wrote it, or leave its folder out."
    try:
        table = pd.read_csv(path, dtype="str", keep_default_na=False)
        missing = [name for name in (*words, *numbers) if name not in (*table.columns, *OPTIONAL)]
        if not missing:
            table[numbers] = table[numbers].replace("", "nan").astype("float64")
            return table.reindex(columns=[*words, *numbers], fill_value="")
    except (ValueError, OSError) as error:
        raise InputError(f"Cannot read {path}: {error}. {cure}") from error
    raise InputError(f"{path} lacks the columns {', '.join(missing)}. {cure}")


def merge(sources: Sequence[Source]) -> pd.DataFrame:
    """All rows with their `folder`. A run found twice counts once; a method that was run in several ways (objective, tuned
    parameters, dtype, or the same seed with another outcome) becomes several, labelled `method · what differs`."""
    root = os.path.commonpath([source.folder.resolve() for source in sources])
    folders = {str(source.folder): os.path.relpath(source.folder.resolve(), root) for source in sources}
    table = pd.concat([source.results.assign(folder=str(source.folder)) for source in sources], ignore_index=True)
    table["place"] = table["folder"].map(folders)
    table.loc[table["method"].isin(UNTUNED), ["objective", "tune"]] = ""
    dtypes = set(table["dtype"]) - {""}
    table["precision"] = table["dtype"].replace("", dtypes.pop() if len(dtypes) == 1 else "unknown")
    kept = dict[object, pd.DataFrame]()
    for key, rows in table.groupby([*RUN, "folder"], sort=False, dropna=False):
        kept.setdefault((key[:-1], repr(rows[["split", "metric", "value"]].to_numpy().tolist())), rows)
    table = pd.concat(kept.values()).sort_index()
    for _, rows in table.groupby(["task", "model", "method"], sort=False):
        ways = [name for name in ("objective", "tune", "precision") if rows[name].nunique() > 1]
        ways += ["place"] * bool(rows.duplicated([*RUN, "split", "metric"]).any())
        if ways:
            table.loc[rows.index, "method"] = rows["method"] + " · " + rows[ways].agg(", ".join, axis=1)
    return table
