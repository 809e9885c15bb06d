"""A survey before a run: how flat the objective is at which scale and batch, what settings to take, whether any will do.

Few forward passes: at every scale some mirrored pairs, the same directions at all of them, on one common set of examples.
What the model said is kept for one scale at a time; every batch is then judged on parts of it, by the objective alone.
`plateau.py` says what is derived from that, and what was fitted.

Where the run takes directions apart by label rows, so does the survey: a pair is one of a part, told by the same forwards,
in a part's numbers.

Tie rates are seen on one half of the examples and predicted from the other. In a score that is a mean over examples, those
are counted; a metric of the whole batch is asked for every part, about 200 times a pair and scale.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from zo_objectives.building import Search, build_search
from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError
from zo_objectives.language.objectives import scoring
from zo_objectives.language.outputs import Choices, Generations, Likelihoods, Outputs
from zo_objectives.outcomes import Means, Outcomes, Wholes
from zo_objectives.plateau import (
    Floats,
    Level,
    Recommendation,
    Said,
    closed_ties,
    correlations,
    doubt,
    flips,
    level,
    recommend,
    squared_cosine,
)
from zo_objectives.scoring import REST, Indices, Kind, TailScorer
from zo_objectives.search.estimators import Probe, mirrored
from zo_objectives.search.keys import direction_keys, fold_in, root_key
from zo_objectives.workbench import Workbench

if TYPE_CHECKING:
    import pandas as pd

SCALES = (0.03, 0.1, 0.3, 1.0, 3.0)
BATCHES = (16, 32, 64, 128, 256, 512, 1024)
EXAMPLES, FEW = 1024, 256  # where forwards are cheap, and where each goes through a model's layers or makes text
LEAST = 16  # examples
PAIRS = 16  # of forward passes at each scale
MEMBERS = (1, 8, 32)  # pairs for which a row tells the cosine
STREAM = 1 << 40  # folded into the seed's key: no step of a run has these directions
ADVICE = (
    "Do not expect this objective and what is tuned to get anywhere; more --pairs see smaller signals. Try another --tune"
    " (features, norms, layers:A-B, lora, all), a smooth objective (--objective expected_accuracy, --method mezo-ce, or"
    " mezo-ce+zo to go on from there), or a better prompt or label words."
)

SLOW = "Expect a slow climb; a larger --tune, more training examples or a smooth objective may help."


@dataclass(frozen=True)
class Row:
    """What is known of a scale and a batch; see plateau.py for the terms. Ties are shares of directions, nan where not
    known."""

    scale: float
    batch: int
    ties_seen: float
    ties_predicted: float
    ties_formula: float  # closed_ties; nan where the score is no mean of 0 and 1, and for directions taken apart
    level: Level
    numbers: int  # that are tuned, in one part

    @property
    def quality(self) -> float:
        """The share of signal in what a pair says."""
        return self.level.quality(self.batch)

    def squared_cosine(self, pairs: int) -> float:
        """Of the estimate from so many pairs with the gradient of the smoothed objective."""
        return squared_cosine(self.quality, self.numbers, pairs)

    def record(self) -> dict[str, float]:
        """The row as columns."""
        own = {k: v for k, v in asdict(self).items() if k not in ("level", "numbers")}
        noise = {"signal": self.level.signal, "noise": self.level.noise / self.batch, "quality": self.quality}
        cosines = {f"squared_cosine_{n}": self.squared_cosine(n) for n in MEMBERS}
        rest = {"correlation": self.level.correlation, "drop": self.level.drop, "drop_error": self.level.error}
        return own | noise | cosines | rest | {"p": self.level.p}


@dataclass(frozen=True)
class Survey:
    """What was measured, what to do, and whether it will work: `verdict` is signal, weak or none; `told` says why."""

    rows: tuple[Row, ...]
    recommended: Recommendation | None
    verdict: str
    told: str
    centre: float  # the score of the weights as they are
    examples: int
    forwards: int

    @property
    def frame(self) -> "pd.DataFrame":
        """A row for each scale and batch."""
        import pandas as pd

        return pd.DataFrame([row.record() for row in self.rows])


def defaults(search: Search) -> tuple[tuple[float, ...], int]:
    """Scales and a number of examples: fewer where a forward goes through a model's layers, or makes text."""
    cheap = isinstance(search.evaluation.scorer, TailScorer)
    return SCALES if cheap else SCALES[:3], EXAMPLES if cheap and search.evaluation.kind is not Kind.TEXT else FEW


