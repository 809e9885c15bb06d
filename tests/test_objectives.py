"""Objectives equal scikit-learn, SQuAD's script and torch; a user's callable works or is refused by name, never scored 0."""

import asyncio
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from objective_batches import generated, labelled
from sklearn import metrics as sk

from zo_objectives.errors import InputError, RunError
from zo_objectives.language import metrics
from zo_objectives.language.objectives import BUILTIN, Failure, Needs, Objective, from_callable, resolve
from zo_objectives.language.outputs import Choices, Example, Likelihoods, Outputs


def sklearn_score(name: str, labels: Sequence[int], predictions: Sequence[int], classes: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of one-class batches
        match name:
            case "accuracy":
                return float(sk.accuracy_score(labels, predictions))
            case "f1_macro":
                every = list(range(classes))
                return float(sk.f1_score(labels, predictions, labels=every, average="macro", zero_division=0))
            case "f1_micro":
                return float(sk.f1_score(labels, predictions, average="micro"))
            case "f1_weighted":
                return float(sk.f1_score(labels, predictions, average="weighted", zero_division=0))
            case "f1":
                return float(sk.f1_score(labels, predictions, labels=[1], average="macro", zero_division=0))
            case "balanced_accuracy":
                every = list(range(classes))
                return float(sk.recall_score(labels, predictions, labels=every, average="macro", zero_division=0))
            case "mcc":
                return float(sk.matthews_corrcoef(labels, predictions))
    raise AssertionError(name)


# Class metrics


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    classes, size = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    label = st.integers(0, classes - 1)
    labels = draw(st.lists(label, min_size=size, max_size=size) | label.map(lambda y: [y] * size))
    return labels, draw(st.lists(label, min_size=size, max_size=size)), classes


@given(pairs())
@pytest.mark.parametrize("name", list(metrics.CLASS_METRICS))
def test_class_metrics_equal_scikit_learn(name: str, case: tuple[list[int], list[int], int]) -> None:
    assume(name != "f1" or case[2] == 2)
    assert BUILTIN[name](*labelled(*case)) == pytest.approx(sklearn_score(name, *case), abs=1e-12)


def test_law_9_a_one_class_batch_keeps_the_tasks_label_set() -> None:
    assert BUILTIN["f1_macro"](*labelled([0, 0], [0, 0], 2)) == 0.5
    assert BUILTIN["f1_macro"](*labelled([0, 0], [0, 0], 4)) == 0.25
    assert sk.f1_score([0, 0], [0, 0], average="macro") == 1.0, "which is what the fixed label set is there for"


@pytest.mark.parametrize(
    ("labels", "predictions", "value"),
    [([0, 0, 0], [0, 0, 0], 0), ([1, 0, 1], [1, 1, 1], 0), ([0, 0], [0, 1], 0), ([0, 1], [0, 1], 1), ([0, 1], [1, 0], -1)],
)
def test_mcc_of_degenerate_batches(labels: list[int], predictions: list[int], value: float) -> None:
    assert BUILTIN["mcc"](*labelled(labels, predictions, 2)) == value


def test_confusion_has_labels_in_rows() -> None:
    assert metrics.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_class_metrics_refuse_generated_text() -> None:
    with pytest.raises(InputError, match="'mcc' needs a multiple-choice task"):
        BUILTIN["mcc"](*generated(["a"], [["a"]]))


# Text metrics


@pytest.mark.parametrize(
    ("prediction", "references", "em", "f1"),
    [  # as the official evaluation script of SQuAD v1.1 has them
        ("The Norman conquest!", ["norman conquest"], 1, 1),
        ("a  an the", ["the"], 1, 1),
        ("Denver Broncos", ["Broncos"], 0, 2 / 3),
        ("the the cat sat", ["cat cat"], 0, 0.5),
        ("in 1066", ["1067", "the year 1066"], 0, 0.5),
        ("nothing", ["Paris"], 0, 0),
        ("", ["Paris"], 0, 0),
        ("Paris", ["London", "paris."], 1, 1),
        ("co-operate", ["cooperate"], 1, 1),
        ("anthem", ["them"], 0, 0),
        ("cat cat dog", ["cat dog dog"], 0, 2 / 3),
    ],
)
def test_squad_metrics_by_hand(prediction: str, references: list[str], em: float, f1: float) -> None:
    assert BUILTIN["squad_exact_match"](*generated([prediction], [references])) == em
    assert BUILTIN["squad_f1"](*generated([prediction], [references])) == pytest.approx(f1)


def test_text_metrics_are_means_over_the_batch() -> None:
    batch = generated([" 4 ", "5"], [["4"], ["6"]])
    assert BUILTIN["exact_match"](*batch) == 0.5
    assert BUILTIN["squad_f1"](*generated(["a b", "c"], [["b"], ["c d"]])) == pytest.approx((1 + 2 / 3) / 2)


def test_text_metrics_on_options_compare_their_texts() -> None:
    assert BUILTIN["squad_f1"](*labelled([0, 1], [0, 0], 2)) == pytest.approx((1 + 0.5) / 2)
    assert BUILTIN["exact_match"](*labelled([0, 1], [0, 0], 2)) == 0.5


def test_text_metrics_refuse_examples_without_targets() -> None:
    with pytest.raises(InputError, match="'exact_match' compares texts with targets"):
        BUILTIN["exact_match"](*generated(["a", "b"], [["a"], []]))


# Cross-entropy


def test_cross_entropy_equals_torch() -> None:
    scores = np.random.default_rng(0).normal(scale=5, size=(20, 4)).astype(np.float32)
    labels = [i % 4 for i in range(20)]
    _, examples = labelled(labels, labels, 4)
    expected = -torch.nn.functional.cross_entropy(torch.tensor(scores).double(), torch.tensor(labels))
    assert BUILTIN["cross_entropy"](Choices(scores), examples) == pytest.approx(float(expected), abs=1e-12)
    assert BUILTIN["cross_entropy"](Choices(scores - 1e3), examples) == pytest.approx(float(expected), abs=1e-4)


def test_cross_entropy_leaves_out_missing_options() -> None:
    _, examples = labelled([0, 1], [0, 1], 3)
    scores = np.array([[0, 0, -np.inf], [0, 0, 0]], dtype=np.float32)
    assert BUILTIN["cross_entropy"](Choices(scores), examples) == pytest.approx(-(math.log(2) + math.log(3)) / 2)


def test_cross_entropy_of_targets_is_per_token() -> None:
    _, examples = generated(["", ""], [["a"], ["b"]])
    outputs = Likelihoods(np.array([-3.0, -5.0], dtype=np.float32), np.array([1, 3]))
    assert BUILTIN["cross_entropy"](outputs, examples) == -2.0
    assert BUILTIN["cross_entropy"].needs is Needs.LIKELIHOOD


def test_cross_entropy_refuses_text() -> None:
    with pytest.raises(InputError, match="needs options or targets"):
        BUILTIN["cross_entropy"](*generated(["a"], [["a"]]))


# A user's callable


def test_a_function_of_outputs_and_examples_sees_everything() -> None:
    def first_is_right(outputs: Outputs, examples: Sequence[Example]) -> float:
        """Whether the first is right."""
        return float(outputs.predictions[0] == examples[0].label)

    objective = from_callable(first_is_right)
    assert (objective.name, objective.about) == ("first_is_right", "Whether the first is right.")
    assert objective(*labelled([1, 0], [1, 1], 2)) == 1.0


def test_a_metric_gets_option_indices_or_texts() -> None:
    seen: list[Any] = []

    def keep(predictions: list[Any], references: list[Any]) -> float:
        seen.append((predictions, references))
        return 0.25

    assert from_callable(keep)(*labelled([1, 0], [1, 1], 2)) == 0.25
    assert from_callable(keep)(*generated(["x", "y"], [["a"], ["b", "c"]])) == 0.25
    assert seen == [([1, 1], [1, 0]), (["x", "y"], ["a", ["b", "c"]])]


def test_a_metric_of_scikit_learn_gets_its_own_argument_order() -> None:
    labels, predictions = [1, 1, 0, 0], [1, 0, 0, 0]
    for function in (sk.precision_score, sk.recall_score, sk.balanced_accuracy_score):
        assert from_callable(function)(*labelled(labels, predictions, 2)) == function(labels, predictions)


def test_a_reward_gets_prompts_completions_and_columns() -> None:
    def by_number(prompts: list[str], completions: list[str], n: list[int], **columns: Any) -> list[float | None]:
        assert prompts == ["prompt 0", "prompt 1", "prompt 2"]
        assert set(columns) == {"trainer_state", "log_extra", "log_metric"}
        return [float(len(c)) + i if c else None for c, i in zip(completions, n, strict=True)]

    objective = from_callable(by_number)
    assert objective(*generated(["abc", "", "a"], [[], [], []])) == pytest.approx((3 + (1 + 2)) / 2)  # None is left out


def test_a_reward_on_options_gets_their_texts() -> None:
    assert from_callable(lambda completions: [c == " option 1" for c in completions])(*labelled([0, 0], [1, 0], 2)) == 0.5


def test_partials_and_callable_objects_work() -> None:
    class Share:
        def __call__(self, predictions: list[int], references: list[int]) -> float:
            return sum(predictions) / len(predictions)

    def above(predictions: list[int], references: list[int], limit: int) -> float:
        return float(sum(p > limit for p in predictions))

    assert from_callable(Share()).name == "Share"
    assert from_callable(Share())(*labelled([0, 0], [1, 0], 2)) == 0.5
    assert from_callable(partial(above, limit=0))(*labelled([0, 0], [1, 0], 2)) == 1.0


def returning(value: Any) -> Callable[[list[Any], list[Any]], Any]:
    def metric(predictions: list[Any], references: list[Any]) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    return metric


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (KeyError("x"), "raised KeyError: 'x'"),
        (math.nan, "returned nan"),
        (np.float32(-np.inf), "returned -inf"),
        (None, "returned None, not a number"),
        ("0.5", "returned str '0.5', not a number"),
        (True, "returned bool True, not a number"),
        ([0.5], "returned list"),
        ({"accuracy": "high"}, "returned str 'high'"),
        (0.5j, "returned complex"),
        (np.complex128(0.5), "returned complex128"),
    ],
)
def test_a_metric_without_a_number_is_named_with_an_example(value: Any, message: str) -> None:
    with pytest.raises(RunError, match="'metric'") as caught:
        from_callable(returning(value))(*labelled([0, 1], [0, 0], 2))
    assert message in str(caught.value)
    assert "example 10: prompt str 'prompt 0'" in str(caught.value)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([], "returned 0 values for 2 completions"),
        (0.5, "returned float 0.5 for 2 completions"),
        (None, "returned None for 2 completions"),
        ("ab", "returned str 'ab' for 2 completions"),
        ([1.0, math.nan], "returned float nan for example 11: prompt str 'prompt 1', output str 'y'"),
        ([1.0, "x"], "returned str 'x' for example 11"),
        ([None, None], "returned None for every completion of a batch (example 10"),
    ],
)
def test_a_reward_without_a_number_for_each_is_named_with_an_example(rewards: Any, message: str) -> None:
    with pytest.raises(RunError, match="'tidy'") as caught:
        from_callable(lambda completions: rewards, "tidy")(*generated(["x", "y"], [[], []]))
    assert message in str(caught.value)


