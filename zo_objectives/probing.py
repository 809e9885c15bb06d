"""Linear probing: logistic regression on the hidden state from which a model reads its answer.

The state is the one that the output head sees at the last token of the prompt, or at the mask. There is no intercept, so
that a probe is the same thing as label rows: `lp+METHOD` begins where `lp` ends.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zo_objectives.errors import InputError, Unfit
from zo_objectives.language.objectives import Objective
from zo_objectives.language.outputs import Choices
from zo_objectives.language.passes import plan, site_states
from zo_objectives.language.sheet import Read, make_sheet
from zo_objectives.scoring import Indices, Kind, Pool

PROBE = "probe.safetensors"  # of a run's folder: what was found
STRENGTHS = tuple(10.0**e for e in range(-4, 5))  # scikit-learn's C; weaker regularisation comes later
Features = NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """Weights [classes, d] of a logistic regression and its strength."""

    weights: Features
    strength: float

    def choices(self, features: Features) -> Choices:
        """Log-odds of every class, up to one constant a row."""
        return Choices((features @ self.weights.T).astype(np.float32))


@torch.no_grad()
def features(pool: Pool, indices: Indices) -> Features:
    """Hidden states [examples, d] that the head reads an answer from."""
    whole = pool.choices
    reads = []
    for i in indices.tolist():
        site = whole.sites_of.starts[i]
        ids, position = whole.sequences[whole.site_sequence[site]], int(whole.site_position[site])
        reads.append([Read(0, ids if pool.lm.bidirectional else ids[: position + 1], position, 0)])
    sheet = make_sheet(reads)
    passes = plan(pool.lm, sheet)
    states = torch.cat([site_states(pool.lm, work) for work in passes])
    ordered = states[torch.argsort(torch.cat([work.sites for work in passes]))]
    return ordered.double().cpu().numpy()


def fit(pool: Pool, train: Indices, validation: Indices, metric: Objective) -> Probe:
    """The probe of train whose strength has the best `metric` on validation, the strongest regularisation of equals.

    Charges one forward pass over train. Raises InputError for tasks whose options differ from example to example.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    options = {e.options for e in pool.examples}
    if pool.spec.output_type != "multiple_choice" or len(options) != 1:
        raise Unfit(
            f"Task {pool.spec.task!r} has no fixed classes to probe for. Take `ft:head`, which tunes the head instead."
        )
    x, seen, y = features(pool, train), features(pool, validation), np.array([e.label for e in pool.at(train)])
    pool.charge(1, Kind.CHOICE, train)
    if len(classes := np.unique(y)) < 2:
        raise InputError(f"Task {pool.spec.task!r}: all of train is one class. Raise n_train or shots.")
    gain, count, best = float(np.sqrt(np.mean(x**2))), len(next(iter(options))), None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, fit_intercept=False, max_iter=2000)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # hardly regularised ones need not get there; validation judges
            model.fit(x / gain, y)
        weights = np.zeros((count, x.shape[1]))
        if len(classes) == 2:
            weights[classes] = np.concatenate([-model.coef_, model.coef_]) / (2 * gain)
        else:
            weights[classes] = model.coef_ / gain
        probe = Probe(weights, strength)
        score = metric(probe.choices(seen), pool.at(validation))
        if best is None or score > best[0]:
            best = (score, probe)
    assert best is not None
    return best[1]


def label_rows(pool: Pool, weights: Tensor) -> dict[str, Tensor]:
    """What is to be added to the head's rows for the model to say what a probe's weights [classes, d] say.

    Raises InputError for options that are not one token each.
    """
    sheet = pool.choices
    if not sheet.closed:
        raise Unfit(
            f"Task {pool.spec.task!r}: options of several tokens for {pool.lm.name}, or scored against each other's"
            " lengths, cannot begin as a linear probe. Use options of one token and scoring=sum."
        )
    own = sheet.read_token[: sheet.options]
    tokens = np.unique(own)
    weight: Tensor = pool.lm.head.weight
    chosen = torch.from_numpy(tokens).to(weight.device)
    rows = (weights[np.argsort(own)].to(weight.device) - weight[chosen].double()).to(weight.dtype)
    return {"tokens": torch.from_numpy(tokens), "rows": rows}
