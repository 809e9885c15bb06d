"""What a study's folders hold: which runs are there, which point each method is reported at, every score in one table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from zo_objectives.run import NOTES
from zo_objectives.selection import of_many
from zo_objectives.sources import merge_notes
from zo_objectives.study_file import Study
from zo_objectives.study_plan import CellPlan, Job, Spot, StudyPlan, Trial, jobs
from zo_objectives.verdict import CELL, COSTS, differences, means

FAILED = "failed.txt"  # in a run's folder: why it could not be made
TUNING = [*CELL, "method", "point", "seed", "validation", *COSTS, "mean", "chosen", "run"]
SCORES = [*CELL, "method", "point", "seed", "validation", "test", *COSTS, "run"]


def is_done(job: Job) -> bool:
    return (job.folder / "results.csv").exists()


def is_open(job: Job) -> bool:
    """Whether a run is neither there nor known to fail."""
    return not is_done(job) and not (job.folder / FAILED).exists()


def results_of(folder: Path) -> pd.DataFrame:
    """The rows of a finished run."""
    path = folder / "results.csv"
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, changed: int) -> pd.DataFrame:
    return pd.read_csv(path)


def headline(job: Job) -> dict[str, Any]:
    """A finished run's score on validation and test, and what it cost."""
    rows = results_of(job.folder)
    values = rows[rows["metric"] == job.metric].set_index("split")["value"]
    costs = {name: rows[name].iloc[0] for name in COSTS}
    return {"model": rows["model"].iloc[0], "validation": values["validation"], "test": values["test"]} | costs


def validation(spot: Spot, seeds: Sequence[int]) -> float:
    """The mean score on validation over seeds; NaN where one is not there."""
    runs = [spot.jobs[seed] for seed in seeds]
    return float(np.mean([headline(job)["validation"] for job in runs])) if all(map(is_done, runs)) else np.nan


def choose(trial: Trial, seeds: Sequence[int]) -> Spot | None:
    """The point with the best mean validation score over the tuning seeds, the first of equals.

    A point with a run that failed is out; None where none is left, and while runs are open. A single point needs no choice.
    """
    if len(trial.spots) < 2:
        return next(iter(trial.spots), None)
    if any(is_open(spot.jobs[seed]) for spot in trial.spots for seed in seeds):
        return None
    found = [(mean, spot) for spot in trial.spots if not np.isnan(mean := validation(spot, seeds))]
    return max(found, key=lambda pair: pair[0])[1] if found else None


@dataclass(frozen=True)
class Findings:
    """All that a study has found until now.

    `results` are the rows of the reported runs, `tuning` the runs of every grid, `scores` one row a reported run, `means`
    and `differences` what verdict.py makes of them, `notes` what a reader should know, `failures` the runs of the cells
    asked for that could not be made.
    """

    study: Study
    results: pd.DataFrame
    tuning: pd.DataFrame
    scores: pd.DataFrame
    means: pd.DataFrame
    differences: pd.DataFrame
    notes: list[str]
    failures: int


def gather(plan: StudyPlan) -> Findings:
    """Reads the runs that are there, of all cells, also those that the command is not for."""
    tuning = pd.DataFrame([row for cell in plan.cells for row in _tuning(cell, plan)], columns=TUNING)
    scores = pd.DataFrame([row for cell in plan.cells for row in _scores(cell, plan)], columns=SCORES)
    frames = [
        results_of(plan.output / row["run"]).assign(run=row["run"], cell=row["cell"], point=row["point"])
        for row in scores.to_dict("records")
    ]
    failures = sum((job.folder / FAILED).exists() for job in jobs(plan.asked))
    return Findings(
        plan.study,
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(),
        tuning,
        scores,
        _with_tuning(means(scores), tuning) if len(scores) else pd.DataFrame(),
        differences(scores, plan.study.compared()),
        merge_notes([note for cell in plan.cells for note in _notes(cell, plan.study)]),
        failures + sum(bool(trial.unfit) for cell in plan.asked for trial in cell.trials),
    )


