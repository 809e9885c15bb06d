"""What is climbed of an objective: its mean over draws, pass@k, with the same random numbers for all members."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_objectives import subsets
from zo_objectives.api import tune
from zo_objectives.draws import Signal
from zo_objectives.errors import InputError
from zo_objectives.language.objectives import BUILTIN, resolve
from zo_objectives.language.outputs import Choices, Example, Generations
from zo_objectives.language.tasks import TaskSpec
from zo_objectives.scoring import Evaluation, ForwardScorer, Pool
from zo_objectives.search.estimators import Probe

LABELS = (0, 1, 1, 0, 1, 0, 0, 1)
EXAMPLES = [Example(i, f"p{i}", {}, (" a", " b"), label) for i, label in enumerate(LABELS)]


def choices(margins: Sequence[float]) -> Choices:
    """Log-odds of option b against option a."""
    return Choices(np.array([[0.0, m] for m in margins], dtype=np.float32))


def test_the_mean_over_draws_of_accuracy_is_the_probability_of_being_right() -> None:
    """Its closed form is the builtin expected_accuracy; at half the temperature, that of doubled log-odds."""
    outputs = choices(np.linspace(-2, 2, len(EXAMPLES)).tolist())
    for temperature, same in ((1.0, outputs), (0.5, Choices(outputs.loglikelihoods * 2))):
        signal = Signal(samples=3000, temperature=temperature)
        draws = [[signal.drawn(outputs, EXAMPLES, (0, n))] for n in range(3000)]
        (found,) = signal.values(BUILTIN["accuracy"], draws, EXAMPLES)
        assert found == pytest.approx(BUILTIN["expected_accuracy"](same, EXAMPLES), abs=0.01)


def test_members_that_say_nearly_the_same_draw_nearly_the_same() -> None:
    """Common random numbers: the difference of two means is far less noisy than two means of their own."""
    near, far, signal = choices([0.3] * 8), choices([0.31] * 8), Signal(samples=20, temperature=1.0)

    def mean(outputs: Choices, first: int) -> float:
        draws = [[signal.drawn(outputs, EXAMPLES, (0, n))] for n in range(first, first + 20)]
        return float(signal.values(BUILTIN["accuracy"], draws, EXAMPLES)[0])

    common = [mean(near, 20 * t) - mean(far, 20 * t) for t in range(40)]
    own = [mean(near, 40 * t) - mean(far, 40 * t + 20) for t in range(40)]
    assert np.std(common) < 0.3 * np.std(own)


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(1, 5))
def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_draw(right: list[list[bool]], k: int) -> None:
    """The estimator of Chen et al. 2021 against counting subsets."""
    examples = [Example(i, "p", {}, targets=("yes",)) for i in range(len(right))]
    draws = [[Generations(["yes" if row[n] else "no" for row in right])] for n in range(5)]
    (found,) = Signal(samples=5, pass_at=k).values(resolve("exact_match"), draws, examples)
    expected = np.mean([np.mean([any(row[i] for i in subset) for subset in combinations(range(5), k)]) for row in right])
    assert found == pytest.approx(float(expected))


def test_an_evaluation_averages_over_its_samples_and_charges_them() -> None:
    lm = tiny.make()
    spec = TaskSpec.model_validate(
        {"task": "t", "dataset_path": "x", "doc_to_text": "text", "generation_kwargs": {"max_gen_toks": 4, "until": []}}
    )
    examples = tuple(Example(i, p, {}, targets=("x",)) for i, p in enumerate(("the film", "a good", "1 + 2")))
    pool = Pool(lm, spec, examples, temperature=1.0)
    weights = tiny.weights(lm, subsets.select(lm, "norms", []))
    everything, probes = np.arange(3), [Probe(1, 0.1), Probe(1, -0.1)]
    scorer = ForwardScorer(pool, weights, None)
    several = Evaluation(scorer, resolve("characters"), signal=Signal(samples=3))
    found = several.scores(probes, everything, draw=2)
    assert pool.cost.forwards == 2 * 3
    apart = [Evaluation(scorer, resolve("characters")).scores(probes, everything, draw=n) for n in (6, 7, 8)]
    assert [float(f) for f in found] == pytest.approx(np.mean(apart, axis=0).tolist())
    assert len({tuple(map(float, row)) for row in apart}) > 1
    before = pool.cost.forwards
    assert several.value(everything) == pytest.approx(several.value(everything))
    assert pool.cost.forwards == before  # who watches does not pay


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("sums", {"samples": 4}, "every draw would be the same"),
        ("reviews", {"samples": 4, "objective": "cross_entropy", "temperature": 1.0}, "every draw would be the same"),
        ("sums", {"samples": 2, "pass_at": 3, "temperature": 1.0}, "at least as many draws"),
        ("reviews", {"samples": 2, "pass_at": 1, "temperature": 1.0}, "one number for a whole batch"),
    ],
)
def test_signals_that_mean_nothing_are_refused(task: str, given: dict[str, Any], message: str, tmp_path: Path) -> None:
    small = {"steps": 1, "batch": 4, "n_train": 8, "n_validation": 4, "n_test": 4, "directions": 1}
    objective = given.pop("objective", None)
    with pytest.raises(InputError, match=message):
        tune(task, objective=objective, output=tmp_path, show=False, **small, **given)


def test_a_run_climbs_pass_at_k_and_reports_it(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "temperature": 1.0,
        "samples": 3,
        "pass_at": 2,
        "steps": 2,
        "batch": 8,
        "directions": 1,
        "tune": "norms",
    }
    done = tune("sums", output=tmp_path, show=False, n_train=16, n_validation=8, n_test=8, **given)
    assert done.results["metric"].iloc[0] == "pass@2"
    rows = done.results.set_index(["split", "metric"])["value"]
    assert rows["test", "pass@2"] >= 0.5 * rows["test", "exact_match"]
    assert done.results["forwards"].iloc[0] == 2 * 2 * 3


def test_a_run_climbs_a_metric_under_sampling_of_options(tmp_path: Path) -> None:
    given: dict[str, Any] = {"temperature": 1.0, "samples": 8, "steps": 3, "batch": 16, "directions": 2}
    done = tune("reviews", output=tmp_path / "a", show=False, n_train=32, n_validation=16, n_test=16, **given)
    assert done.results["forwards"].iloc[0] == 3 * 4  # options are drawn again, not scored again
    again = tune("reviews", output=tmp_path / "b", show=False, n_train=32, n_validation=16, n_test=16, **given)
    assert (done.folder / "journal.zoj").read_bytes() == (again.folder / "journal.zoj").read_bytes()