def test_a_reward_that_wants_an_unknown_column_is_named() -> None:
    def reward(completions: list[str], answer: list[str]) -> list[float]:
        return [0.0]

    with pytest.raises(Failure, match=r"'reward' takes 'answer', which is no column of the task; it has: n\."):
        from_callable(reward)(*generated(["x"], [[]]))


async def later(predictions: list[Any], references: list[Any]) -> float:
    await asyncio.sleep(0)
    return 0.5


class Later:
    async def __call__(self, outputs: Outputs, examples: Sequence[Example]) -> float:
        return await later([], [])


@pytest.mark.parametrize("function", [later, Later(), Later, partial(later)])
def test_a_metric_may_be_asynchronous(function: Any) -> None:
    assert from_callable(function)(*labelled([0], [0], 2)) == 0.5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completion, answer: 0.0, "takes 'completion': verifiers' rewards, one completion at a time"),
        (lambda data_source, solution_str, ground_truth: 0.0, "takes 'solution_str': verl's compute_score"),
        (lambda eval_pred: 0.0, "takes 'eval_pred': transformers' compute_metrics"),
        (lambda prediction, reference: 0.0, "takes 'prediction': one prediction at a time"),
        (lambda predictions, references, limit: 0.0, "needs 'limit' beside predictions and references"),
        (lambda predictions: 0.0, "takes (predictions). It must take (predictions, references)"),
        (lambda: 0.0, "takes (). It must take"),
        (5, "which cannot be called"),
        (max, "'max'"),
    ],
)
def test_a_callable_of_another_form_is_refused(function: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_callable(function)
    assert message in str(caught.value)


# By name


@pytest.mark.parametrize("name", list(BUILTIN))
def test_every_builtin_is_found_and_says_what_it_is(name: str) -> None:
    assert resolve(name) is BUILTIN[name]
    assert BUILTIN[name].about and BUILTIN[name].bounds[0] < BUILTIN[name].bounds[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "Unknown objective 'acuracy'. Did you mean 'accuracy'?"),
        ("nowhere.py:f", "nowhere.py does not exist"),
        ("no_such_module_here:f", "Cannot import 'no_such_module_here'"),
        ("mine.py:scre", "Did you mean 'score'?"),
        ("mine.py:LIMIT", "Objective 'LIMIT' is int 3, which cannot be called"),
        ("broken.py:score", "Cannot import 'broken.py' for objective 'broken.py:score': SyntaxError"),
        ("zo_objectives.language.metrics:acuracy", "Did you mean 'accuracy'?"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("LIMIT = 3\ndef score(predictions, references):\n    return 0.5\n")
    (tmp_path / "broken.py").write_text("def score(:\n")
    with pytest.raises(InputError) as caught:
        resolve(name, tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["mine.py:score", "sklearn.metrics:accuracy_score", "sklearn.metrics.accuracy_score"])
def test_paths_lead_to_functions(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(predictions, references):\n    return 0.5\n")
    objective = resolve(name, tmp_path)
    assert objective.name in name
    assert objective(*labelled([0, 1], [0, 0], 2)) == 0.5


def test_objectives_and_callables_resolve_to_themselves() -> None:
    own = Objective("own", lambda outputs, examples: 1.0)
    assert resolve(own) is own
    assert resolve(returning(0.5))(*labelled([0], [0], 2)) == 0.5
