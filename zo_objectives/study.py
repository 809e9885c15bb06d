"""Studies: a table of cells x methods like MeZO's Table 3, each method tuned by the same rule, with intervals over seeds.

A method with a grid is first run at every point on the tuning seeds; the point with the best mean validation score is then
run on the seeds that are reported, and only those runs' test scores are read. All that a study knows is in the folders of
its runs: interrupted, changed or given for other tasks, the same command makes what is missing and tells what is there.
"""

from collections import deque
from collections.abc import Callable, Iterator

from zo_objectives.crew import Outcome, alone, together
from zo_objectives.errors import RunError
from zo_objectives.results import make_folder, make_gathering, write_atomically
from zo_objectives.run import execute
from zo_objectives.study_file import Study
from zo_objectives.study_page import write_page
from zo_objectives.study_plan import CellPlan, Job, StudyPlan, jobs
from zo_objectives.study_runs import FAILED, Findings, choose, gather, headline, is_done, is_open
from zo_objectives.study_tables import write_tables

Group = list[Job]
Say = Callable[[str], None]


def stages(cell: CellPlan, study: Study) -> Iterator[list[Group]]:
    """What a cell still needs: its tuning runs, and when these are made its reported ones, each in groups of one seed."""
    tuned = [trial for trial in cell.trials if len(trial.spots) > 1]
    yield [[spot.jobs[seed] for trial in tuned for spot in trial.spots] for seed in study.tuning_seeds]
    chosen = [spot for trial in cell.trials if (spot := choose(trial, study.tuning_seeds))]
    yield [[spot.jobs[seed] for spot in chosen] for seed in study.seeds]


class Schedule:
    """Hands out groups of runs, and knows when a cell's next stage is due. `finished` is called after each cell."""

    def __init__(self, plan: StudyPlan, finished: Callable[[], object], say: Say) -> None:
        self._stages = {cell.name: stages(cell, plan.study) for cell in plan.asked}
        self._of = {job.folder: (cell.name, job) for cell in plan.asked for job in jobs([cell])}
        self._ready, self._left = deque[Group](), dict[str, int]()
        self._finished, self._say = finished, say
        for name in self._stages:
            self._advance(name)

    def take(self) -> Group | None:
        """The next group of runs; None while there is none."""
        return self._ready.popleft() if self._ready else None

    @property
    def has_runs(self) -> bool:
        return bool(self._ready)

    def note(self, outcome: Outcome) -> None:
        """A run has ended."""
        name, job = self._of[outcome.folder]
        if outcome.error:
            write_atomically(make_folder(job.folder) / FAILED, outcome.error + "\n")
        self._say(_told(job, outcome.error))
        self._left[name] -= 1
        if not self._left[name]:
            self._advance(name, first=True)
            if not self._left[name]:
                self._finished()

    def _advance(self, name: str, *, first: bool = False) -> None:
        """Makes a cell's next stage ready, before other cells' runs if `first`; a stage without open runs is passed."""
        self._left[name] = 0
        for stage in self._stages[name]:
            groups = [group for runs in stage if (group := [job for job in runs if is_open(job)])]
            self._left[name] = sum(map(len, groups))
            (self._ready.extendleft if first else self._ready.extend)(groups[:: -1 if first else 1])
            if groups:
                return


def _told(job: Job, error: str) -> str:
    if error:
        return f"{job.told}, seed {job.config.seed}: left out. {error}"
    return f"{job.told}, seed {job.config.seed}: {headline(job)['validation']:.3f} on validation"


def run_study(plan: StudyPlan, *, workers: int, command: str, show: bool, say: Say) -> Findings:
    """Runs what is not there yet, and writes the tables, after every cell and at the end.

    Raises InputError where a folder holds another run, RunError where no run could be made.
    """
    make_gathering(plan.output)
    there = [job for job in jobs(plan.asked) if is_done(job)]
    for job in there:
        execute(job.config, job.folder, show=False)  # checks that it is this run
    for job in jobs(plan.asked):
        (job.folder / FAILED).unlink(missing_ok=True)  # what failed is tried again
    if there:
        say(f"{len(there)} run{'s were' if len(there) > 1 else ' was'} there.")

    def write() -> Findings:
        found = gather(plan)
        if len(found.scores):
            write_tables(plan.output, found, command)
            write_page(plan.output, found, command)
        return found

    schedule = Schedule(plan, write, say)
    if workers > 1 and schedule.has_runs:
        together(schedule.take, schedule.note, workers)
    else:
        alone(schedule.take, schedule.note, show=show)
    found = write()
    if not len(found.scores):
        raise RunError(f"No run could be made. {next(iter(found.notes), '')}")
    return found
