"""Which step of a run is kept: the best on validation or, where a guard asks for more than that, the start.

selection.json of a run's folder says it, and how sure the gain is; what restores a run reads it there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from zo_objectives.certainty import LEVEL, Gain, Uncertain, confidence, gain, unrepeatable
from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError
from zo_objectives.language.objectives import Objective
from zo_objectives.language.outputs import Example, Outputs
from zo_objectives.methods import METHODS
from zo_objectives.results import write_atomically

SELECTION = "selection.json"
GAINED = "Validation: "  # begins what is told of the gain
OF_DRAWS = "pass@k is estimated from draws, not from one output for each example"


class Look(NamedTuple):
    """One look at validation: the step, its score (None where the objective failed) and what was said."""

    step: int
    score: float | None
    said: Outputs


@dataclass(frozen=True)
class Selection:
    """What was chosen on validation; `gain` with its interval and `chance` as certainty.gain has them, None where unknown.

    `step` is kept: `best_step`, or 0 where the guard is not met. The interval, at `level`, and `confidence` are adjusted for
    the choice among `looks`. `why` says what is not known.
    """

    metric: str
    step: int
    best_step: int
    steps: int  # that were taken
    start: float | None
    best: float
    gain: float | None
    low: float | None
    high: float | None
    level: float
    chance: float | None
    looks: int
    guard: float | None
    confidence: float | None
    why: str | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know, a sentence each; nothing where no step is better than the start."""
        if self.best_step == 0:
            return []
        return [self._told(), *([] if self.step else [self._kept()])]

    def _told(self) -> str:
        if self.gain is None or self.low is None or self.high is None:
            value = "" if self.start is None else f"{self.best - self.start:+.3f} over the start, "
            return f"{GAINED}{value}without an interval: {self.why}."
        choice = f"; adjusted for the choice among {self.looks} looks at the same examples" if self.looks > 1 else ""
        interval = f"{self.gain:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{GAINED}{interval} over the start ({100 * self.level:g} %, paired bootstrap{choice})."

    def _kept(self) -> str:
        among = f" among {self.looks} looks" if self.looks > 1 else ""
        sure = "cannot be told" if self.confidence is None else f"is {self.confidence:.3f}, adjusted for the choice{among}"
        told = f"The start was kept: the confidence with which step {self.best_step} beats it on validation {sure}"
        return f"{told}, and the guard asks for {self.guard:g}."


def of_many(notes: Sequence[str]) -> list[str]:
    """The notes of a run that a table of many runs should have: how sure its gain is stays in its own folder."""
    return [note for note in notes if not note.startswith(GAINED)]


def check(config: RunConfig, metric: Objective) -> None:
    """Raises InputError for a guard that could not be judged on this metric, before anything is spent."""
    if config.guard is None or not METHODS[config.method].chains:
        return
    if why := OF_DRAWS if config.pass_at is not None else unrepeatable(metric):
        raise InputError(
            f"guard={config.guard:g} cannot be judged: {why}. Leave it out, or choose by another metric (--set metric=...)."
        )


def select(
    config: RunConfig, metric: Objective, start: Look, best: Look, examples: Sequence[Example], *, looks: int, steps: int
) -> Selection:
    """The choice between the start and the best of so many later looks, as the configuration's guard has it."""
    name = metric.name if config.pass_at is None else f"pass@{config.pass_at}"
    given, looks = (metric, start.said, best.said, examples, config.seed), max(1, looks)
    found, sure, why = None, None, None
    try:
        if best.step == 0:
            found = Gain(0.0, 0.0, 0.0, 0.5)
        elif config.pass_at is not None or start.score is None:
            raise Uncertain("the start has no score" if start.score is None else OF_DRAWS)
        else:
            if config.guard is not None:
                sure = confidence(*given, config.guard, looks=looks)
            found = gain(*given, looks=looks)
    except Uncertain as reason:
        why = str(reason)
    met = config.guard is None or (sure is not None and sure >= config.guard)
    value, low, high, chance = found or (None, None, None, None)
    assert best.score is not None
    return Selection(
        metric=name,
        step=best.step if met else 0,
        best_step=best.step,
        steps=steps,
        start=start.score,
        best=best.score,
        gain=value,
        low=low,
        high=high,
        level=LEVEL,
        chance=chance,
        looks=looks,
        guard=config.guard,
        confidence=sure,
        why=why,
    )


def write(folder: Path, selection: Selection) -> None:
    """Writes a run's selection.json."""
    write_atomically(folder / SELECTION, json.dumps(asdict(selection), indent=1, ensure_ascii=False) + "\n")


def read(folder: Path) -> Selection | None:
    """A run's selection; None for a run that is not at its end, or was made before there was one. Raises InputError."""
    path = folder / SELECTION
    if not path.exists():
        return None
    try:
        return Selection(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}). Restore it from a backup.") from error
