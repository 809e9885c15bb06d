"""scikit-learn's metrics and scorers, and evaluate's: the same numbers as there, on the label set that the task fixes."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from objective_batches import generated, graded, labelled, sentences
from sklearn import metrics as sk

from zo_objectives.errors import InputError
from zo_objectives.language.objectives import (
    BUILTIN,
    Failure,
    Needs,
    Scored,
    from_callable,
    from_evaluate,
    from_sklearn,
    resolve,
)

OUTPUTS, EXAMPLES = graded()
TRUE, SAID = [e.label for e in EXAMPLES], OUTPUTS.predictions
SHARES = np.exp(OUTPUTS.loglikelihoods) / np.exp(OUTPUTS.loglikelihoods).sum(1, keepdims=True)
TWO = graded(seed=1, classes=2)


# scikit-learn


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy_score", sk.accuracy_score(TRUE, SAID)),
        ("accuracy_score?normalize=false", sk.accuracy_score(TRUE, SAID, normalize=False)),
        ("f1_score?average=macro", sk.f1_score(TRUE, SAID, average="macro")),
        ("fbeta_score?average=weighted&beta=2", sk.fbeta_score(TRUE, SAID, average="weighted", beta=2)),
        ("precision_score?average=macro&labels=[0,1]", sk.precision_score(TRUE, SAID, average="macro", labels=[0, 1])),
        ("cohen_kappa_score?weights=quadratic", sk.cohen_kappa_score(TRUE, SAID, weights="quadratic")),
        ("matthews_corrcoef", sk.matthews_corrcoef(TRUE, SAID)),
        ("hamming_loss", -sk.hamming_loss(TRUE, SAID)),
        ("mean_absolute_error", -sk.mean_absolute_error(TRUE, SAID)),
        ("log_loss", -sk.log_loss(TRUE, SHARES, labels=[0, 1, 2])),
        ("top_k_accuracy_score?k=2", sk.top_k_accuracy_score(TRUE, SHARES, k=2)),
        ("roc_auc_score?multi_class=ovr", sk.roc_auc_score(TRUE, SHARES, multi_class="ovr")),
        ("f1_macro", sk.f1_score(TRUE, SAID, average="macro")),
        ("neg_log_loss", -sk.log_loss(TRUE, SHARES, labels=[0, 1, 2])),
        ("balanced_accuracy", sk.balanced_accuracy_score(TRUE, SAID)),
    ],
)
def test_scikit_learns_metrics_and_scorers_by_name(name: str, value: float) -> None:
    assert resolve(f"sklearn:{name}")(OUTPUTS, EXAMPLES) == pytest.approx(value, abs=1e-6)


def test_the_three_ways_in_are_one() -> None:
    expected = sk.f1_score(TRUE, SAID, average="macro")
    ways = [
        from_sklearn(sk.f1_score, average="macro"),
        from_sklearn(partial(sk.f1_score, average="macro")),
        from_sklearn(sk.make_scorer(sk.f1_score, average="macro")),
        from_callable(sk.f1_score, average="macro"),
        from_callable(sk.get_scorer("f1_macro")),
        resolve(partial(sk.f1_score, average="macro")),
        resolve("sklearn:f1_score?average=macro"),
        resolve("sklearn.metrics:f1_score?average=macro"),
        BUILTIN["f1_macro"],
    ]
    assert [w(OUTPUTS, EXAMPLES) for w in ways] == pytest.approx([expected] * len(ways))


def test_law_9_the_label_set_is_the_tasks() -> None:
    batch = labelled([0, 0], [0, 0], 2)
    assert resolve("sklearn:f1_score?average=macro")(*batch) == 0.5
    assert from_callable(sk.recall_score, average="macro")(*batch) == 0.5
    assert resolve("sklearn:f1_macro")(*batch) == 0.5, "of a scorer too"
    assert resolve("sklearn:log_loss")(*labelled([0, 0], [0, 1], 3)) < 0, "which scikit-learn refuses without labels"


def test_what_is_to_be_small_is_negated_and_says_so() -> None:
    objective = resolve("sklearn:log_loss")
    assert objective.name == "neg_log_loss" and objective.about.startswith("minus")
    assert objective.needs is Needs.LIKELIHOOD
    assert resolve("sklearn:neg_log_loss").needs is Needs.LIKELIHOOD
    assert resolve("sklearn:accuracy").needs is Needs.PREDICTION


def test_of_two_classes_scores_are_those_of_the_second() -> None:
    outputs, examples = TWO
    shares = np.exp(outputs.loglikelihoods) / np.exp(outputs.loglikelihoods).sum(1, keepdims=True)
    labels = [e.label for e in examples]
    assert resolve("sklearn:roc_auc_score")(*TWO) == pytest.approx(sk.roc_auc_score(labels, shares[:, 1]))
    assert resolve("sklearn:roc_auc")(*TWO) == pytest.approx(sk.roc_auc_score(labels, shares[:, 1]))
    assert resolve("sklearn:brier_score_loss")(*TWO) == pytest.approx(-sk.brier_score_loss(labels, shares[:, 1]), abs=1e-6)
    assert resolve("sklearn:f1_score")(*TWO) == pytest.approx(sk.f1_score(labels, outputs.predictions))


@pytest.mark.parametrize(
    ("name", "batch", "message"),
    [
        ("f1_score", (OUTPUTS, EXAMPLES), "f1_score is of two classes, and this task has 3: give average='macro'"),
        ("f1_score?average=macro", sentences(), "needs a fixed label set"),
        ("log_loss", sentences(), "needs a multiple-choice task"),
        ("f1_scores", TWO, "Did you mean 'f1_score'?"),
        ("f1_score?averag=macro", TWO, "and not 'averag'"),
    ],
)
def test_what_cannot_be_scored_is_refused(name: str, batch: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(f"sklearn:{name}")(*batch)
    assert message in str(caught.value)


def test_a_score_that_is_none_is_a_failure() -> None:
    with pytest.raises(Failure, match="'roc_auc_score' returned nan"):
        resolve("sklearn:roc_auc_score")(*labelled([0, 0], [0, 1], 2))
    with pytest.raises(Failure, match="'confusion_matrix' returned ndarray"):
        resolve("sklearn:confusion_matrix")(*TWO)


def test_texts_may_be_compared_as_they_are() -> None:
    assert resolve("sklearn:accuracy_score")(*generated(["a", "b"], [["a"], ["c"]])) == 0.5


# evaluate

ACCURACY = """
import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    def _info(self):
        integer = datasets.Value("int32")
        features = datasets.Features({"predictions": integer, "references": integer})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, fail=False):
        if fail or predictions[0] == 2:
            raise ValueError("no twos")
        return {"accuracy": float(np.mean(np.array(predictions) == np.array(references)))}
