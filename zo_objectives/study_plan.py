"""What a study runs: every configuration of every cell, method, grid point and seed, settled before anything is spent.

Nothing is remembered but the runs' folders. A folder's name follows from the settings, so that a study that is changed runs
what is new and keeps the rest.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2s
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from zo_objectives.compare import plan_runs
from zo_objectives.config import RunConfig
from zo_objectives.config_files import HOW
from zo_objectives.errors import InputError, unknown
from zo_objectives.language.hf import EMBEDDED
from zo_objectives.language.objectives import BUILTIN, Failure, Objective, resolve
from zo_objectives.language.outputs import Example, Generations
from zo_objectives.language.tasks import TaskSpec, load_task, task_files
from zo_objectives.scoring import Kind, kind_for
from zo_objectives.settings import Settings, for_task, merge, nested
from zo_objectives.study_file import Cell, Entry, Study
from zo_objectives.sweep import Point

UNNAMED = {*HOW, "seed", "before", "model", "data_dir", "include_path", "device"}  # settings that a digest leaves out
SURVEYED = ("scale", "learning_rate", "batch", "directions", "steps")  # what settle=probe decides
LONGEST = 100  # letters of a point in a folder's name


@dataclass(frozen=True)
class Places:
    """Where a study finds things, as the command says."""

    data_dir: str | None = None
    models: str | None = None
    include_path: str | None = None
    device: str | None = None

    def model(self, name: str) -> str:
        """A model's folder in `models` where it has one of that name, else the name as it is, as the embedded model's is."""
        known = self.models is not None and name != EMBEDDED and (Path(self.models) / name).is_dir()
        return str(Path(str(self.models)) / name) if known else name

    def settings(self) -> Settings:
        found = {"data_dir": self.data_dir, "include_path": self.include_path, "device": self.device}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Earlier:
    """Where the runs are that a chain begins with, by digest and seed: where the cell's own method has that run, there."""

    places: Mapping[tuple[str, int], Path]

    def __call__(self, before: RunConfig, folder: Path) -> Path:
        return self.places[digest(before), before.seed]


class Job(NamedTuple):
    """One run."""

    config: RunConfig
    folder: Path
    told: str  # in words: cell, method, point
    metric: str
    earlier: Earlier = Earlier({})


@dataclass(frozen=True)
class Spot:
    """A point of a method's grid, and its run for every seed."""

    name: str
    jobs: Mapping[int, Job]


@dataclass(frozen=True)
class Trial:
    """A method of a cell with the points that are tried; none, and why, where it cannot work there."""

    name: str
    spots: tuple[Spot, ...]
    unfit: str = ""


@dataclass(frozen=True)
class CellPlan:
    """A cell with its methods; `metric` is the name that result rows have."""

    name: str
    task: str
    metric: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class StudyPlan:
    """All that a study runs below a folder; `asked` are the cells that this command is for."""

    study: Study
    output: Path
    cells: tuple[CellPlan, ...]
    asked: tuple[CellPlan, ...]


def plan_study(study: Study, places: Places, output: Path, only: Sequence[str] = ()) -> StudyPlan:
    """Every run of a study; `only` names the tasks that are run now. Raises InputError that names the cell."""
    cells = tuple(_cell(study, cell, places, output, only) for cell in study.cells)
    tasks = {cell.task for cell in cells}
    if strange := next((task for task in only if task not in tasks), None):
        raise unknown("task in --only", strange, tasks)
    return StudyPlan(study, output, cells, tuple(cell for cell in cells if not only or cell.task in only))


def _cell(study: Study, cell: Cell, places: Places, output: Path, only: Sequence[str]) -> CellPlan:
    include = Path(places.include_path) if places.include_path else None
    try:
        spec = load_task(cell.task, include)[0]
        if not only or spec.task in only:
            _check_data(spec, places)
        metric, known = resolve(cell.metric).name, {*task_files(include), spec.task}
        shared = {**for_task(study.settings, spec.task, known), "metric": cell.metric}
        shared |= {"objective": cell.objective or cell.metric, "model": places.model(cell.model), **places.settings()}
        given = merge(shared, cell.settings)
        _check_metric(spec, resolve(cell.metric))
        trials = tuple(_trial(study, cell, entry, given, output, metric) for entry in cell.methods)
    except InputError as error:
        raise InputError(f"Cell {cell.called!r}: {error}") from error
    return _with_earlier(CellPlan(cell.called, spec.task, metric, trials), output / "runs" / slug(cell.called))