def _row(cell: CellPlan, trial: Trial, spot: Spot, job: Job, plan: StudyPlan) -> dict[str, Any]:
    where = {"cell": cell.name, "task": cell.task, "metric": cell.metric, "method": trial.name, "point": spot.name}
    run = job.folder.relative_to(plan.output).as_posix()
    return where | {"seed": job.config.seed, "run": run} | headline(job)


def _tuning(cell: CellPlan, plan: StudyPlan) -> Iterator[dict[str, Any]]:
    """The runs of a cell's grids that are there, with each point's mean and whether it was chosen."""
    seeds = plan.study.tuning_seeds
    for trial in cell.trials:
        if len(trial.spots) > 1:
            chosen = choose(trial, seeds)
            for spot in trial.spots:
                told = {"mean": validation(spot, seeds), "chosen": spot is chosen}
                there = [spot.jobs[seed] for seed in seeds if is_done(spot.jobs[seed])]
                yield from (_row(cell, trial, spot, job, plan) | told for job in there)


def _scores(cell: CellPlan, plan: StudyPlan) -> Iterator[dict[str, Any]]:
    """The reported runs of a cell that are there."""
    for trial in cell.trials:
        if (spot := choose(trial, plan.study.tuning_seeds)) is not None:
            there = [spot.jobs[seed] for seed in plan.study.seeds if is_done(spot.jobs[seed])]
            yield from (_row(cell, trial, spot, job, plan) for job in there)


def _with_tuning(table: pd.DataFrame, tuning: pd.DataFrame) -> pd.DataFrame:
    """`table` with the point of each method, and what finding it took: points, runs and forwards over all of them."""
    keys = ["cell", "method"]
    found = tuning.groupby(keys).agg(
        points=("point", "nunique"), tuning_runs=("run", "size"), tuning_forwards=("forwards", "sum")
    )
    point = tuning[tuning["chosen"].astype(bool)].groupby(keys)["point"].first()
    joined = table.join(found.join(point), on=keys)
    counts = ["points", "tuning_runs", "tuning_forwards"]
    return joined.assign(**{name: joined[name].fillna(0).astype(int) for name in counts}, point=joined["point"].fillna(""))


def _notes(cell: CellPlan, study: Study) -> Iterator[str]:
    """What a reader of a cell's row should know: what could not be made, what is missing, what its runs say.

    What all of them say is said of the cell.
    """
    said = dict(_said(cell, study))
    shared = set.intersection(*map(set, said.values())) if said else set()
    yield from (f"{cell.name}: {line}" for line in sorted(shared))
    started = any(job.folder.exists() for trial in cell.trials for spot in trial.spots for job in spot.jobs.values())
    if not started:
        yield f"{cell.name}: nothing was run."
        return
    for trial in cell.trials:
        if trial.unfit:
            yield f"{cell.name}: {trial.name} left out. {trial.unfit}"
            continue
        spot = choose(trial, study.tuning_seeds)
        for job in (job for each in trial.spots for job in each.jobs.values() if (job.folder / FAILED).exists()):
            yield f"{job.told}, seed {job.config.seed}: {(job.folder / FAILED).read_text(encoding='utf-8').strip()}"
        if missing := [seed for seed in study.seeds if spot is None or not is_done(spot.jobs[seed])]:
            yield f"{cell.name}: {trial.name} lacks {len(missing)} of {len(study.seeds)} seeds."
    yield from (f"{told}: {line}" for told, lines in said.items() for line in lines if line not in shared)


def _said(cell: CellPlan, study: Study) -> Iterator[tuple[str, list[str]]]:
    """What the reported runs of a cell say, by run."""
    for trial in cell.trials:
        spot = None if trial.unfit else choose(trial, study.tuning_seeds)
        for job in (spot.jobs[seed] for seed in study.seeds if spot is not None and is_done(spot.jobs[seed])):
            path = job.folder / NOTES
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            yield f"{job.told}, seed {job.config.seed}", of_many(lines)
