"""Sweeps: a method at every point of a grid of settings, each point and seed a run folder; the table says which is best.

The choice is the best mean over seeds of the headline metric on validation; test is reported beside it and decides nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from zo_objectives.compare import plan_runs, run_folder
from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError
from zo_objectives.language.tasks import TaskSpec, load_task
from zo_objectives.methods import named, stages
from zo_objectives.results import make_gathering, write_atomically
from zo_objectives.run import execute
from zo_objectives.settings import Settings, merge, nested, parse_set
from zo_objectives.workbench import Workbench

Grid = Mapping[str, Sequence[Any]]  # setting, as in a.b: its values

PLAIN: Settings = {  # MeZO as published: one pair a step, absolute scales, a constant rate
    "estimator": "spsa",
    "directions": 1,
    "shaping": "raw",
    "noise": "gaussian",
    "relative": False,
    "rule": "sgd",
    "schedule": "constant",
}
ROBERTA: Settings = PLAIN | {"batch": 64, "steps": 100_000, "evaluations": 10}
OPT: Settings = PLAIN | {"batch": 16, "steps": 20_000, "evaluations": 5}
LONG = ("squad", "drop")


def _zeroth(rates: Sequence[float], scale: float, **fixed: Any) -> tuple[Grid, Settings]:
    return {"learning_rate": rates}, {"scale": scale, **fixed}


def _backprop(rates: Sequence[float], batches: Sequence[int], steps: int) -> tuple[Grid, Settings]:
    return {"ft.learning_rates": [[rate] for rate in rates], "ft.batch": batches}, {"ft": {"steps": steps}}


def paper_grid(text: str, task: str, masked: bool, shots: int | None) -> tuple[Grid, Settings]:
    """MeZO's grid for a method's name, and what it fixes (Table 15 for masked models, Table 16 for others, appendix E.6).

    Raises InputError where the paper has none.
    """
    method, settings = named(text)
    tune = str(settings.get("ft", {}).get("tune") if method == "ft" else settings.get("tune", "")) or "all"
    form = "all" if tune == "None" else tune.partition(":")[0]
    key, few = (method if method != "zo" or not masked else "mezo-ce", form), (shots or 512) < 100
    metric = {
        ("zo", "all"): _zeroth((1e-6, 5e-6, 1e-5), 1e-3),
        ("zo", "prefix"): _zeroth((1e-1, 5e-2, 1e-2), 1e-1),
    }
    roberta = {
        ("mezo-ce", "all"): _zeroth((1e-7, 1e-6, 1e-5), 1e-3),
        ("mezo-ce", "prefix"): _zeroth((1e-2, 5e-3, 1e-3), 1e-1),
        ("mezo-ce", "lora"): _zeroth((1e-5, 5e-5, 1e-4), 1e-3, weight_decay=0.1),
        ("ft", "all"): _backprop((1e-5, 3e-5, 5e-5), (2, 4, 8) if few else (8, 16, 32), 1000),
        ("ft", "prefix"): _backprop((1e-2, 3e-2, 5e-2), (8, 16, 32), 1000),
        ("ft", "lora"): _backprop((1e-4, 3e-4, 5e-4), (4, 8, 16), 1000),
    }
    long = task in LONG
    opt = metric | {
        ("mezo-ce", "all"): _zeroth((1e-6, 5e-7, 1e-7) if long else (1e-6, 1e-7), 1e-3),
        ("mezo-ce", "prefix"): _zeroth((5e-2, 1e-2, 5e-3) if long else (1e-2, 1e-3), 1e-1),
        ("mezo-ce", "lora"): _zeroth((1e-4, 5e-5, 1e-5) if long else (1e-4, 5e-5), 1e-2),
        ("ft", "all"): _backprop((1e-5, 5e-5, 8e-5), (8,), 625),
    }
    grids = roberta if masked else opt
    if key not in grids:
        known = ", ".join(f"{m}:{t}" for m, t in grids)
        raise InputError(
            f"MeZO's paper has no grid for {text} on such a model. It has {known}; give one with --grid KEY=A,B."
        )
    grid, fixed = grids[key]
    if method == "ft":
        return grid, fixed
    whole: Settings = {"tune": "all"} if form == "all" else {}
    return grid, merge(ROBERTA if masked else OPT, {**fixed, **whole})


def parse_grid(texts: Sequence[str]) -> Grid:
    """A grid from `key=a,b,c` texts. Raises InputError."""
    grid: dict[str, Sequence[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not (key and equals and values):
            raise InputError(f"--grid {text!r}: write key=value,value, as in --grid learning_rate=0.1,0.3, or paper.")
        grid[key] = [_leaf(parse_set([f"{key}={value}"])) for value in values.split(",")]
    return grid


def _leaf(settings: Any) -> Any:
    while isinstance(settings, Mapping):
        (settings,) = settings.values()
    return settings


@dataclass(frozen=True)
class Point:
    """A run of a sweep: where on the grid it is."""

    task: str
    method: str
    settings: Mapping[str, Any]
    config: RunConfig

    @property
    def name(self) -> str:
        """As in `learning_rate=1e-06`."""
        return ",".join(f"{key}={_short(value)}" for key, value in self.settings.items())

    @property
    def folder(self) -> str:
        words = (Path(self.task).stem, self.method, f"{self.name}-seed{self.config.seed}")
        return "/".join(["runs", *(re.sub(r"[^\w.+=,-]+", "-", word) for word in words)])


def _short(value: Any) -> str:
    return (
        "+".join(map(_short, value))
        if isinstance(value, (list, tuple))
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def plan_sweep(
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    grid: Grid | None,
    settings: Settings,
    *,
    masked: bool,
    budget: int | None = None,
) -> list[Point]:
    """Every run of a sweep, validated; `grid` None is the paper's. The user's settings win over what a grid fixes.

    In a chain, a grid and what it fixes are of the last stage; those before it are the same at every point.
    """
    include = Path(settings["include_path"]) if settings.get("include_path") else None
    points = []
    for task in tasks:
        spec: TaskSpec = load_task(task, include)[0]
        for method in methods:
            own, fixed = (grid, {}) if grid is not None else paper_grid(method, spec.task, masked, settings.get("shots"))
            chain = len(stages(method)) > 1
            plain = plan_runs([task], [method], seeds, settings, budget=budget, demo=False).configs if chain else ()
            for values in product(*own.values()):
                chosen = dict(zip(own, values, strict=True))
                given = merge(fixed, settings)
                for key, value in chosen.items():
                    given = merge(given, nested(key, value))
                plan = plan_runs([task], [method], seeds, given, budget=budget, demo=False)
                if not plan.configs:
                    raise InputError(f"{plan.notes[-1]}")
                configs = [_beginning_as(config, plain) for config in plan.configs]
                points += [Point(task, method, chosen, config) for config in configs]
    return points


def _beginning_as(config: RunConfig, plain: Sequence[RunConfig]) -> RunConfig:
    """A run of a chain that begins as the one of its seed among `plain` does."""
    return next((config.model_copy(update={"before": p.before}) for p in plain if p.seed == config.seed), config)


def run_sweep(points: Sequence[Point], output: Path, *, show: bool, say: Callable[[str], None]) -> Path:
    """Runs what is not there yet and writes sweep.csv after every run, so that a sweep can be left and taken up again."""
    make_gathering(output)
    bench: Workbench | None = None
    rows: list[dict[str, Any]] = []
    path = output / "sweep.csv"
    for point in points:
        done = (output / point.folder / "results.csv").exists()
        if not done:
            bench = (bench.fitted(point.config) if bench else None) or Workbench.open(point.config)
        folder = execute(point.config, output / point.folder, bench=bench, show=show, earlier=_shared)
        rows.append(_row(point, pd.read_csv(folder / "results.csv")))
        write_atomically(path, table(rows).to_csv(index=False))
        last = rows[-1]
        say(
            f"{last['task']:<10} {point.method:<12} {point.name}, seed {last['seed']}: {last['metric']} validation"
            f" {last['validation']:.3f}, test {last['test']:.3f}{' (was there)' if done else ''}"
        )
    return path


def _shared(before: RunConfig, folder: Path) -> Path:
    """The run that all points of a chain and seed begin with, beside theirs."""
    return folder.parent / Path(run_folder(before)).name


def _row(point: Point, results: pd.DataFrame) -> dict[str, Any]:
    metric = results["metric"].iloc[0]
    value = results[results["metric"] == metric].set_index("split")["value"]
    first = results.iloc[0]
    return {
        "task": first["task"],
        "model": first["model"],
        "method": point.method,
        "point": point.name,
        **{key: _short(value) for key, value in point.settings.items()},
        "seed": point.config.seed,
        "metric": metric,
        "validation": value["validation"],
        "test": value["test"],
        "forwards": first["forwards"],
        "seconds": first["seconds"],
        "run": point.folder,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a run; `mean` is over the seeds of its point, `chosen` marks the point with the best mean of each method."""
    frame = pd.DataFrame(rows)
    frame["mean"] = frame.groupby(["task", "method", "point"])["validation"].transform("mean")
    frame["chosen"] = frame["mean"] == frame.groupby(["task", "method"])["mean"].transform("max")
    first = frame[frame["chosen"]].groupby(["task", "method"])["point"].transform("first")
    frame.loc[frame["chosen"], "chosen"] = frame.loc[frame["chosen"], "point"] == first
    return frame
