"""What `zo-objectives probe` found, for the terminal, and the command that follows from it."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from tqdm.auto import tqdm

from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError, RunError
from zo_objectives.plateau import Recommendation, pairs_for
from zo_objectives.results import console
from zo_objectives.settings import parse_set
from zo_objectives.survey import Row, Survey, defaults, prepared, survey

MEANT = {"estimator": "spsa", "shaping": "unit", "growth": "constant", "settle": "given"}  # what is recommended is for these
EVERY = 4  # from one batch that is shown to the next, at least; the file has all
COLUMNS = ("scale", "drop", "corr", "p", "B*", "batch", "ties seen", "predicted", "signal", "cosine", "")
LEGEND = (
    "drop: what is lost one scale away, ± standard error. corr: of a pair's outcomes over examples. p: of no signal.",
    "B*: the batch at which noise is as large as the signal. ties: of directions, seen on half of the examples, predicted",
    "from the other. signal: its share of what a pair says. cosine: of {pairs} pairs' estimate with the smoothed gradient.",
)


class About(NamedTuple):
    """What was looked at: the task, the table's title, the pairs a step that a cosine is meant for, the data's notes."""

    task: str
    title: str
    pairs: int
    notes: tuple[str, ...]


def measured(
    config: RunConfig, scales: Sequence[float] | None, pairs: int, examples: int | None, budget: int, *, show: bool
) -> tuple[Survey, About]:
    """A survey of the first step of a run of `config`. Raises InputError, also where the objective fails."""
    if not config.relative and scales is None:
        raise InputError(
            "relative=false: the usual scales are relative. Give some in the weights' unit, as in --scales 1e-4,1e-3."
        )
    bench, search = prepared(config)
    count = len(scales or defaults(search)[0])
    with tqdm(total=count, desc="probe", unit="scale", disable=None if show else True, leave=False) as bar:
        try:
            found = survey(
                search,
                bench.train,
                config.seed,
                scales=scales,
                pairs=pairs,
                examples=examples,
                budget=budget,
                watch=lambda scale: bar.update(),
            )
        except RunError as error:
            raise InputError(f"{error} Nothing was measured; mend the function and try again.") from error
    each = ", a pair for each label row" if search.estimator.parts > 1 else ""
    parts = (
        f"{bench.spec.task}: {search.evaluation.objective.name} {found.centre:.3f} at the start",
        f"tune={config.tune}, {search.weights.count:,} numbers{each}",
        f"{found.forwards:,} forwards of {found.examples:,} examples",
    )
    return found, About(bench.spec.task, ", ".join(parts), pairs_for(budget), tuple(bench.notes))


def show(found: Survey, about: About) -> None:
    """The table and the verdict on the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=about.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for _, rows in groupby(found.rows, key=lambda row: row.scale):
        for i, row in enumerate(shown(list(rows), found.recommended)):
            taken = _is_taken(row, found.recommended)
            cells = (*(_of_scale(row) if i == 0 else [""] * 5), *_of_batch(row, about.pairs), "< take" if taken else "")
            table.add_row(*cells, style="bold" if taken else None)
        table.add_section()
    console().print(table)
    console().print("\n".join(LEGEND).format(pairs=about.pairs), style="dim", highlight=False)
    console().print(f"\n[bold]Verdict: {found.verdict}.[/] {escape(found.told)}", highlight=False)


def shown(rows: Sequence[Row], recommended: Recommendation | None) -> list[Row]:
    """Of one scale's rows those worth a line: batches EVERY times apart, the largest, and what is recommended."""
    kept = list[Row]()
    for row in rows:
        if _is_taken(row, recommended) or row is rows[-1] or not kept or row.batch >= EVERY * kept[-1].batch:
            kept.append(row)
    return kept


def _is_taken(row: Row, recommended: Recommendation | None) -> bool:
    return recommended is not None and (row.scale, row.batch) == (recommended.scale, recommended.batch)


def _of_scale(row: Row) -> list[str]:
    at = row.level
    par = "-" if math.isinf(at.par) else f"{at.par:,.0f}"
    p = f"{at.p:.3f}" if at.p >= 0.001 else "<.001"
    return [f"{at.scale:g}", f"{at.drop:+.3f} ± {at.error:.3f}", f"{at.correlation:.2f}", p, par]


def _of_batch(row: Row, pairs: int) -> list[str]:
    cosine = math.sqrt(row.squared_cosine(pairs))
    ties = _percent(row.ties_seen), _percent(row.ties_predicted)
    return [f"{row.batch:,}", *ties, _percent(row.quality), f"{cosine:.3f}"]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.0%}"


Settle = Callable[[Sequence[str], int | None], RunConfig]
"""The configuration that texts of --set and a number of --steps lead to."""


def command(task: str, options: Mapping[str, object], given: Sequence[str], found: Recommendation, settle: Settle) -> str:
    """The command that runs what is recommended: `options` beside `given`, the texts of --set, as they were given.

    Settings that a file has for the task or the method are overridden where they are.
    """
    now, wanted = settle(given, None), found._asdict() | MEANT
    named = ("scale", "batch", "directions", "learning_rate")
    changed = {k: v for k, v in wanted.items() if k in named or (k != "steps" and getattr(now, k) != v)}
    kept = [text for text in given if not set(parse_set([text])) & set(wanted)]
    sets = [*kept, *(f"{k}={v}" for k, v in changed.items())]
    if any(getattr(settle(sets, found.steps), k) != v for k, v in wanted.items()):
        where = f"tasks.{task}.methods.{now.called}"
        sets = [*kept, *(f"{where}.{k}={v}" for k, v in (changed | {"steps": found.steps}).items())]
    parts = [part for name, value in options.items() for part in (name, str(value))]
    parts += [part for text in sets for part in ("--set", text)]
    return " ".join(map(shlex.quote, ["zo-objectives", "run", now.task, *parts, "--steps", str(found.steps)]))