"""
SQUAD = """
import datasets
import evaluate

from zo_objectives.language.texts import squad_exact_match, squad_f1


class Squad(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        answers = datasets.Sequence({"text": text, "answer_start": datasets.Value("int32")})
        features = {"predictions": {"id": text, "prediction_text": text}, "references": {"id": text, "answers": answers}}
        info = dict(description="", citation="", inputs_description="")
        return evaluate.MetricInfo(**info, features=datasets.Features(features))

    def _compute(self, predictions, references):
        said = {p["id"]: p["prediction_text"] for p in predictions}
        pairs = [(said[r["id"]], r["answers"]["text"]) for r in references]
        f1 = 100 * sum(squad_f1(p, r) for p, r in pairs) / len(pairs)
        return {"exact_match": 100 * sum(squad_exact_match(p, r) for p, r in pairs) / len(pairs), "f1": f1}
"""
F1 = """
import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
    def _info(self):
        one = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=one)

    def _compute(self, predictions, references, labels=None, pos_label=1, average="binary"):
        return {"f1": f1_score(references, predictions, labels=labels, pos_label=pos_label, average=average)}
"""
BLEUISH = """
import datasets
import evaluate


class Bleuish(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        several = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        one = datasets.Features({"predictions": text, "references": text})
        info = dict(description="", citation="", inputs_description="")
        return evaluate.MetricInfo(**info, features=[several, one])

    def _compute(self, predictions, references):
        return sum(p in r for p, r in zip(predictions, references)) / len(predictions)
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with metrics of evaluate, and a home for evaluate where it finds no others."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name, text in {"accuracy": ACCURACY, "squad": SQUAD, "f1": F1, "bleuish": BLEUISH}.items():
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import evaluate.config
        import evaluate.loading

        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(folder / "cache"))
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "modules"))
        patch.syspath_prepend(folder / "modules")
        yield folder


def locks(folder: Path) -> list[Path]:
    return [p for p in (folder / "cache").rglob("*") if p.is_file()]


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
slow = pytest.mark.slow  # evaluate takes seconds to import


