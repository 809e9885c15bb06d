"""`zo-objectives bench`: what a step costs on this machine, against plain forwards and against reference MeZO.

What is timed is in bench_search.py and bench_language.py, how in timing.py.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from zo_objectives import bench_language, bench_search
from zo_objectives.charts import Line, line_chart
from zo_objectives.errors import unknown
from zo_objectives.results import console, machine, make_folder, versions, write_atomically
from zo_objectives.timing import Part, Row, Setting

PARTS: dict[str, Part] = {**bench_search.PARTS, **bench_language.PARTS}


def measure(setting: Setting, names: Sequence[str], say: Callable[[Row], None]) -> list[Row]:
    """Runs the parts called `names`, all where empty, and tells each row as it comes. Raises InputError."""
    if strange := [n for n in names if n not in PARTS]:
        raise unknown("part", strange[0], PARTS)
    rows = []
    for name in names or PARTS:
        for row in PARTS[name](setting):
            say(row)
            rows.append(row)
    return rows


def title(setting: Setting) -> str:
    """What was measured, in words."""
    s, b, m = setting, bench_search, bench_language
    return (
        f"{s.device}, {s.dtype}, medians of {s.repeat}. step, memory: OPT-{s.shape}, {b.BATCH} x {b.LENGTH} tokens;"
        f" members: OPT-{s.shape}, {m.PROMPTS} prompts x {m.NEW_TOKENS} tokens each;"
        f" trunk: {Path(s.model).name} on {'sst2_good_bad' if s.data_dir else 'reviews'};"
        f" text: {Path(s.model).name} on tidy and sums; noise: {b.ELEMENTS:,} elements"
    )


def show(rows: Sequence[Row], told: str) -> None:
    """The rows as a table on the terminal, under `told`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("part", "what", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=told, title_justify="left")
    for column in ("value", "ratio", "to", "goal"):
        table.add_column(column, justify="right" if column in ("value", "ratio") else "left")
    for row in rows:
        goal = {None: "", True: f"{row.goal} met", False: f"[red]{row.goal} NOT met"}[row.met]
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        table.add_row(row.part, row.what, f"{row.value:.4g} {row.unit}", ratio, row.against, goal)
    console().print(table)


def write(rows: Sequence[Row], setting: Setting, output: Path, command: str) -> Path:
    """bench.csv, bench.json (the command, versions, machine), and members.svg where populations were measured."""
    import pandas as pd

    make_folder(output)
    frame = pd.DataFrame([{**asdict(row), "met": row.met} for row in rows], dtype=object)
    for column, digits in (("value", 4), ("ratio", 3)):
        frame[column] = [None if v is None else float(f"{v:.{digits}g}") for v in frame[column]]
    write_atomically(output / "bench.csv", frame.to_csv(index=False))
    about = {
        "command": command,
        "what": title(setting),
        "setting": asdict(setting),
        "machine": machine(),
        "versions": versions(),
    }
    write_atomically(output / "bench.json", json.dumps(about, indent=1) + "\n")
    if chart := _scaling(rows):
        write_atomically(output / "members.svg", chart)
    return output / "bench.csv"


def _scaling(rows: Sequence[Row]) -> str:
    """Tokens a second against members in the batch, as a picture of its own; empty where there were no populations."""
    lines = []
    for label, style, against in (
        ("together", "a", ""),
        ("plain", "b", "plain generation"),
        ("apart", "c", "one after another"),
    ):
        points = [
            (float(row.what.split()[0]), row.value / (row.ratio if against and row.ratio else 1.0))
            for row in rows
            if row.part == "members" and row.against == (against or "plain generation")
        ]
        lines.append(Line(label, style, sorted(points)))
    chart = str(line_chart(lines, (560, 320), "members x 8 prompts in a batch", "tokens a second", zero=True))
    css = ".grid{stroke:#ddd}polyline{fill:none;stroke-width:2}text{font:12px sans-serif}.a{stroke:#0a58ca}.b{stroke:#888}"
    css += ".c{stroke:#c2410c}text.a{fill:#0a58ca}text.b{fill:#666}text.c{fill:#c2410c}text{stroke:none}"
    head = '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff"'
    return chart.replace("<svg", head, 1).replace(">", f"><style>{css}</style>", 1) + "\n" if chart else ""
