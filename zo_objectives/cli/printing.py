"""Results on the terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer


def print_notes(notes: Sequence[str]) -> None:
    """What a reader of the table should know; notes that differ in the seed alone are one."""
    from zo_objectives.sources import merge_notes

    for note in merge_notes(notes):
        typer.echo(f"Note: {note}")


def print_start_and_best(folder: Path) -> None:
    """Where a run began and how far it came on validation."""
    from zo_objectives.results import read_history

    path = folder / "history.csv"
    seen = [r for r in read_history(path) if r.validation is not None] if path.exists() else []
    if seen and seen[0].step == 0:
        begun = "at the start" if (folder / "start.safetensors").exists() else "untouched"
        best = max(seen, key=lambda r: (r.validation, -r.step))
        typer.echo(
            f"Validation: {seen[0].validation:.3f} {begun}, {best.validation:.3f} at step {best.step} of {seen[-1].step}."
        )


def print_table(results: Any) -> None:
    """The comparison on the terminal: mean and spread over seeds, gain, cost."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from zo_objectives.results import console
    from zo_objectives.standings import summary

    title = "test, mean ± standard deviation over seeds"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "metric", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "gain", "forwards", "seconds", "peak MB"):
        table.add_column(column, justify="right", no_wrap=True)
    frame = summary(results)
    first = results.groupby("task", sort=False)["metric"].first()
    chosen = frame[(frame["split"] == "test") & (frame["metric"] == frame["task"].map(first))]
    for task, rows in chosen.groupby("task", sort=False):
        for row in rows.to_dict("records"):
            spread = "" if math.isnan(row["std"]) else f" ± {row['std']:.3f}"
            gain = "" if math.isnan(row["gain"]) or row["method"] == "zero-shot" else f"{row['gain']:+.3f}"
            costs = f"{row['forwards']:,.0f}", f"{row['seconds']:.1f}", f"{row['peak_memory_mb']:,.0f}"
            table.add_row(str(task), row["metric"], row["method"], f"{row['mean']:.3f}{spread}", gain, *costs)
        table.add_section()
    console().print(table)


def print_sweep(frame: Any) -> None:
    from rich.table import Table

    from zo_objectives.results import console

    table = Table("task", "method", "point", "validation", "test", "", box=None)
    for (task, method), points in frame.groupby(["task", "method"], sort=False):
        for point, rows in points.groupby("point", sort=False):
            means = f"{rows['validation'].mean():.3f}", f"{rows['test'].mean():.3f}"
            table.add_row(str(task), str(method), str(point), *means, "chosen" if rows["chosen"].any() else "")
        table.add_section()
    console().print(table)


def print_study(found: Any) -> None:
    """A study on the terminal: mean and half width of the interval, difference, cost."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from zo_objectives.results import console
    from zo_objectives.study_tables import difference, score, table

    title = "test, mean ± half width of the 95 % interval over seeds; difference paired by seed"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("cell", "method", "value", "forwards", "against", "difference"):
        shown.add_column(column, justify="right" if column in ("value", "forwards") else "left")
    for cell, rows in table(found).groupby("cell", sort=False):
        for row in rows.to_dict("records"):
            against = (row["against"], difference(row)) if isinstance(row["against"], str) else ("", "")
            value = score(row, max(found.means["n_seeds"]))
            shown.add_row(str(cell), row["method"], value, f"{row['forwards']:,.0f}", *against)
        shown.add_section()
    console().print(shown)
