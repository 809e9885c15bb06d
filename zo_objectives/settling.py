"""Settings that a run takes from a survey at its start, in place of those that a user would have to find: `settle=probe`.

Scale, learning rate, batch and pairs are the survey's; steps are what is left of the run's forward passes. Where the survey
finds no signal, no step is taken: a chain such as zo:features+zo:norms goes deeper only while there is some.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from zo_objectives.building import Search, search_seed
from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError
from zo_objectives.results import read_history, write_atomically
from zo_objectives.scoring import Indices
from zo_objectives.survey import forwards_of, survey

SETTLED, SURVEY = "settled.json", "survey.csv"  # in a run's folder


@dataclass(frozen=True)
class Settled:
    """What a survey said, and what it cost."""

    verdict: str
    told: str
    scale: float
    learning_rate: float
    batch: int
    directions: int
    steps: int
    spent: tuple[int, int, int] = (0, 0, 0)  # forward passes, examples and tokens

    def of(self, config: RunConfig) -> RunConfig:
        """The configuration with these settings."""
        own = {k: v for k, v in asdict(self).items() if k not in ("verdict", "told", "spent")}
        return config.model_copy(update=own)


def settled(config: RunConfig, search: Search, train: Indices, folder: Path) -> Settled:
    """The settings of a run in `folder`, from the survey that is kept there or from one that is made now.

    A survey is charged, also one that is kept, as long as the run's history does not tell what was spent. Raises InputError
    where a survey's settings are of another kind than the run's, or a survey takes all of its forward passes.
    """
    path, cost = folder / SETTLED, search.evaluation.scorer.pool.cost
    if path.exists():
        kept = Settled(**json.loads(path.read_text(encoding="utf-8")))
        if not (folder / "history.csv").exists() or not read_history(folder / "history.csv"):
            cost.charge(*kept.spent)
        return kept
    if config.estimator != "spsa" or config.shaping != "unit" or config.growth != "constant":
        raise InputError("settle=probe is for estimator=spsa, shaping=unit and growth=constant: give the scale yourself.")
    whole, least = config.forwards(config.steps), forwards_of(search) + 2
    if whole < least:
        raise InputError(
            f"settle=probe takes {least - 2} forward passes for its survey, and this run has {whole}. Give it {least} or"
            " more (--budget or --steps), or leave settle out and give scale, learning_rate, batch and directions."
        )
    before = cost.spent
    found = survey(search, train, search_seed(config), budget=whole)
    write_atomically(folder / SURVEY, found.frame.to_csv(index=False))
    spent = cost.forwards - before[0], cost.examples - before[1], cost.tokens - before[2]
    settings = _given(config, found.verdict, found.told)
    if (best := found.recommended) is not None:
        steps = max(0, whole - found.forwards) // (2 * best.directions)
        settings = Settled(found.verdict, found.told, best.scale, best.learning_rate, best.batch, best.directions, steps)
    write_atomically(path, json.dumps(asdict(replace(settings, spent=spent)), indent=1) + "\n")
    return settings


def _given(config: RunConfig, verdict: str, told: str) -> Settled:
    """No step at all."""
    return Settled(verdict, told, config.scale, config.learning_rate, config.batch, config.directions, 0)
