"""A study's findings as files: tables in CSV and Markdown; where each method wins, is level and loses in plain sentences."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from zo_objectives.results import machine, versions, write_atomically
from zo_objectives.study_runs import Findings
from zo_objectives.verdict import CELL, CONFIDENCE, VERDICTS, tally

MINUS = "\N{MINUS SIGN}"
ALPHA = 1 - CONFIDENCE
FEWEST = 4  # seeds for an interval to be believed
AGAINST = ["against", "difference", "low", "high", "p", "p_holm", "verdict"]
SAID = {"win": "wins on", "level": "is level on", "loss": "loses on", "unknown": "says nothing yet (one seed) on"}


def write_tables(output: Path, found: Findings, command: str) -> None:
    """Writes results, tuning, table and differences as CSV, table.md, verdict.md, verdict.json and study.json."""
    files = {
        "results.csv": found.results.to_csv(index=False),
        "tuning.csv": found.tuning.to_csv(index=False),
        "table.csv": table(found).to_csv(index=False),
        "differences.csv": found.differences.to_csv(index=False),
        "table.md": "\n\n".join(pages(found)) + "\n",
        "verdict.md": "\n\n".join([*sentences(found.differences), *_listed(found.notes)]) + "\n",
        "verdict.json": _json(verdict_of(found)),
        "study.json": _json(about(found, command)),
    }
    for name, text in files.items():
        write_atomically(output / name, text)


def about(found: Findings, command: str) -> dict[str, Any]:
    """How a study was made."""
    made = {"command": command, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    told = {"versions": versions(), "machine": machine(), "failures": found.failures, "notes": found.notes}
    return {**made, **told, "study": found.study.model_dump(mode="json", exclude_defaults=True)}


def verdict_of(found: Findings) -> dict[str, Any]:
    """The verdicts by pair, and every difference."""
    rows = json.loads(found.differences.to_json(orient="records"))  # NaN becomes null
    told = {"pairs": tally(found.differences), "sentences": list(sentences(found.differences))}
    return {"confidence": CONFIDENCE, **told, "differences": rows}


def table(found: Findings) -> pd.DataFrame:
    """One row a cell and method: scores, costs, tuning, and the difference from the first that it is compared with."""
    keys = [*CELL, "method"]
    first = found.differences.drop_duplicates(keys)[[*keys, *AGAINST]]
    return found.means.merge(first, on=keys, how="left")


def pages(found: Findings) -> Iterator[str]:
    """Test scores, differences and costs in Markdown, cells x methods."""
    means, seeds = found.means, max(found.means["n_seeds"])
    methods = list(dict.fromkeys(name for cell in found.study.cells for name in cell.names()))
    shown = [name for name in methods if (means["method"] == name).any()]
    if found.study.about:
        yield found.study.about.strip()
    yield f"Test scores, mean ± half width of the {CONFIDENCE:.0%} interval (Student's t over {seeds} seeds):"
    yield _markdown(means, "method", shown, lambda row: score(row, seeds))
    if len(found.differences):
        named = found.differences.assign(pair=found.differences["method"] + f" {MINUS} " + found.differences["against"])
        yield (
            f"Differences on test, paired by seed, [{CONFIDENCE:.0%} interval]; in brackets p after Holm's adjustment over"
            f" all {found.differences['p'].notna().sum()}:"
        )
        yield _markdown(named, "pair", list(dict.fromkeys(named["pair"])), difference)
    yield "Forward passes and examples of a run's training (a backward pass is two forwards), and of choosing its settings:"
    yield _markdown(means, "method", shown, costs)
    yield from _listed(found.notes)


def _markdown(rows: pd.DataFrame, column: str, names: Sequence[str], told: Any) -> str:
    """One line a cell, one column a name; a dash where a cell has none."""
    lines = [["cell", "metric", *names], ["---"] * (2 + len(names))]
    for (cell, metric), part in rows.groupby(["cell", "metric"], sort=False):
        own = {row[column]: row for row in part.to_dict("records")}
        lines.append([str(cell), str(metric), *(told(own[name]) if name in own else "-" for name in names)])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def score(row: Mapping[Any, Any], seeds: int) -> str:
    """As in 0.712 ± 0.010, with the number of seeds where it is not all."""
    spread = "" if math.isnan(row["half_width"]) else f" ± {row['half_width']:.3f}"
    return f"{row['mean']:.3f}{spread}" + (f" ({row['n_seeds']} seeds)" if row["n_seeds"] < seeds else "")


def difference(row: Mapping[Any, Any]) -> str:
    """As in win: +0.020 [+0.010, +0.030] (p = 0.004)."""
    if row["verdict"] == "unknown":
        return signed(row["difference"])
    return f"{row['verdict']}: {span(row)} (p {probability(row['p_holm'])})"


def span(row: Mapping[Any, Any]) -> str:
    return f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]"


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def signed(value: float) -> str:
    return f"{value:+z.3f}".replace("-", MINUS)


def costs(row: Mapping[Any, Any]) -> str:
    own = f"{row['forwards']:,.0f} forwards, {row['examples']:,.0f} examples"
    return own + (f"; tuning {row['tuning_forwards']:,.0f} forwards" if row["tuning_runs"] else "")


def sentences(table: pd.DataFrame) -> Iterator[str]:
    """For every pair one paragraph: where the first wins, is level and loses, and what is left after Holm's adjustment."""
    for pair in tally(table):
        rows = table[(table["method"] == pair["method"]) & (table["against"] == pair["against"])]
        told = {row["cell"]: row for row in rows.to_dict("records")}
        parts = []
        for verdict in VERDICTS:
            cells = [f"{name} ({_told(told[name])})" for name in pair[verdict]]
            parts += [f"{SAID[verdict]} {'; '.join(cells)}"] if cells else []
        yield f"**{pair['method']}** against {pair['against']}: {', and '.join(parts)}.{_left(rows)}"
    if not len(table):
        yield "Nothing is compared: name a `baseline` or `pairs` whose methods are in one cell."
        return
    yield (
        f"A win is a {CONFIDENCE:.0%} interval of the difference on test, paired by seed, that lies above 0; a loss is one"
        f" below; level is one that contains 0. Intervals are over {_range(table['n_seeds'])} seeds, on the same test"
        f" examples; Holm's adjustment is over all {table['p'].notna().sum()} comparisons."
    )
    if table["n_seeds"].min() < FEWEST:
        yield f"With fewer than {FEWEST} seeds these intervals are hints: give more `seeds` before you believe one."


def _told(row: Mapping[Any, Any]) -> str:
    return signed(row["difference"]) if row["verdict"] == "unknown" else span(row)


def _left(rows: pd.DataFrame) -> str:
    """Which verdicts of a pair stay after the adjustment."""
    decided = rows[rows["verdict"].isin(["win", "loss"])]
    if decided.empty:
        return ""
    left = decided.loc[decided["p_holm"] < ALPHA, "cell"].tolist()
    kept = "none" if not left else "all" if len(left) == len(decided) else ", ".join(left)
    return f" Wins and losses with an adjusted p below {ALPHA:.2f}: {kept}."


def _range(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return str(low) if low == high else f"{low} to {high}"


def _listed(notes: Sequence[str]) -> list[str]:
    return ["Notes:\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
