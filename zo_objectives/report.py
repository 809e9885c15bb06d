"""One self-contained HTML page from the folders of a comparison or of single runs.

`summary` is the arithmetic (mean, spread over seeds, gain over zero-shot), `pivot` tasks x methods, `write_report` the
page. The page states what the numbers say: a difference counts as won or lost only when it exceeds the spread of the
seeds, and neither where one seed shows none. The same folders give the same bytes: nothing here looks at the clock.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from zo_objectives.charts import Line, line_chart, strip
from zo_objectives.errors import InputError
from zo_objectives.families import SEEDLESS, base, family, forward_only, group, rank, told
from zo_objectives.sources import HISTORY, Source, merge, read_csv, read_json, source
from zo_objectives.standings import forwards_of, pivot, standing, summary

STYLES = {"zo": "c0", "zo-ce": "c6", "mezo-ce": "c1", "ft": "c2"}
STYLES |= {"icl": "c3", "lp": "c7", "zero-shot": "c5", "calibrated": "c4"}
VARIANTS = 4  # looks of one colour, one for each method of a family
MANY = 5  # notes; more are folded away
WORD = re.compile(r"[\w-]+(?:[:+][\w-]+)*")  # `zo:lora` and `lp+zo` are one word, `sst2:` is `sst2`
STRETCHES = 60  # of training that tie rates are averaged over: a single step has few pairs
SHOWN = {"fixed": 3, "broken": 3, "right": 1, "wrong": 1, "better": 3, "worse": 3, "changed": 3, "unchanged": 2}

Row = Mapping[Any, Any]
Histories = dict[str, list[tuple[float, pd.DataFrame]]]


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page for `folders`, merged, one section a task and model; returns `output`.

    InputError names the folder or file and the cure when one is missing, unreadable, incomplete or unwritable.
    """
    if not folders:
        raise InputError("Nothing to report on: name at least one folder that holds a results.csv.")
    sources = [source(folder) for folder in {Path(folder).resolve(): Path(folder) for folder in folders}.values()]
    results = merge(sources)
    methods = sorted(set(results["method"]), key=rank)
    sections = [_section(runs, methods, sources) for _, runs in results.groupby(["task", "model"], sort=False)]
    table = pivot(results, {section["task"]: section["metrics"][0] for section in sections})
    page = _template().render(
        sections=sections,
        groups=[(title, len(list(names))) for title, names in groupby(methods, group)],
        standing=standing(table, [section["direction"] for section in sections]),
        forwards=forwards_of(results, methods),
        methods=methods,
        sources=sources,
        tasks={section["task"] for section in sections},
    )
    try:
        output.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"Cannot write the report to {output}: {error.strerror}. Choose another file.") from error
    return output


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
    styles, histories = _styles(methods), _histories(runs)
    return {
        **{"task": task, "model": rows["model"].iloc[0], "info": info, "metrics": metrics, "split": split},
        **{"cells": cells, "head": head, "direction": direction, "missing": missing, "styles": styles},
        "ways": {name: part.iloc[0] for name, part in runs.groupby("method", sort=False)},
        "best": _best(head, direction),
        "forward": _best({name: row for name, row in head.items() if forward_only(name)}, direction),
        "seeds": max(row["seeds"] for row in head.values()),
        **{"dtypes": sorted(set(runs["dtype"])), "typed": runs["dtype"].nunique() > 1},
        "verdicts": {name: _verdicts(head, name, direction) for name in head if family(name) == "zo"},
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
    """Which methods a form of zo beats or loses to, and by how much; `level` within the spread of the seeds. Where one
    seed shows no spread it is only `ahead`, `behind` or `even`."""
    told: dict[str, list[tuple[str, float]]] = {how: [] for how in ("beats", "loses", "level", "ahead", "behind", "even")}
    for name, row in head.items():
        ahead = (head[zo]["mean"] - row["mean"]) * direction
        stds = [head[zo]["std"], *([] if family(name) in SEEDLESS and row["seeds"] == 1 else [row["std"]])]
        if family(name) != "zo" and not math.isnan(ahead):
            level, won, lost = ("even", "ahead", "behind") if any(map(math.isnan, stds)) else ("level", "beats", "loses")
            noise = 0.0005 if level == "even" else math.hypot(*stds) + 1e-9
            told[level if abs(ahead) <= noise else won if ahead > 0 else lost].append((name, ahead))
    return told


def _styles(methods: Sequence[str]) -> dict[str, str]:
    """CSS classes of every method: its family's colour, the usual ones always the same, and its look within the family."""
    spare = iter(("c6", "c4", "c3", "c7", "c2", "c1") * len(methods))
    families = {name: list(names) for name, names in groupby(sorted(methods, key=rank), family)}
    colours = {name: STYLES.get(name) or next(spare) for name in families}
    looks = {name: look % VARIANTS for names in families.values() for look, name in enumerate(names)}
    return {name: colours[family(name)] + (f" v{looks[name]}" if looks[name] else "") for name in methods}


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
            found.setdefault(run["method"], []).append((run["best_step"], read_csv(path, [], HISTORY)))
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
    tuned = (run for run in runs.to_dict("records") if family(run["method"]) == "zo")
    for run in sorted(tuned, key=lambda run: (rank(run["method"]), run["seed"])):
        path = Path(run["folder"]) / run["run"] / "predictions.jsonl"
        if path.is_file():
            rows = [row for row in read_json(path, "\n") if row.get("split") == split]
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


def _parts(name: str) -> Markup:
    """A method's name as a heading that breaks behind `:`, `+` and spaces only."""
    parts = re.findall(r"[^\s:+]+[:+]?|[:+]|\s+", name)
    return Markup("").join(part if part.isspace() else Markup("<b>{}</b>").format(part) for part in parts)


def _about(notes: Sequence[str], task: str, missing: Sequence[str], tasks: set[str]) -> list[str]:
    """The notes that name a task, and those that name no task but a method that it lacks."""
    named = [(note, set(WORD.findall(note))) for note in notes]
    return [note for note, words in named if task in words or (not words & tasks and words & set(missing))]


@cache
def _template() -> Template:
    """The page's template: every text that is not markup of ours is escaped."""
    places = FileSystemLoader(Path(__file__).parent / "assets")
    page = Environment(loader=places, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": _number, "shorten": _shorten, "parts": _parts, "about": _about}
    page.globals |= {"line_chart": line_chart, "many": MANY, "told": told}
    return page.get_template("report.html.jinja")
