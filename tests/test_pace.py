"""Pace: scales and batches follow ties, come back, stop where nothing helps, and replay bit for bit."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zo_objectives.search.estimators import Clipped, Es, Estimator, OneSided, RoundRobin, Spsa
from zo_objectives.search.geometry import Dense
from zo_objectives.search.journal import Journal, header_for
from zo_objectives.search.keys import fold_in, root_key
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.pace import BACK, FARTHEST, PATIENCE, WIDER, Paced, State, state_of
from zo_objectives.search.rules import sgd
from zo_objectives.search.schedules import constant
from zo_objectives.search.shaping import raw, unit
from zo_objectives.search.weights import Weights

SHARES = st.sampled_from([0.0, 0.03, 0.1, 0.3, 0.6, 1.0])


@given(st.integers(0, FARTHEST), st.integers(0, 31), st.integers(0, PATIENCE))
def test_one_float32_number_holds_a_state(octaves: int, doublings: int, idle: int) -> None:
    state = State(octaves, doublings, idle)
    (number,) = state.memory
    assert float(np.float32(number)) == number
    assert State.of((number,)) == state and State.of(()) == State()


@given(st.lists(SHARES, max_size=120), st.integers(0, 5))
def test_a_state_stays_within_its_limits(shares: list[float], doublings: int) -> None:
    state = State()
    for ties in shares:
        before, state = state, state.after(ties, doublings)
        assert 0 <= state.octaves <= FARTHEST and before.doublings <= state.doublings <= doublings
        if ties > 0.25:
            assert state.octaves == min(before.octaves + WIDER, FARTHEST)
        if ties < 0.05:
            assert state.octaves == max(before.octaves + BACK, 0)
        assert state.hopeless <= (ties == 1.0)


def test_without_ties_nothing_changes_and_with_nothing_else_the_search_is_given_up() -> None:
    state = State()
    for _ in range(200):
        state = state.after(0.0, 3)
    assert state == State()
    steps = 0
    while not state.hopeless:
        state, steps = state.after(1.0, 3), steps + 1
    assert (state.octaves, state.doublings) == (FARTHEST, 3)
    assert steps == FARTHEST // WIDER + 3 + PATIENCE
    assert not state.after(0.9, 3).hopeless  # a single pair that tells something is enough


def test_wide_steps_are_wider_and_slopes_stay_slopes() -> None:
    memory = State(octaves=32).memory
    for inner, factor in (
        (Spsa(0.1, 4, unit), 4.0),
        (OneSided(0.1, 4, unit), 4.0),
        (Es(0.1, 4, raw), 0.25),
        (Spsa(0.1, 4, raw), 0.25),
    ):
        paced: Estimator = Paced(inner)
        assert [p.scale for p in paced.probes(3, 0, memory)] == [p.scale * 4 for p in inner.probes(3)]
        assert paced.probes(3) == inner.probes(3)
        scores = np.random.default_rng(0).normal(size=len(inner.probes(3))).tolist()
        expected = inner.gradient(3, scores).coefficients * np.float32(factor)
        assert (paced.gradient(3, scores, 0, memory).coefficients == expected).all()


def test_a_state_is_found_within_other_estimators() -> None:
    memory = State(octaves=8, doublings=2).memory
    paced = Paced(Spsa(0.1), 4)
    for estimator in (paced, Clipped(paced, 1.0), RoundRobin(Clipped(paced, 1.0), 2)):
        assert state_of(estimator, memory) == State(8, 2)
        assert estimator.remembers == 1
    assert state_of(Clipped(Spsa(0.1), 1.0), ()) == State()


def steps_on_a_plateau(
    threshold: float, path: Path | None, steps: int, keep: int | None = None
) -> tuple[Weights, list[State]]:
    """Climbs a score that is flat within `threshold` of 0, from 0 on, and the states on the way."""
    model = torch.nn.Linear(16, 1, bias=False)
    torch.nn.init.zeros_(model.weight)

    def score(t: int) -> float:
        return float(max(0.0, abs(float(model.weight.sum())) - threshold))

    weights = Weights(model, ["weight"], geometry=Dense(), rule=sgd(constant(0.1)))
    estimator = Paced(Spsa(0.01, 4, unit), 2)
    states = []
    with nullcontext() if path is None else Journal.open(path, header_for(weights, estimator, 7)) as log:
        for step in climb(weights, estimator, sequential(weights, score), steps=keep or steps, seed=7, journal=log):
            states.append(state_of(estimator, step.memory))
    return weights, states


def test_probes_reach_beyond_a_plateau_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    """The plateau is 0.1 wide to each side and probes of 16 numbers go 0.04: at first every pair ties."""
    _, states = steps_on_a_plateau(0.1, None, 40)
    assert states[0].octaves == WIDER and max(s.octaves for s in states) > 16
    whole, _ = steps_on_a_plateau(0.1, tmp_path / "whole", 40)
    steps_on_a_plateau(0.1, tmp_path / "parts", 40, keep=17)
    resumed, after = steps_on_a_plateau(0.1, tmp_path / "parts", 40)
    assert len(after) == 23 and after == states[17:]
    assert whole.fingerprint() == resumed.fingerprint()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


@pytest.mark.parametrize("t", [0, 5])
def test_memory_of_ties_is_of_the_pairs(t: int) -> None:
    paced = Paced(Spsa(0.1, 4, unit))
    key = fold_in(root_key(1), t)
    half = [0.5, 0.5, 0.5, 0.5, 0.1, 0.2, 0.3, 0.1]
    assert len(paced.probes(key)) == len(half)
    assert State.of(paced.remember(half, t)).octaves == WIDER  # half of the pairs tie
    assert State.of(paced.remember([0.1, 0.2] * 4, t, State(octaves=3).memory)).octaves == 3 + BACK
    assert replace(paced, doublings=3).remember(half, t, State(FARTHEST).memory) == State(FARTHEST).memory