@slow
def test_evaluates_accuracy_by_path_equals_the_builtin_and_leaves_nothing_behind(scripts: Path) -> None:
    import time

    objective = resolve("evaluate:./accuracy", scripts)
    assert objective.name == "accuracy"
    start = time.perf_counter()
    scores = [objective(*TWO) for _ in range(20)]
    with pytest.raises(Failure, match="no twos"):
        resolve("evaluate:./accuracy?fail=true", scripts)(*TWO)
    with pytest.raises(Failure, match=r"'accuracy' raised ValueError: no twos \(this one alone does it, example 10:"):
        objective(*labelled([0] * 3, [2, 2, 2], 3))
    scores += [objective(*TWO) for _ in range(20)]
    assert set(scores) == {BUILTIN["accuracy"](*TWO)}
    assert time.perf_counter() - start < 5, "no call waits a second for a lock"
    assert locks(scripts) == []


@slow
def test_evaluates_squad_by_path_equals_the_builtins(scripts: Path) -> None:
    f1 = resolve("evaluate:./squad#f1", scripts)
    value = f1(*sentences())
    assert isinstance(value, Scored)
    assert value / 100 == pytest.approx(BUILTIN["squad_f1"](*sentences()))
    assert value.parts["exact_match"] / 100 == pytest.approx(BUILTIN["squad_exact_match"](*sentences()))
    assert resolve("evaluate:./squad#exact_match", scripts)(*sentences()) == value.parts["exact_match"]
    with pytest.raises(InputError, match=r"several numbers: exact_match, f1\. Choose one"):
        resolve("evaluate:./squad", scripts)(*sentences())
    with pytest.raises(InputError, match="no 'F1', but: exact_match, f1"):
        resolve("evaluate:./squad#F1", scripts)(*sentences())


@slow
def test_an_object_of_evaluate_keeps_no_lock_and_may_be_in_use(scripts: Path) -> None:
    import evaluate

    module = evaluate.load(str(scripts / "accuracy"))
    module.add_batch(predictions=[0, 0], references=[1, 1])  # the user's own, pending
    before = locks(scripts)
    ways = [from_evaluate(module), from_callable(module), resolve(module), resolve("evaluate:./accuracy", scripts)]
    assert {w(*TWO) for w in ways} == {BUILTIN["accuracy"](*TWO)}
    assert locks(scripts) == before
    assert module.compute() == {"accuracy": 0.0}
    combined = evaluate.combine([module, evaluate.load(str(scripts / "f1"))])
    value = from_evaluate(combined, "f1")(*TWO)
    assert isinstance(value, Scored) and value.parts == {"accuracy": BUILTIN["accuracy"](*TWO)}


@slow
def test_law_9_holds_for_evaluate(scripts: Path) -> None:
    assert resolve("evaluate:./f1?average=macro", scripts)(*labelled([0, 0], [0, 0], 2)) == 0.5
    assert resolve("evaluate:./f1", scripts)(*TWO) == pytest.approx(BUILTIN["f1"](*TWO))
    assert resolve("evaluate:./f1?average=macro", scripts)(OUTPUTS, EXAMPLES) == pytest.approx(
        BUILTIN["f1_macro"](OUTPUTS, EXAMPLES)
    )


@slow
def test_inputs_come_in_the_form_a_metric_takes(scripts: Path) -> None:
    assert resolve("evaluate:./bleuish", scripts)(*generated(["a", "b"], [["a", "x"], ["c"]])) == 0.5, "a bare float"
    assert resolve("evaluate:./bleuish", scripts)(*labelled([0, 1], [0, 0], 2)) == 0.5, "options' texts"
    with pytest.raises(InputError, match="'accuracy' of evaluate cannot score this task: it compares whole numbers"):
        resolve("evaluate:./accuracy", scripts)(*sentences())


@slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("evaluate:accuracy", "without a network take the builtin 'accuracy', a folder that holds the script"),
        ("evaluate:nonsense", "Cannot load 'nonsense' of evaluate"),
        ("evaluate:./nowhere", "There is no metric at"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(
    name: str, message: str, scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        resolve(name, scripts)
    assert message in str(caught.value)


@slow
def test_a_folder_that_happens_to_be_here_is_not_run(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scripts)
    with pytest.raises(InputError, match="would run the folder accuracy/ that happens to be here"):
        resolve("evaluate:accuracy", scripts)