def _check_data(spec: TaskSpec, places: Places) -> None:
    """Raises InputError where a task's data is not where it should be, before hours are spent on others."""
    if places.data_dir is None or spec.zo.source is not None:
        return
    folder = Path(places.data_dir) / (spec.zo.folder or spec.task)
    if not (folder / "train.jsonl").is_file():
        raise InputError(f"{folder / 'train.jsonl'} does not exist. Put the task's data there, or mend --data-dir.")


def _check_metric(spec: TaskSpec, metric: Objective) -> None:
    """Raises InputError for a metric that is of another kind of task: a builtin one is asked about an empty text."""
    if kind_for(spec, metric) is Kind.TEXT and metric is BUILTIN.get(metric.name):
        with suppress(Failure):
            metric(Generations([""]), [Example(0, "", {}, targets=("",))])


def _trial(study: Study, cell: Cell, entry: Entry, given: Settings, output: Path, metric: str) -> Trial:
    seeds = tuple(dict.fromkeys((*study.tuning_seeds, *study.seeds)))
    spots = []
    for values in _points(study.grid(cell, entry)):
        own = merge({"label": entry.name} if entry.name else {}, entry.settings)
        laid = merge(given, {"methods": {entry.method: own}})  # what is under a method's name comes last
        for key, value in values.items():
            laid = merge(laid, nested(key, value) if key.startswith("methods.") else _of(entry, nested(key, value)))
        plan = plan_runs([cell.task], [entry.method], seeds, laid, budget=cell.budget, demo=False)
        if (
            plan.configs
            and plan.configs[0].settle == "probe"
            and (idle := [k for k in values if k.split(".")[-1] in SURVEYED])
        ):
            raise InputError(
                f"{entry.called}: a grid of {idle[0]} has no meaning with settle=probe, which takes it from a survey."
            )
        if not plan.configs:
            return Trial(entry.called, (), plan.notes[-1])
        name = Point(cell.task, entry.called, values, plan.configs[0]).name
        folder = output / "runs" / slug(cell.called) / slug(entry.called)
        told = f"{cell.called}: {entry.called}{', ' * bool(name)}{name}"
        spots.append(Spot(name, {c.seed: Job(c, folder / run_name(c, name), told, metric) for c in plan.configs}))
    return Trial(entry.called, tuple(spots))


def _points(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every point of a grid; the one without settings where there is none. Raises InputError for a point that is twice."""
    for key, values in grid.items():
        if any(value in values[:i] for i, value in enumerate(values)):
            raise InputError(f"The grid of {key} has a value twice: {values}. Leave one out.")
    yield from (dict(zip(grid, chosen, strict=True)) for chosen in product(*grid.values()))


def _of(entry: Entry, settings: Settings) -> Settings:
    return {"methods": {entry.method: settings}}


def _with_earlier(cell: CellPlan, folder: Path) -> CellPlan:
    """Every run that begins where another ends knows where that is; runs that begin with the same one share it."""
    there = {(digest(job.config), job.config.seed): job.folder for job in jobs([cell])}

    def told(job: Job) -> Job:
        stages = job.config.stages[:-1]
        keys = [(digest(stage), stage.seed) for stage in stages]
        own = [folder / slug(stage.called) / run_name(stage, "") for stage in stages]
        return job._replace(earlier=Earlier({key: there.get(key, place) for key, place in zip(keys, own, strict=True)}))

    def spot(found: Spot) -> Spot:
        return replace(found, jobs={seed: told(job) for seed, job in found.jobs.items()})

    return replace(cell, trials=tuple(replace(trial, spots=tuple(map(spot, trial.spots))) for trial in cell.trials))


def slug(text: str) -> str:
    """A text as a folder's name."""
    return re.sub(r"[^\w.+=,-]+", "-", text)


def run_name(config: RunConfig, point: str) -> str:
    """The name of a run's folder: its point, its seed, and the digest of its settings."""
    return "-".join(filter(None, (slug(point)[:LONGEST], f"seed{config.seed}", digest(config))))


def digest(config: RunConfig) -> str:
    """Eight letters for the settings that are no defaults, but for seeds and places, of a whole chain."""
    given = [stage.model_dump(mode="json", exclude_defaults=True, exclude=UNNAMED) for stage in config.stages]
    return blake2s(json.dumps(given, sort_keys=True).encode(), digest_size=4).hexdigest()


def jobs(cells: Sequence[CellPlan]) -> Iterator[Job]:
    """Every run that cells may come to."""
    for cell in cells:
        for trial in cell.trials:
            for spot in trial.spots:
                yield from spot.jobs.values()
