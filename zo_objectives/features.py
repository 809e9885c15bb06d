"""Directions that matter to what the head reads: where label rows are tuned along the features of a task.

The hidden states that a task's answers are read from are nearly one vector: most of their square is their mean
(tests/test_features.py measures it). A random change of a label row therefore moves all examples' logits together, and a
metric flips from one class for all to another. Along the leading principal directions of the centred states, and one that
moves all logits alike, a change is of what tells examples apart, and there are few numbers to tune: for each token

    rows @ basis,   basis[:-1] = the K leading directions u_i, of size l_i ** -1/4, l_i being the states' variance along u_i,
                    basis[-1]  = the offset: one nat for the mean state, as little as may be for what is about it

The sizes, halfway between the states' own spread and equal shares (whitening), are such that rows of random signs change a
logit by a standard deviation of one nat over examples, and the mean's by one. So a scale is in nats, for any model.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from zo_objectives.errors import InputError
from zo_objectives.language.generation import generate
from zo_objectives.language.passes import plan, site_states
from zo_objectives.language.sheet import Read, Sheet, make_sheet
from zo_objectives.results import read_history
from zo_objectives.scoring import Indices, Kind, Pool
from zo_objectives.starts import save_weights
from zo_objectives.subsets import LabelRows, wanted, with_features
from zo_objectives.workbench import Workbench

BASIS = "basis.safetensors"  # in a run's folder
EXAMPLES = 2048  # whose states the directions are those of, at most
ROUNDING = 1e-9  # of the square of the states: a variance that is none
RIDGE = 1e-3  # of the mean variance: how much an offset may follow directions in which nothing varies
States = NDArray[np.float64]


def leading(states: States, count: int) -> Tensor:
    """The basis [count + 1, d] of hidden states [n, d]; fewer directions where the states have no more."""
    mean = states.mean(axis=0)
    centred = states - mean
    covariance = centred.T @ centred / len(states)
    variances, vectors = np.linalg.eigh(covariance)
    chosen = np.flatnonzero(variances > ROUNDING * (variances[-1] + mean @ mean))[::-1][:count]
    sizes = variances[chosen] ** -0.25
    sizes /= np.sqrt((sizes**2 * variances[chosen]).sum()) if len(chosen) else 1.0
    ridge = RIDGE * np.trace(covariance) / len(mean) + 1e-12
    solved = np.linalg.solve(covariance + ridge * np.eye(len(mean)), mean)
    offset = solved / (solved @ mean)
    directions = (vectors[:, chosen] * sizes).T
    directions -= np.outer(directions @ mean, offset)  # they leave the mean's logit alone
    return torch.from_numpy(np.vstack([directions, offset])).float()


@torch.no_grad()
def states_of(pool: Pool, indices: Indices) -> States:
    """What the head sees [sites, d] where the answers of some examples are read: of options, of targets, or of what the
    model says where the task has neither. Charges one forward pass."""
    sheet = _sheet(pool, indices)
    passes = plan(pool.lm, sheet)
    return torch.cat([site_states(pool.lm, work) for work in passes]).double().cpu().numpy()


def _sheet(pool: Pool, indices: Indices) -> Sheet:
    kind = Kind.CHOICE if pool.spec.output_type == "multiple_choice" else Kind.LIKELIHOOD
    if kind is Kind.CHOICE or pool.spec.doc_to_target is not None:
        pool.charge(1, kind, indices)
        return pool.sheet(kind).take(indices)
    prompts = [pool.prompts[i] for i in indices.tolist()]
    said = generate(pool.lm, prompts, new_tokens=pool.new_tokens, stops=pool.stops, sampler=None, examples=indices.tolist())
    pool.charge(1, Kind.TEXT, indices, sum(map(len, said)))
    return make_sheet([_reads((*p, *s), len(p)) for p, s in zip(prompts, said, strict=True)])


def _reads(ids: tuple[int, ...], start: int) -> list[Read]:
    """Reads of every token from `start` on."""
    return [Read(0, ids, position, ids[position + 1]) for position in range(start - 1, len(ids) - 1)]


def basis_of(pool: Pool, train: Indices, count: int) -> Tensor:
    """The basis [count + 1, d] of a task's training examples, of EXAMPLES of them at most, evenly spaced."""
    return leading(states_of(pool, _chosen(train)), count)


def _chosen(train: Indices) -> Indices:
    return train[np.linspace(0, len(train) - 1, min(EXAMPLES, len(train))).astype(np.int64)]


def _found(bench: Workbench, pool: Pool, count: int) -> Tensor:
    """The basis of the bench's training examples; the base model's is found once, and charged every time."""
    if not bench.at_base:
        return basis_of(pool, bench.train, count)
    if count in bench.bases:
        _sheet(pool, _chosen(bench.train))
    else:
        bench.bases[count] = basis_of(pool, bench.train, count)
    return bench.bases[count]


def put_features(bench: Workbench, pool: Pool, tune: str, folder: Path | None = None) -> None:
    """Puts label rows along features into a model at its start, where `tune` names them and they are not there yet.

    The basis is kept in a run's `folder`, and taken from there by a run that goes on; its history has the pass that it cost.
    Raises InputError for a `tune` that cannot be, and for label rows of other tokens.
    """
    count, head = wanted(tune), pool.lm.head
    if not count or (isinstance(head, LabelRows) and head.basis is not None):
        return
    tokens = bench.row_tokens()
    kept = basis_in(folder, tune) if folder and _goes_on(folder) else None
    basis = _found(bench, pool, count) if kept is None else kept
    if folder and kept is None:
        save_weights(folder / BASIS, {"basis": basis})
    with_features(pool.lm, tokens, basis)


def _goes_on(folder: Path) -> bool:
    """Whether a run's folder has steps that it goes on from; another run may have left what else is there."""
    journal, history = folder / "journal.zoj", folder / "history.csv"
    return journal.exists() and history.exists() and bool(read_history(history))


def basis_in(folder: Path, tune: str) -> Tensor | None:
    """The basis that a run's folder keeps; None where it tunes no features. Raises InputError where it is missing."""
    path = folder / BASIS
    if not wanted(tune):
        return None
    if not path.exists():
        raise InputError(f"{folder} lacks {BASIS}, the directions of its features. Restore it from a backup.")
    basis: Tensor = load_file(path)["basis"]
    return basis
