"""Objectives and tasks of other packages, by entry points; and the conformance suite on planted faults."""

import random
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from objective_batches import generated, graded, labelled, sentences

from zo_objectives.errors import InputError
from zo_objectives.language import plugins
from zo_objectives.language import resolve as module
from zo_objectives.language.examine import notes
from zo_objectives.language.listing import rows
from zo_objectives.language.objectives import BUILTIN, MAKERS, Objective, from_callable, resolve
from zo_objectives.language.outputs import Choices, Example, Generations, Outputs
from zo_objectives.testing import check_objective, choice_batch, text_batch

CODE = '''
def politeness(predictions, references):
    """How polite it is."""
    return sum("please" in str(p) for p in predictions) / len(predictions)

def folder():
    return FOLDER
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs plug-ins: (group, name, value, distribution)."""
    (tmp_path / "their_scores.py").write_text(CODE.replace("FOLDER", repr(str(tmp_path))))
    monkeypatch.syspath_prepend(tmp_path)
    module._kept.cache_clear()

    def install(*entries: tuple[str, str, str, str]) -> None:
        found = []
        for group, name, value, distribution in entries:
            entry = EntryPoint(name, value, group)
            vars(entry).update(dist=SimpleNamespace(name=distribution))
            found.append(entry)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [e for e in found if e.group == group])

    yield install
    module._kept.cache_clear()
    for name in ("their_scores", "their_tasks"):
        sys.modules.pop(name, None)


def test_an_objective_of_another_package_is_found_by_name(installed: Any) -> None:
    installed((plugins.OBJECTIVES, "politeness", "their_scores:politeness", "their-package"))
    objective = resolve("politeness")
    assert objective.name == "politeness" and objective.about == "How polite it is."
    assert objective(*generated(["yes please", "no"], [["a"], ["b"]])) == 0.5
    assert resolve("accuracy + politeness")(*labelled([0], [0], 2)) == 1
    assert next(r for r in rows() if r.name == "politeness").source == "their-package"


def test_a_broken_one_names_its_distribution_and_harms_nobody(installed: Any) -> None:
    installed(
        (plugins.OBJECTIVES, "politeness", "their_scores:politeness", "their-package"),
        (plugins.OBJECTIVES, "broken", "no_such_module_here:f", "broken-package"),
    )
    assert resolve("politeness") and resolve("accuracy")
    with pytest.raises(InputError, match="Plug-in 'broken' of distribution 'broken-package' is broken"):
        resolve("broken")
    with pytest.warns(UserWarning, match="'broken-package'"):
        listed = [r.name for r in rows()]
    assert "politeness" in listed and "broken" not in listed


def test_names_that_are_taken_stay_what_they_are(installed: Any) -> None:
    installed(
        (plugins.OBJECTIVES, "accuracy", "their_scores:politeness", "their-package"),
        (plugins.OBJECTIVES, "politeness", "their_scores:politeness", "first"),
        (plugins.OBJECTIVES, "politeness", "their_scores:folder", "second"),
    )
    with pytest.warns(UserWarning, match=r"of 'second' is left out: 'first' has one"):
        assert resolve("politeness").about == "How polite it is."
    assert resolve("accuracy") is BUILTIN["accuracy"]
    with pytest.warns(UserWarning) as caught:
        list(rows())
    assert any("'accuracy' of 'their-package' is left out: there is a builtin" in str(w.message) for w in caught)


def test_an_unknown_name_lists_plugins_too(installed: Any) -> None:
    installed((plugins.OBJECTIVES, "politeness", "their_scores:politeness", "their-package"))
    with pytest.raises(InputError, match="Did you mean 'politeness'"):
        resolve("politenes")


def test_folders_of_tasks(installed: Any, tmp_path: Path) -> None:
    package = tmp_path / "their_tasks"
    package.mkdir()
    (package / "__init__.py").write_text("PATH = __file__.rpartition('/')[0]\nNOT = 'nowhere'\n")
    installed(
        (plugins.TASKS, "package", "their_tasks", "one"),
        (plugins.TASKS, "path", "their_tasks:PATH", "two"),
        (plugins.TASKS, "function", "their_scores:folder", "three"),
        (plugins.TASKS, "missing", "their_tasks:NOT", "four"),
        (plugins.TASKS, "broken", "nowhere_at_all", "five"),
    )
    with pytest.warns(UserWarning) as caught:
        assert plugins.task_folders() == {"package": package, "path": package, "function": tmp_path}
    assert ["'four'" in str(w.message) or "'five'" in str(w.message) for w in caught] == [True, True]


def test_a_module_may_be_a_plugin_of_tasks_without_being_a_package(tmp_path: Path) -> None:
    alone = ModuleType("m")
    alone.__file__ = str(tmp_path / "m.py")
    assert plugins._folder(alone) == tmp_path


# The list


def test_everything_is_listed_with_what_it_is() -> None:
    listed = {r.name: r for r in rows()}
    assert set(BUILTIN) | set(MAKERS) <= set(listed)
    assert all(r.about and r.bounds and r.direction for r in listed.values())
    assert listed["mcc"].bounds == "-1 to 1" and listed["cross_entropy"].bounds == "below 0"
    assert listed["bleu"].source == "sacreBLEU" and listed["margin"].bounds == "any"
    assert listed["words"].bounds == "above 0" and listed["length"].name == "length"


# The conformance suite


def constant(predictions: list[Any], references: list[Any]) -> float:
    return 0.5


def blind(predictions: list[Any], references: list[Any]) -> float:
    return len(references) / 10


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, predictions: list[Any], references: list[Any]) -> float:
        self.calls += 1
        return self.calls / 10


def chance(predictions: list[Any], references: list[Any]) -> float:
    return random.random()


def first(predictions: list[Any], references: list[Any]) -> float:
    return float(predictions[0] == references[0])


def greedy(outputs: Outputs, examples: Sequence[Example]) -> float:
    if isinstance(outputs, Generations):
        outputs.texts[0] = "changed"  # type: ignore[index]
    elif isinstance(outputs, Choices):
        outputs.loglikelihoods[0] = -1
    return float(np.mean([len(str(p)) for p in outputs.predictions]))


def column(outputs: Outputs, examples: Sequence[Example]) -> float:
    examples[0].row["n"] += 1  # type: ignore[index]
    return BUILTIN["exact_match"](outputs, examples)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (constant, "cannot be climbed"),
        (blind, "cannot be climbed"),
        (Counting(), "for the same outputs"),
        (chance, "for the same outputs"),
        (first, "in another order"),
        (greedy, "changes the outputs or examples"),
        (column, "changes the outputs or examples"),
    ],
)
def test_faults_are_found(function: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_objective(from_callable(function))


def test_faults_of_the_other_ways_to_score_are_found() -> None:
    right = BUILTIN["exact_match"].score
    with pytest.raises(AssertionError, match="outside of its bounds"):
        check_objective(Objective("o", lambda o, e: right(o, e) + 1, bounds=(0, 1)))
    with pytest.raises(AssertionError, match="its samples' mean"):
        check_objective(Objective("o", right, samples=lambda o, e: [0.3] * len(e)))
    with pytest.raises(AssertionError, match="members with equal outputs"):
        check_objective(Objective("o", right, start=lambda o, e: lambda: 0.123))  # type: ignore[arg-type, return-value]
    with pytest.raises(AssertionError, match="scores neither options nor texts"):
        check_objective(
            Objective("o", lambda o, e: BUILTIN["f1"](o, e) + BUILTIN["chrf"](Generations(["a"] * 8), e)), *_none()
        )


def _none() -> tuple[Outputs, list[Example]]:
    return sentences()


@pytest.mark.parametrize("function", [constant, Counting(), first])
def test_a_user_is_told_before_a_run(function: Any) -> None:
    (note,) = notes(from_callable(function), *text_batch())
    assert note.startswith(f"Objective {from_callable(function).name!r} gave ")
    assert notes(BUILTIN["accuracy"], *choice_batch()) == notes(BUILTIN["accuracy"], *graded()) == []


def test_what_a_function_makes_of_texts_that_no_model_gave_is_its_own_affair() -> None:
    def delicate(predictions: list[str], references: list[str]) -> float:
        return float(np.mean([len(p) / len(p.split()) for p in predictions]))  # fails on an empty text

    assert notes(from_callable(delicate), *text_batch()) == []
