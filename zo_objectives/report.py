"""One self-contained HTML page from the folders of a comparison or of single runs.

`summary` is the arithmetic (mean, spread over seeds, gain over zero-shot), `write_report` the page. The page states
what the numbers say: a difference counts as won or lost only when it exceeds the spread of the seeds. The same
folders give the same bytes: nothing here looks at the clock.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from zo_objectives.charts import Line, line_chart, strip
from zo_objectives.errors import InputError

WORDS = ["task", "model", "method", "objective", "tune", "split", "metric", "run"]
COSTS = ["forwards", "examples", "tokens", "seconds", "peak_memory_mb", "parameters"]
NUMBERS = ["seed", "value", "n", *COSTS, "best_step"]
HISTORY = ["step", "forwards", "tie_rate", "validation"]
RUN = ["task", "model", "method", "objective", "tune", "seed"]  # what one run is known by
ORDER = ("zero-shot", "icl", "lp", "mezo-ce", "ft", "zo")  # of the methods, everything else after them
OVERALL = ("zero-shot", "mezo-ce", "ft", "zo")  # the columns of the table over all tasks
UNTUNED = ("zero-shot", "icl")  # methods for which objective and tuned parameters mean nothing
STYLES = {"zo": "c0", "mezo-ce": "c1", "ft": "c2", "icl": "c3", "lp": "c4", "zero-shot": "c5"}
ZO = re.compile(r"zo\b")  # tuning on the objective with forward passes, and variants of it
STRETCHES = 60  # of training that tie rates are averaged over: a single step has few pairs
SHOWN = {"fixed": 3, "broken": 3, "right": 1, "wrong": 1, "better": 3, "worse": 3, "changed": 3, "unchanged": 2}

Row = Mapping[Any, Any]
Histories = dict[str, list[tuple[float, pd.DataFrame]]]


class Source(NamedTuple):
    """One folder as read: its rows and what is known of how they were made."""

    folder: Path
    results: pd.DataFrame
    about: dict[str, Any]
    config: str


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page for `folders`, merged, one section a task and model; returns `output`.

    InputError names the folder or file and the cure when one is missing, unreadable, incomplete or unwritable.
    """
    if not folders:
        raise InputError("Nothing to report on: name at least one folder that holds a results.csv.")
    sources = [_source(folder) for folder in {Path(folder).resolve(): Path(folder) for folder in folders}.values()]
    results = merge(sources)
    methods = sorted(set(results["method"]), key=_rank)
    page = _template().render(
        sections=[_section(runs, methods, sources) for _, runs in results.groupby(["task", "model"], sort=False)],
        overall=[name for usual in OVERALL for name in [one for one in methods if base(one) == usual] or [usual]],
        methods=methods,
        sources=sources,
    )
    try:
        output.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"Cannot write the report to {output}: {error.strerror}. Choose another file.") from error
    return output


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """One row a task, model, method, split and metric, methods in their usual order.

    `mean` and `std` (ddof 1, NaN with one seed) of the value over `seeds` runs with a number, out of `runs`; `gain`
    is the mean less zero-shot's (NaN without one); `n` and the costs of training are means over the runs.
    """
    groups = results.groupby(["task", "model", "method", "split", "metric"], sort=False)
    values = groups["value"].agg(mean="mean", std="std", seeds="count", runs="size")
    table: pd.DataFrame = values.join(groups[["n", *COSTS]].mean()).reset_index()
    where = ["task", "model", "split", "metric"]
    untuned = table[table["method"] == "zero-shot"].set_index(where)["mean"]
    table.insert(7, "gain", table["mean"] - untuned.reindex(pd.MultiIndex.from_frame(table[where])).to_numpy())
    pairs = list(dict.fromkeys(zip(table["task"], table["model"], strict=True)))
    cells = table[["task", "model", "method", "split"]].itertuples(index=False, name=None)
    places = [(pairs.index((task, model)), _rank(name), split != "validation") for task, model, name, split in cells]
    return table.take(sorted(range(len(table)), key=places.__getitem__)).reset_index(drop=True)


