"""What the zeroth-order searches share: weights to move, scores of probes, and the choice of what is kept."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from safetensors.torch import load_file

from zo_objectives import selection
from zo_objectives.active_run import Run
from zo_objectives.building import Search, batch_of, build_search, search_seed
from zo_objectives.errors import RunError
from zo_objectives.language.outputs import Outputs
from zo_objectives.results import History, HistoryRow, ResultRow
from zo_objectives.scoring import Evaluation, Pool, TailScorer
from zo_objectives.search.estimators import Probe
from zo_objectives.selection import Look
from zo_objectives.starts import BEST, FIRST


class Watched(NamedTuple):
    """What was seen of a search: its history, what the start said, and how often validation was looked at since."""

    history: History
    seconds: float
    before: Outputs  # of the start on test
    begun: Outputs  # of the start on validation
    looks: int


def searched(run: Run, how: Callable[[Run, Search, Pool], list[ResultRow]]) -> list[ResultRow]:
    """What `how` finds from the start on, in weights that are tuned; whoever comes next finds the base again."""
    bench, config = run.bench, run.config
    pool = bench.fresh(config.tune, run.start)
    search = build_search(bench, pool, config, run.output)
    tail = isinstance(search.evaluation.scorer, TailScorer) and bench.replaced is not None
    base = search.weights.state_dict() if tail else None
    bench.stale = True  # until the base is back
    try:
        run.check_objective(search)
        return how(run, search, pool)
    finally:
        if base is not None:
            search.weights.load(base)
            bench.give_back()


def scores_at(run: Run, evaluation: Evaluation, probes: Sequence[Probe], t: int, growth: int = 1) -> Sequence[float]:
    """Scores of probes in step t, on a batch that depends on seed and step alone, `growth` times as large as configured."""
    batch = batch_of(search_seed(run.config), run.config.batch * growth, run.bench.train, t)
    return evaluation.scores(probes, batch, t + 1)


def finish(run: Run, search: Search, pool: Pool, seen: Watched) -> list[ResultRow]:
    """Result rows of what is kept: of the best step, or of the start."""
    if (best := seen.history.best) is None:
        raise RunError("The objective failed whenever validation was looked at, so that no step can be chosen. Mend it.")
    step = _keep(run, search, best, seen)
    rows, after = run.measure(
        search.evaluation.scorer,
        pool.cost.spent,
        seen.seconds,
        search.weights.count,
        step,
        search.evaluation.objective.name,
        run.config.tune,
    )
    run.save_predictions(seen.before, after)
    return rows


def _keep(run: Run, search: Search, best: HistoryRow, seen: Watched) -> int:
    """The step that is kept; its weights are put in, and are the best ones from now on."""
    rows, found = seen.history.rows, selection.read(run.output)
    steps = rows[-1].step
    search.weights.load(load_file(run.output / BEST))
    if found and (found.best_step, found.best, found.steps) == (best.step, best.validation, steps):
        run.notes += found.notes  # it was interrupted after that, and BEST may be the start
    else:
        scorer, start = search.evaluation.scorer, Look(0, rows[0].validation, seen.begun)
        last = Look(best.step, best.validation, run.best_said or run.saying(scorer))
        found = run.select(scorer, start, last, looks=seen.looks, steps=steps)
    first = run.output / FIRST
    if found.step == best.step:
        first.unlink(missing_ok=True)
    else:
        first.replace(run.output / BEST)
        search.weights.load(load_file(run.output / BEST))
    return found.step