def forwards_of(search: Search) -> int:
    """How many forward passes a survey takes where nothing is given; those that measure layer sizes aside."""
    return 1 + 2 * len(defaults(search)[0]) * PAIRS


def survey(
    search: Search,
    train: Indices,
    seed: int,
    *,
    scales: Sequence[float] | None = None,
    pairs: int = PAIRS,
    examples: int | None = None,
    budget: int = 19_200,
    batches: Sequence[int] = BATCHES,
    watch: Callable[[float], object] = lambda scale: None,
) -> Survey:
    """Measures around a search's weights with 1 + 2 * len(scales) * pairs forwards, each on `examples` of train.

    `budget` is the forwards of the run that is recommended; `watch` is told of every scale that is done. The same for the
    same seed. Where scales or examples are not given, see `defaults`. Raises InputError, and Failure as the objective does.
    """
    usual, many = defaults(search)
    grid, size = sorted(set(scales or usual)), min(examples or many, len(train))
    if pairs < 2 or size < LEAST or grid[0] <= 0:
        raise InputError(
            f"A survey of {pairs} pairs at scales {', '.join(f'{s:g}' for s in grid)} on {size} examples: it takes 2 or more"
            f" pairs, scales above 0 and {LEAST} or more training examples."
        )
    rng, key = np.random.default_rng([seed & 0xFFFFFFFF, STREAM]), fold_in(root_key(seed), STREAM)
    look = _Look(search, rng.permutation(rng.choice(train, size, replace=False)), direction_keys(key, pairs))
    most, before = min(BATCHES[-1], len(train)), look.forwards
    sizes = sorted({b for b in batches if b < most} | {most})
    rows, levels, scores = list[Row](), list[Level](), list[float]()
    numbers = search.weights.count // look.parts
    with look.open(key):
        centre, signs = look.said([REST]), None
        for scale in grid:
            outcomes = look.around(scale, centre)
            said = outcomes.said()
            signs = flips(len(said.centre), rng) if signs is None else signs
            levels.append(level(scale, said, signs))
            rows += _rows(outcomes, said, levels[-1], sizes, numbers, rng)
            scores.append(said.rest)
            watch(scale)
    found = recommend(levels, most, budget)
    verdict, told = judged(rows, levels, found, size)
    return Survey(tuple(rows), found, verdict, told, scores[0], size, look.forwards - before)