def base(method: str) -> str:
    """The method a label stands for: `zo` of `zo · lora`."""
    return method.partition(" · ")[0]


def _rank(method: str) -> tuple[int, str]:
    """Where a method stands: the usual order first, then by name; a variant stands where its method does."""
    return (ORDER.index(base(method)) if base(method) in ORDER else len(ORDER), method)


def _source(folder: Path) -> Source:
    """Read a folder; comparison.json and config.yaml are optional."""
    if not (folder / "results.csv").is_file():
        raise InputError(f"{folder} holds no results.csv. Give the output folder of `compare` or `run`.")
    results = _read_csv(folder / "results.csv", WORDS, NUMBERS)
    if results.empty:
        raise InputError(f"{folder / 'results.csv'} has no rows: nothing finished there. Run it again, then report.")
    about, config = folder / "comparison.json", folder / "config.yaml"
    known = _read_json(about, "\0")[0] if about.is_file() else {}
    return Source(folder, results, known, config.read_text(encoding="utf-8") if config.is_file() else "")


def _read_json(path: Path, separator: str) -> list[dict[str, Any]]:
    """The JSON objects in a file, blank parts between separators skipped."""
    cure = "Repair or delete it; the report works without."
    try:
        found = [json.loads(part) for part in path.read_text(encoding="utf-8").split(separator) if part.strip()]
    except (ValueError, OSError) as error:
        raise InputError(f"Cannot read {path}: {error}. {cure}") from error
    if strange := [part for part in found if not isinstance(part, dict)]:
        raise InputError(f"{path} holds {str(strange[0])[:40]!r} where an object should be. {cure}")
    return found or [{}]


def _read_csv(path: Path, words: list[str], numbers: list[str]) -> pd.DataFrame:
    """The named columns of a CSV file, words as text ("" where blank) and numbers as floats (NaN where blank)."""
    cure = "Repeat the run that wrote it, or leave its folder out."
    try:
        table = pd.read_csv(path, dtype="str", keep_default_na=False)
        missing = [name for name in (*words, *numbers) if name not in table.columns]
        if not missing:
            table[numbers] = table[numbers].replace("", "nan").astype("float64")
            return table[[*words, *numbers]]
    except (ValueError, OSError) as error:
        raise InputError(f"Cannot read {path}: {error}. {cure}") from error
    raise InputError(f"{path} lacks the columns {', '.join(missing)}. {cure}")


def merge(sources: Sequence[Source]) -> pd.DataFrame:
    """All rows with their `folder`. A run found twice counts once; a method that was run in several ways (objective,
    tuned parameters, or the same seed with another outcome) becomes several, labelled `method · what differs`."""
    root = os.path.commonpath([source.folder.resolve() for source in sources])
    folders = {str(source.folder): os.path.relpath(source.folder.resolve(), root) for source in sources}
    table = pd.concat([source.results.assign(folder=str(source.folder)) for source in sources], ignore_index=True)
    table["place"] = table["folder"].map(folders)
    table.loc[table["method"].isin(UNTUNED), ["objective", "tune"]] = ""
    kept = dict[object, pd.DataFrame]()
    for key, rows in table.groupby([*RUN, "folder"], sort=False, dropna=False):
        kept.setdefault((key[:-1], repr(rows[["split", "metric", "value"]].to_numpy().tolist())), rows)
    table = pd.concat(kept.values()).sort_index()
    for _, rows in table.groupby(["task", "model", "method"], sort=False):
        ways = [name for name in ("objective", "tune") if rows[name].nunique() > 1]
        ways += ["place"] * bool(rows.duplicated([*RUN, "split", "metric"]).any())
        if ways:
            table.loc[rows.index, "method"] = rows["method"] + " · " + rows[ways].agg(", ".join, axis=1)
    return table


