"""A study as one self-contained HTML page: scores and paired differences with their intervals, cell by cell."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from zo_objectives.charts import whisker
from zo_objectives.results import write_atomically
from zo_objectives.study_runs import Findings
from zo_objectives.study_tables import about, probability, score, signed, span
from zo_objectives.verdict import CONFIDENCE, VERDICTS, tally

WORDS = {"win": "better", "loss": "worse", "level": "", "unknown": ""}  # a verdict's class on the page
Row = Mapping[Any, Any]


def write_page(output: Path, found: Findings, command: str) -> Path:
    """Writes study.html into a study's folder; returns its path."""
    path = output / "study.html"
    sections = list(_sections(found))
    methods = list(dict.fromkeys(name for cell in found.study.cells for name in cell.names()))
    page = _template().render(
        study=found.study,
        sections=sections,
        methods=[name for name in methods if any(name in section["rows"] for section in sections)],
        pairs=tally(found.differences),
        about=about(found, command),
        confidence=f"{CONFIDENCE:.0%}",
        seeds=max(found.means["n_seeds"]),
        family=int(found.differences["p"].notna().sum()),
        verdicts=[
            verdict for verdict in VERDICTS if verdict != "unknown" or (found.differences["verdict"] == verdict).any()
        ],
    )
    write_atomically(path, page)
    return path


def _sections(found: Findings) -> Iterator[dict[str, Any]]:
    """All that the template shows of a cell."""
    for cell, part in found.means.groupby("cell", sort=False):
        rows = part.to_dict("records")
        scores = found.scores[found.scores["cell"] == cell]
        compared = found.differences[found.differences["cell"] == cell].to_dict("records")
        seeds = {str(name): _dots(own) for name, own in scores.groupby("method", sort=False)}
        ends = _ends([*_limits(rows), *scores["test"]])
        apart = {_pair(row): _apart(seeds[row["method"]], seeds[row["against"]]) for row in compared}
        wide = _ends([0.0, *(row[end] for row in compared for end in ("low", "high", "difference")), *_values(apart)])
        yield {
            **{"cell": cell, "task": rows[0]["task"], "model": rows[0]["model"], "metric": rows[0]["metric"]},
            "rows": {row["method"]: row for row in rows},
            **{"ends": ends, "wide": wide, "compared": compared},
            "first": {row["method"]: row for row in reversed(compared)},  # the first that a method is compared with
            "strips": {r["method"]: whisker(r["mean"], r["half_width"], seeds[r["method"]], ends) for r in rows},
            "gaps": {_pair(row): _gap(row, apart[_pair(row)], wide) for row in compared},
        }


Dots = list[tuple[str, float]]


def _dots(rows: pd.DataFrame) -> Dots:
    return [(f"seed {seed}", float(value)) for seed, value in zip(rows["seed"], rows["test"], strict=True)]


def _apart(ours: Dots, theirs: Dots) -> Dots:
    """The differences by seed."""
    other = dict(theirs)
    return [(seed, value - other[seed]) for seed, value in ours if seed in other]


def _pair(row: Row) -> tuple[str, str]:
    return row["method"], row["against"]


def _gap(row: Row, dots: Dots, ends: tuple[float, float]) -> Markup:
    return whisker(row["difference"], row["high"] - row["difference"], dots, ends, WORDS[row["verdict"]], zero=True)


def _limits(rows: Sequence[Row]) -> Iterator[float]:
    for row in rows:
        yield from (row["mean"] - row["half_width"], row["mean"] + row["half_width"])


def _values(dots: Mapping[Any, Dots]) -> Iterator[float]:
    return (value for several in dots.values() for _, value in several)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest number, a little apart."""
    found = [value for value in values if value == value]
    margin = 0.03 * (max(found) - min(found)) or 0.01
    return min(found) - margin, max(found) + margin


@cache
def _template() -> Template:
    """The page's template: every text that is not markup of ours is escaped."""
    places = FileSystemLoader(Path(__file__).parent / "assets")
    page = Environment(loader=places, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"score": score, "span": span, "signed": signed, "probability": probability}
    page.globals |= {"words": WORDS}
    return page.get_template("study.html.jinja")