def _rows(
    outcomes: Outcomes, said: Said, at: Level, sizes: Sequence[int], numbers: int, rng: np.random.Generator
) -> Iterator[Row]:
    first = slice(0, (len(said.centre) + 1) // 2)
    plus, minus, centre = said.plus[:, first], said.minus[:, first], float(said.centre[first].mean())
    formula = outcomes.parts == 1 and bool(np.isin([plus, minus], (0.0, 1.0)).all())
    rho = float(correlations(plus, minus).mean())
    for batch in sizes:
        closed = closed_ties(centre, rho, batch) if formula else float("nan")
        yield Row(at.scale, batch, *outcomes.ties(batch, rng), closed, at, numbers)


@dataclass(frozen=True)
class _Look:
    """A search's weights, the examples on which they are looked at, and the directions of the pairs."""

    search: Search
    indices: Indices
    keys: Sequence[int]

    @property
    def parts(self) -> int:
        """How many pairs a direction has."""
        return max(self.search.estimator.parts, 1)

    @property
    def forwards(self) -> int:
        return self.search.evaluation.scorer.pool.cost.forwards

    @contextmanager
    def open(self, key: int) -> Iterator[None]:
        """While open, layers have the sizes that a run's first step would give them, and scoring functions their context."""
        weights, evaluation, adaptive = self.search.weights, self.search.evaluation, self.search.adaptive
        old = weights.sizes
        with scoring(steps=evaluation.steps, tokenize=evaluation.scorer.pool.tokenize):
            try:
                if adaptive is not None:
                    sizes = adaptive.measure(weights, lambda probes, t: evaluation.scores(probes, self.indices, t), 0, key)
                    weights.resize(sizes.tolist())
                yield
            finally:
                if adaptive is not None:
                    weights.resize(old.tolist())

    def said(self, probes: Sequence[Probe]) -> list[list[Outputs]]:
        return self.search.evaluation.said(probes, self.indices)

    def around(self, scale: float, centre: Sequence[list[Outputs]]) -> Outcomes:
        """What the centre and all pairs at one scale say; an estimator's blocks take turns, as they do step by step."""
        blocks = self.search.estimator.blocks
        groups = [k % blocks if blocks else None for k in range(len(self.keys))]
        centres = [Probe(k, scale, g) for k, g in zip(self.keys, groups, strict=True)]
        probes = [probe for one in centres for probe in mirrored(one, self.search.estimator.parts)]
        said = [one + others for one, others in zip(centre, self.said(probes), strict=True)]
        evaluation = self.search.evaluation
        examples = evaluation.scorer.pool.at(self.indices)
        values = evaluation.signal.of_examples(evaluation.objective, said, examples)
        if values is not None:
            return Means(values, self.parts)
        return Wholes(partial(self._score, said), len(examples), self.parts)

    def _score(self, said: Sequence[Sequence[Outputs]], part: Indices) -> Floats:
        """The objective of every member, [members], on some of the examples, by number."""
        evaluation = self.search.evaluation
        draws = [[taken(outputs, part) for outputs in members] for members in said]
        examples = evaluation.scorer.pool.at(self.indices[part])
        return np.array(evaluation.signal.values(evaluation.objective, draws, examples), dtype=np.float64)


def taken(outputs: Outputs, part: Indices) -> Outputs:
    """What was said of some of the examples."""
    if isinstance(outputs, Choices):
        return Choices(outputs.loglikelihoods[part])
    if isinstance(outputs, Likelihoods):
        return Likelihoods(outputs.loglikelihoods[part], outputs.tokens[part])
    return Generations([outputs.texts[i] for i in part.tolist()])


def judged(
    rows: Sequence[Row], levels: Sequence[Level], recommended: Recommendation | None, examples: int
) -> tuple[str, str]:
    """The verdict and its reasons."""
    if recommended is None:
        return "none", f"{_silence(levels, examples)} {ADVICE}"
    scale, batch = recommended.scale, recommended.batch
    row = next((r for r in rows if (r.scale, r.batch) == (scale, batch)), None)
    at = next(one for one in levels if one.scale == scale)
    tied = row.ties_predicted if row is not None else 0.0
    if at.signal == 0:
        seen = (
            f"Pairs differ by more than chance (p = {doubt(levels):.2g}), but how much of it is signal is lost in the noise."
        )
        return "weak", f"{seen} {SLOW}"
    weak = at.quality(batch) < 0.5 or tied > 0.5
    told = (
        f"At scale {scale:g} and batch {batch}, {at.quality(batch):.0%} of what a pair says is signal and {tied:.0%} of"
        f" directions tie; noise and signal are level at a batch of {at.par:.0f}."
    )
    return ("weak", f"{told} {SLOW}") if weak else ("signal", told)


def _silence(levels: Sequence[Level], examples: int) -> str:
    if all(one.noise == 0 for one in levels):
        return f"On {examples} examples no pair scored differently, at any scale: the objective is flat here."
    return f"On {examples} examples pairs differ no more than chance makes them, at any scale (p = {doubt(levels):.2g})."


def prepared(config: RunConfig) -> tuple[Workbench, Search]:
    """The bench and the search of a zeroth-order run's first step. Raises InputError for another method."""
    if config.method not in ("zo", "zo-ce", "mezo-ce") or config.before is not None:
        raise InputError(f"{config.called}: a survey is of zo, zo-ce or mezo-ce from the base model on; give --method zo.")
    bench = Workbench.open(config)
    return bench, build_search(bench, bench.fresh(config.tune), config)