def _section(runs: pd.DataFrame, methods: Sequence[str], sources: Sequence[Source]) -> dict[str, Any]:
    """All that the template shows of one task and model, whose results are `runs`."""
    rows = summary(runs)
    task, names = rows["task"].iloc[0], list(dict.fromkeys(rows["method"]))
    info: dict[str, Any] = next(filter(None, (source.about.get("tasks", {}).get(task) for source in sources)), {})
    metrics = sorted(dict.fromkeys(runs["metric"]), key=lambda name: name != info.get("metric"))
    split = "test" if (rows["split"] == "test").any() else "validation"
    cells = {(row["method"], row["split"], row["metric"]): row for row in rows.to_dict("records")}
    head = {name: row for (name, part, metric), row in cells.items() if (part, metric) == (split, metrics[0])}
    direction = 1 if info.get("higher_is_better", True) else -1
    missing = [name for name in methods if name not in names and name == base(name)]
    styles, histories = _styles(names), _histories(runs)
    return {
        **{"task": task, "model": rows["model"].iloc[0], "info": info, "metrics": metrics, "split": split},
        **{"cells": cells, "head": head, "direction": direction, "missing": missing, "styles": styles},
        "ways": {name: part.iloc[0] for name, part in runs.groupby("method", sort=False)},
        "best": _best(head, direction),
        "verdicts": {name: _verdicts(head, name, direction) for name in head if ZO.match(name)},
        "strips": _strips(runs[(runs["split"] == split) & (runs["metric"] == metrics[0])], styles),
        "curve": [*_levels(cells, metrics[0], styles, histories), *_curves(histories, styles)],
        "ties": list(_ties(histories, styles)),
        "predictions": _predictions(runs, split),
    }


def _best(head: Mapping[str, Row], direction: int) -> set[str]:
    """The methods with the best mean, to the three decimals that are shown."""
    means = {name: round(row["mean"] * direction, 3) for name, row in head.items() if row["seeds"]}
    return {name for name, mean in means.items() if mean == max(means.values())}


def _verdicts(head: Mapping[str, Row], zo: str, direction: int) -> dict[str, list[tuple[str, float]]]:
    """Which methods a variant of zo beats or loses to, and by how much; `level` within the spread of the seeds."""
    told: dict[str, list[tuple[str, float]]] = {"beats": [], "loses": [], "level": []}
    for name, row in head.items():
        ahead = (head[zo]["mean"] - row["mean"]) * direction
        noise = math.hypot(*(std for std in (head[zo]["std"], row["std"]) if not math.isnan(std)))
        if not ZO.match(name) and not math.isnan(ahead):
            told["level" if abs(ahead) <= noise + 1e-9 else "beats" if ahead > 0 else "loses"].append((name, ahead))
    return told


def _styles(names: Sequence[str]) -> dict[str, str]:
    """A CSS class for the colour of every method, the usual methods always the same."""
    spare = iter(("c6", "c7", "c3", "c4", "c2", "c1") * len(names))
    return {name: STYLES.get(name) or next(spare) for name in names}


def _strips(runs: pd.DataFrame, styles: Mapping[str, str]) -> dict[str, Any]:
    """Each method's seeds as dots on a scale that all methods of the task share."""
    runs = runs.dropna(subset="value").assign(seed=runs["seed"].map("seed {:g}".format))
    low, high = runs["value"].min(), runs["value"].max()
    groups = runs.groupby("method", sort=False)[["seed", "value"]]
    dots = {str(name): list(zip(part["seed"], part["value"], strict=True)) for name, part in groups}
    return {name: strip(values, low, high, styles[name]) for name, values in dots.items()}


def _histories(runs: pd.DataFrame) -> Histories:
    """By method, every seed's chosen step and history, where a history was written."""
    found: Histories = {}
    for _, run in runs.drop_duplicates(["method", "folder", "run"]).iterrows():
        path = Path(run["folder"]) / run["run"] / "history.csv"
        if path.is_file():
            found.setdefault(run["method"], []).append((run["best_step"], _read_csv(path, [], HISTORY)))
    return found


