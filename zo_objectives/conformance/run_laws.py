"""Law 4 of runs: live = replayed = killed and resumed, bit for bit."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from zo_objectives.conformance.toy import Toy, WeightsOf, score
from zo_objectives.search import journal
from zo_objectives.search.adaptive import Adaptive
from zo_objectives.search.estimators import Estimator, Evaluator, Probe
from zo_objectives.search.journal import Journal, header_for
from zo_objectives.search.loop import climb
from zo_objectives.search.weights import Weights


def probing(weights: Weights, model: nn.Module) -> Evaluator:
    """Scores of a `Toy`, one probe after another."""

    def evaluate(probes: Sequence[Probe], t: int) -> list[float]:
        scores = []
        for probe in probes:
            with weights.at(probe):
                scores.append(score(model, t))
        return scores

    return evaluate


def check_run(
    weights_of: WeightsOf,
    estimator: Estimator,
    folder: Path,
    *,
    adaptive: Adaptive | None = None,
    steps: int = 4,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Law 4 on a `Toy`: a run, its replay, and the run killed in any step, mid-record, and resumed, end in the same bits."""
    path, killed = folder / "live.zoj", folder / "killed.zoj"

    def go(to: Path) -> tuple[Weights, list[tuple[float, ...]]]:
        model = Toy(dtype)
        weights = weights_of(model)
        with Journal.open(to, header_for(weights, estimator, 3, adaptive)) as log:
            run = climb(weights, estimator, probing(weights, model), steps=steps, seed=3, journal=log, adaptive=adaptive)
            return weights, [step.scores for step in run]

    live, scores = go(path)
    header, records = journal.read(path)
    assert len(records) == steps and header["base"] != live.fingerprint()
    replayed = weights_of(Toy(dtype))
    journal.replay(header, records, replayed)
    assert replayed.fingerprint() == live.fingerprint()
    data, layout = path.read_bytes(), journal.Layout.of(header)
    for kept in range(steps):
        lost = sum(layout.width(t) for t in range(kept, steps))
        killed.write_bytes(data[: len(data) - lost + 3])  # and a torn record
        resumed, rest = go(killed)
        assert rest == scores[kept:] and killed.read_bytes() == data
        assert resumed.fingerprint() == live.fingerprint()
