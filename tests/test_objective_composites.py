"""Sums, products and constraints of objectives: from Python and as text, each part known by name."""

from pathlib import Path
from typing import Any

import pytest
from objective_batches import generated, graded, labelled, sentences

from zo_objectives.errors import InputError
from zo_objectives.language.objectives import (
    BUILTIN,
    Failure,
    Limit,
    Needs,
    Objective,
    Scored,
    from_callable,
    product,
    resolve,
    subject_to,
    weighted,
)
from zo_objectives.testing import check_objective

BATCH = graded()
A, F, E = (BUILTIN[n](*BATCH) for n in ("accuracy", "f1_macro", "expected_accuracy"))


def parts(objective: Objective, batch: Any = BATCH) -> dict[str, float]:
    value = objective(*batch)
    assert isinstance(value, Scored)
    return dict(value.parts)


TOLD = {  # names as they are told, where that is another way
    "- accuracy": "-accuracy",
    "accuracy * 0.5": "0.5 * accuracy",
    "acc + sklearn:f1_score?average=macro": "accuracy + f1_score?average=macro",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy + f1_macro", A + F),
        ("0.7 * accuracy + 0.3 * f1_macro", 0.7 * A + 0.3 * F),
        ("accuracy - 0.1 * expected_accuracy", A - 0.1 * E),
        ("- accuracy", -A),
        ("accuracy * f1_macro", A * F),
        ("2 * accuracy * f1_macro + expected_accuracy", 2 * A * F + E),
        ("accuracy * 0.5", A / 2),
        ("acc + sklearn:f1_score?average=macro", A + F),
        ("f1_macro subject to accuracy <= 0.5", F - max(0, A - 0.5) / 0.5),
        ("f1_macro subject to accuracy >= 0.2", F),
        ("f1_macro subject to accuracy >= 1 with penalty 3", F - 3 * (1 - A)),
        (
            "f1_macro + accuracy subject to accuracy <= 0.5 and expected_accuracy >= 0.9",
            A + F - (A - 0.5) / 0.5 - (0.9 - E) / 0.9,
        ),
        ("f1_macro subject to accuracy <= 0", F - A),
    ],
)
def test_expressions(name: str, value: float) -> None:
    objective = resolve(name)
    assert objective(*BATCH) == pytest.approx(value)
    assert objective.name == TOLD.get(name, name)
    check_objective(objective)


def test_text_and_python_say_the_same() -> None:
    accuracy, f1 = BUILTIN["accuracy"], BUILTIN["f1_macro"]
    assert weighted((0.7, accuracy), (0.3, f1))(*BATCH) == resolve("0.7 * accuracy + 0.3 * f1_macro")(*BATCH)
    assert product(accuracy, f1)(*BATCH) == resolve("accuracy * f1_macro")(*BATCH)
    limited = subject_to(f1, Limit(accuracy, 0.5), penalty=2)
    assert limited(*BATCH) == resolve("f1_macro subject to accuracy <= 0.5 with penalty 2")(*BATCH)
    assert limited.name == "f1_macro subject to accuracy <= 0.5 with penalty 2"
    assert weighted((0.5, accuracy), (1, f1)).name == "0.5 * accuracy + f1_macro"


def test_maximise_f1_subject_to_a_mean_length() -> None:
    batch = generated(["one two three four", "one"], [["one two"], ["one"]])
    value = resolve("squad_f1 subject to words <= 2")(*batch)
    assert value == pytest.approx(BUILTIN["squad_f1"](*batch) - (2.5 - 2) / 2)
    assert parts(resolve("squad_f1 subject to words <= 2"), batch) == {"squad_f1": BUILTIN["squad_f1"](*batch), "words": 2.5}


def test_every_part_is_known_by_name_what_it_logged_too() -> None:
    def reward(completions: list[str], log_metric: Any, **kwargs: Any) -> list[float]:
        log_metric("seen", len(completions))
        return [1.0] * len(completions)

    objective = weighted((1, product(BUILTIN["accuracy"], BUILTIN["f1_macro"])), (0.1, from_callable(reward)))
    assert parts(objective) == {"accuracy": A, "f1_macro": F, "reward": 1, "reward/seen": 60}


def test_it_looks_at_what_its_parts_look_at() -> None:
    assert resolve("accuracy + f1_macro").needs is Needs.PREDICTION
    assert resolve("accuracy + margin").needs is Needs.LIKELIHOOD
    assert resolve("margin + acc_norm").needs is Needs.FULL


def test_what_should_be_small_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def wer(predictions, references):\n    return 0.25\n")
    objective = resolve("mine.py:wer?direction=min", tmp_path)
    assert objective(*BATCH) == -0.25 and objective.name == "-wer" and parts(objective) == {"wer": 0.25}
    assert resolve("mine.py:wer?name=errors", tmp_path).name == "errors"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("accuracy + acuracy", "Did you mean 'accuracy'?"),
        ("accuracy +", "at ''"),
        ("0.5 + 0.5 * accuracy", "'0.5' has no objective"),
        ("accuracy f1_macro + mcc", "write 0.7 * NAME + NAME, with spaces"),
        ("accuracy subject to words", "a constraint is NAME <= NUMBER"),
        ("accuracy subject to words <= many", "'many' in "),
        ("accuracy subject to words < 3", "a constraint is NAME <= NUMBER"),
        ("accuracy subject to words <= 3 with penalty 0", "penalty must be above 0"),
        ("accuracy subject words <= 3", "write ... subject to NAME <= NUMBER"),
        ("subject to words <= 3", "write ... subject to NAME <= NUMBER"),
        ("accuracy?direction=up", "direction='up'"),
        ("length?at_most", "Cannot read 'at_most'"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(name)
    assert message in str(caught.value)


def test_two_parts_of_one_name_are_refused_unless_they_are_one() -> None:
    with pytest.raises(InputError, match=r"two parts called 'mine': give one of them \?name=another"):
        weighted((1, Objective("mine", lambda o, e: 1.0)), (1, Objective("mine", lambda o, e: 2.0)))
    assert resolve("length?at_most=5 + length?at_most=9").name
    assert resolve("accuracy * accuracy")(*BATCH) == pytest.approx(A * A)


def test_a_part_that_fails_is_named() -> None:
    def broken(predictions: list[int], references: list[int]) -> float:
        raise KeyError("x")

    with pytest.raises(Failure, match="'broken' raised KeyError") as caught:
        weighted((1, BUILTIN["accuracy"]), (1, from_callable(broken)))(*BATCH)
    assert caught.value.objective == "broken" and caught.value.example == 0


def test_texts_and_likelihoods_of_a_generation_task_cannot_be_joined() -> None:
    objective = resolve("exact_match + cross_entropy")
    assert objective(*labelled([0, 1], [0, 1], 2)) < 1, "of options they can"
    with pytest.raises(InputError, match="needs options or targets"):
        objective(*sentences())
