"""What a run is judged by: a fingerprint of the objective, and folders that keep results on one objective from another's."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from zo_objectives.api import Tuned, tune
from zo_objectives.cli import main
from zo_objectives.errors import InputError, RunError
from zo_objectives.judged import JUDGED
from zo_objectives.language.fingerprint import fingerprint
from zo_objectives.language.objectives import (
    BUILTIN,
    Isolation,
    Objective,
    from_sklearn,
    from_trl,
    isolated,
    resolve,
    weighted,
)
from zo_objectives.results import History, read_history

SMALL: dict[str, Any] = {
    "tune": "head", "steps": 4, "batch": 8, "directions": 1, "scale": 0.3, "evaluations": 2, "n_train": 32,
    "n_validation": 16, "n_test": 16,
}  # fmt: skip
LIMIT = 3


def helper(text: str) -> bool:
    return len(text) > LIMIT


def uses_a_helper(predictions: list[str], references: list[str]) -> float:
    return sum(map(helper, predictions)) / len(predictions)


def accuracy(predictions: list[int], references: list[int]) -> float:
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def error(predictions: list[int], references: list[int]) -> float:
    return 1 - accuracy(predictions, references)


def above(limit: float) -> Callable[..., float]:
    def share(predictions: list[int], references: list[int]) -> float:
        return sum(p > limit for p in predictions) / len(predictions)

    return share


def at_least(predictions: list[int], references: list[int], limit: int = 0) -> float:
    return sum(p >= limit for p in predictions) / len(predictions)


class Above:
    """One with a setting, and a memory that is its own business."""

    def __init__(self, limit: float) -> None:
        self.limit, self._seen = limit, 0

    def __call__(self, predictions: list[int], references: list[int]) -> float:
        self._seen += 1
        return sum(p > self.limit for p in predictions) / len(predictions)


def code(function: Any) -> str:
    return fingerprint(resolve(function))


# Fingerprints


def test_the_same_code_has_the_same_fingerprint_and_other_code_another() -> None:
    remembering = Above(0.5)
    first = code(remembering)
    remembering([1], [1])
    assert code(remembering) == first == code(Above(0.5)) != code(Above(0.6))
    assert code(above(0.5)) == code(above(0.5)) != code(above(0.6))
    assert code(partial(accuracy)) == code(partial(accuracy))
    assert len({code(accuracy), code(error), code(uses_a_helper), code(lambda p, r: 0.1), code(lambda p, r: 0.2)}) == 5


@pytest.mark.parametrize(
    "made",
    [
        lambda f, g: isolated(resolve(f), Isolation(timeout=5)),
        lambda f, g: isolated(resolve(f), Isolation(pure=True)),
        lambda f, g: weighted((1.0, resolve(f)), (0.5, resolve("f1_macro"))),
        lambda f, g: weighted((1.0, resolve(f)), (0.5, resolve(g))),
        lambda f, g: from_trl(f) if f is accuracy else from_trl(_reward),
        lambda f, g: from_trl([_reward], weights=[1.0 if f is accuracy else 2.0]),
        lambda f, g: partial(at_least, limit=1 if f is accuracy else 2),
    ],
)
def test_a_function_counts_wherever_it_is(made: Callable[[Any, Any], Any]) -> None:
    def told(a: Any, b: Any) -> str:
        found = made(a, b)
        return fingerprint(found) if isinstance(found, Objective) else code(found)

    assert told(accuracy, error) == told(accuracy, error) != told(error, accuracy)


def _reward(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(c)) for c in completions]


def test_where_a_function_was_found_does_not_count(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text("def f(predictions, references):\n    return 0.5\n")
    assert fingerprint(resolve("mine.py:f", tmp_path / "a")) == fingerprint(resolve("mine.py:f", tmp_path / "b"))


def test_what_a_function_uses_of_its_module_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    first = code(uses_a_helper)
    monkeypatch.setitem(globals(), "LIMIT", 4)
    assert code(uses_a_helper) != first
    monkeypatch.undo()
    assert code(uses_a_helper) == first
    monkeypatch.setitem(globals(), "helper", lambda text: False)
    assert code(uses_a_helper) != first


def test_a_fingerprint_is_that_of_any_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(predictions, references):\n    return {'a', 'b', 'c'} and 0.5\n")
    asked = "import sys; from zo_objectives.language.fingerprint import fingerprint; "
    asked += "from zo_objectives.language.objectives import resolve; print(fingerprint(resolve(sys.argv[1])))"
    found = {
        subprocess.run(
            [sys.executable, "-c", asked, f"{tmp_path / 'mine.py'}:f"],
            env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_builtin_objectives_have_one_each(name: str) -> None:
    assert fingerprint(BUILTIN[name]) == fingerprint(resolve(name))
    assert fingerprint(BUILTIN[name]) != code(accuracy)


def test_what_is_installed_counts_by_name() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    assert fingerprint(from_sklearn(f1_score, average="macro")) == fingerprint(from_sklearn(f1_score, average="macro"))
    assert fingerprint(from_sklearn(f1_score, average="macro")) != fingerprint(from_sklearn(f1_score, average="micro"))
    assert fingerprint(from_sklearn(accuracy_score)) != fingerprint(from_sklearn(f1_score, average="macro"))


# Folders


def tuned(output: Path, objective: Any = None, **given: Any) -> Tuned:
    return tune("reviews", objective=objective, output=output, show=False, **{**SMALL, **given})


def test_a_finished_run_is_shown_again_for_its_own_objective_only(tmp_path: Path) -> None:
    first = tuned(tmp_path, accuracy)
    before = (tmp_path / "results.csv").read_bytes()
    assert tuned(tmp_path, accuracy).results.equals(first.results)
    for other, message in (
        (error, "objective is 'accuracy', not 'error'"),
        (None, "objective is 'accuracy', not the task's own"),
    ):
        with pytest.raises(InputError, match=message):
            tuned(tmp_path, other)
    assert (tmp_path / "results.csv").read_bytes() == before
    plain = tuned(tmp_path / "plain")
    with pytest.raises(InputError, match="objective is the task's own, not 'accuracy'"):
        tuned(plain.folder, accuracy)


def test_a_function_that_was_mended_goes_on_and_one_that_was_changed_later_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "mine.py", tmp_path / "run"
    name = f"{file}:f"
    file.write_text("calls = []\ndef f(p, r):\n    calls.append(1)\n    return [0.5, 0.4][len(calls) // 6]\n")
    with pytest.raises(RunError, match="IndexError"):
        tuned(output, name, steps=8)
    file.write_text("def f(p, r):\n    return sum(a == b for a, b in zip(p, r)) / len(p)\n")
    done = tuned(output, name, steps=8)
    assert any("The code of f was changed after the run had begun" in note for note in done.notes)
    file.write_text("def f(p, r):\n    return 7.0\n")
    with pytest.raises(InputError, match="finished run on 'f', whose code has changed since"):
        tuned(output, name, steps=8)
    args = ["run", "reviews", "--objective", name, "--output", str(output), "--quiet"]
    with pytest.raises(SystemExit, match="2"):
        main([*args, *(f"--set={k}={v}" for k, v in {**SMALL, "steps": 8}.items())])
    assert "whose code has changed" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_is_shown_as_before(tmp_path: Path) -> None:
    first = tuned(tmp_path, accuracy)
    assert json.loads((tmp_path / JUDGED).read_text())["objective"]["name"] == "accuracy"
    (tmp_path / JUDGED).unlink()
    assert tuned(tmp_path, accuracy).results.equals(first.results) and not (tmp_path / JUDGED).exists()


def test_a_budget_stands_for_steps(tmp_path: Path) -> None:
    given = {name: value for name, value in SMALL.items() if name != "steps"}
    done = tune("reviews", budget=7, output=tmp_path, show=False, **given)
    assert set(done.results["forwards"]) == {6}
    with pytest.raises(InputError, match="steps=4 and budget=7 say the same"):
        tuned(tmp_path, budget=7)


def test_validation_is_looked_at_no_more_often_than_asked(tmp_path: Path) -> None:
    done = tuned(tmp_path, steps=7, evaluations=3)
    rows = read_history(done.folder / "history.csv")
    assert [row.step for row in rows if row.validation is not None] == [0, 3, 6, 7]
    History(done.folder / "history.csv", keep=7)  # as a run that goes on
    assert repr(read_history(done.folder / "history.csv")) == repr(rows)


@pytest.mark.parametrize("command", [["compare", "reviews", "--methods", "zo", "--seeds", "1"], ["sweep", "reviews"]])
def test_what_gathers_runs_does_not_write_into_a_runs_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned(tmp_path, accuracy)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--output", str(tmp_path), "--quiet"])
    assert "is the folder of a run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