def _levels(cells: Mapping[Any, Row], metric: str, styles: Mapping[str, str], drawn: Histories) -> Iterator[Line]:
    """A dashed level for every method that has a validation score and no curve."""
    for name in (name for name in styles if name not in drawn and (name, "validation", metric) in cells):
        yield Line(name, styles[name], [(0.0, cells[name, "validation", metric]["mean"])], "level")


def _curves(histories: Histories, styles: Mapping[str, str]) -> Iterator[Line]:
    """Validation against forwards: thin by seed with a ring at the chosen step, thick the mean at shared steps."""
    for name, seeds in histories.items():
        told = pd.concat([history.assign(best=best) for best, history in seeds]).dropna(subset="validation")
        for history in (history.dropna(subset="validation") for _, history in seeds if len(seeds) > 1):
            yield Line("", f"{styles[name]} seed", _points(history, "validation"))
        yield Line("", f"{styles[name]} ring", _points(told[told["step"] == told["best"]], "validation"), "rings")
        at = told.groupby("step")
        means = at[["forwards", "validation"]].mean()[at.size() == at.size().max()]
        yield Line(name, styles[name], _points(means, "validation"))


def _ties(histories: Histories, styles: Mapping[str, str]) -> Iterator[Line]:
    """The share of tied pairs against forwards, averaged over seeds and stretches of training."""
    for name, seeds in histories.items():
        told = pd.concat([history for _, history in seeds]).dropna(subset="tie_rate")
        stretch = told["step"] // math.ceil((told["step"].max() + 1) / STRETCHES) if len(told) else told["step"]
        yield Line(name, styles[name], _points(told.groupby(stretch)[["forwards", "tie_rate"]].mean(), "tie_rate"))


def _points(table: pd.DataFrame, column: str) -> list[tuple[float, float]]:
    """A column against forwards."""
    return list(zip(table["forwards"].tolist(), table[column].tolist(), strict=True))


def _predictions(runs: pd.DataFrame, split: str) -> dict[str, Any]:
    """What the first run of zo with predictions changed: how often, and the first few cases of each kind."""
    for _, run in runs[runs["method"].str.match(ZO)].sort_values("seed", kind="stable").iterrows():
        path = Path(run["folder"]) / run["run"] / "predictions.jsonl"
        if path.is_file():
            rows = [row for row in _read_json(path, "\n") if row.get("split") == split]
            cases = [(_kind(row), row) for row in rows]
            by_kind = {kind: [case for case in cases if case[0] == kind] for kind in SHOWN}
            shown = [case for kind, most in SHOWN.items() for case in by_kind[kind][:most]]
            counts = {kind: len(found) for kind, found in by_kind.items() if found}
            return {"run": run, "total": len(rows), "counts": counts, "shown": shown}
    return {}


def _kind(row: Mapping[str, Any]) -> str:
    """How a prediction changed: by correctness, else by score, else by text."""
    correct: Any = (row.get("correct_before"), row.get("correct_after"))
    if None not in correct:
        return {(False, True): "fixed", (True, False): "broken", (True, True): "right"}.get(correct, "wrong")
    before, after = row.get("score_before"), row.get("score_after")
    if before is None or after is None:
        return "unchanged" if row.get("before") == row.get("after") else "changed"
    return "better" if after > before else "worse" if after < before else "unchanged"


def _number(value: float, decimals: int = 0, signed: bool = False) -> str:
    """A number with thousands separators and a true minus sign; an em dash for NaN."""
    text = f"{value:{'+' if signed else '-'}z,.{decimals}f}".replace("-", "\N{MINUS SIGN}")
    return "\N{EM DASH}" if math.isnan(value) else text


def _shorten(text: str, most: int = 260) -> str:
    """The text with its middle left out when it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most * 2 // 3].rstrip()} \u2026 {text[-most // 3 :].lstrip()}"


@cache
def _template() -> Template:
    """The page's template: every text that is not markup of ours is escaped."""
    places = FileSystemLoader(Path(__file__).parent / "assets")
    page = Environment(loader=places, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": _number, "shorten": _shorten, "words": re.compile(r"[\w-]+").findall}
    page.globals |= {"line_chart": line_chart}
    return page.get_template("report.html.jinja")
