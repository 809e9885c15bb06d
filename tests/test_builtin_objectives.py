"""The built-in objectives equal sacreBLEU, rouge-score, scipy, scikit-learn and lm-evaluation-harness's definitions."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from objective_batches import PREDICTIONS, TARGETS, generated, graded, labelled, sentences
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from small import FIXED

from zo_objectives.errors import InputError
from zo_objectives.language import listing, texts
from zo_objectives.language.metrics import CLASS_METRICS
from zo_objectives.language.objectives import BUILTIN, MAKERS, Needs, Objective, resolve
from zo_objectives.language.outputs import Choices, Example, Generations, Likelihoods
from zo_objectives.testing import check_objective

STREAMS: Any = [[t[i] if i < len(t) else None for t in TARGETS] for i in range(3)]


# Texts


def test_bleu_and_chrf_equal_sacrebleu() -> None:
    assert BUILTIN["bleu"](*sentences()) == sacrebleu.corpus_bleu(list(PREDICTIONS), STREAMS).score
    assert BUILTIN["chrf"](*sentences()) == sacrebleu.corpus_chrf(list(PREDICTIONS), STREAMS).score
    other = resolve("bleu?lowercase=true&tokenize=char")(*sentences())
    assert other == sacrebleu.corpus_bleu(list(PREDICTIONS), STREAMS, lowercase=True, tokenize="char").score
    assert (
        resolve("chrf?word_order=2")(*sentences()) == sacrebleu.corpus_chrf(list(PREDICTIONS), STREAMS, word_order=2).score
    )


def test_a_corpus_metric_is_of_the_whole_batch_not_a_mean() -> None:
    outputs, examples = sentences()
    alone = [BUILTIN["bleu"](Generations([t]), [e]) for t, e in zip(outputs.texts, examples, strict=True)]
    assert abs(BUILTIN["bleu"](outputs, examples) - float(np.mean(alone))) > 1


def test_rouge_l_equals_rouge_score() -> None:
    scorer = RougeScorer(["rougeL"])
    expected = [scorer.score_multi(list(t), p)["rougeL"].fmeasure for p, t in zip(PREDICTIONS, TARGETS, strict=True)]
    assert BUILTIN["rouge_l"](*sentences()) == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ("so it is 42.", "42", 1),
        ("12 apples and 30 pears make 42", "The answer is 42.0", 1),
        ("1,250.50", "1250.5", 1),
        ("$3", "3 dollars", 1),
        ("-7", "7", 0),
        ("no idea", "7", 0),
        ("6 or 7", "6", 0),
        ("1e3", "1000", 1),
        ("0.1", "0.10000000000000001", 0),
    ],
)
def test_numeric_match(said: str, wanted: str, value: float) -> None:
    assert texts.numeric_match(said, [wanted]) == value


def test_numeric_match_takes_any_of_several_targets() -> None:
    assert BUILTIN["numeric_match"](*generated(["it is 5"], [["4", "5"]])) == 1


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_equal_scipy(name: str) -> None:
    said, wanted = [1.5, 3.0, 2.0, 5.0, 4.0, 2.0], [1.0, 2.5, 2.5, 5.0, 3.0, 0.5]
    batch = generated([f"score {s}" for s in said], [[str(w)] for w in wanted])
    function = stats.pearsonr if name == "pearson" else stats.spearmanr
    assert BUILTIN[name](*batch) == pytest.approx(function(said, wanted).statistic, abs=1e-12)


def test_correlations_of_options_are_of_their_numbers_or_places() -> None:
    outputs, examples = graded(classes=4)
    labels = [e.label for e in examples]
    expected = stats.pearsonr(outputs.predictions, labels).statistic
    assert BUILTIN["pearson"](outputs, examples) == pytest.approx(expected)
    squares = [replace(e, options=(" 0", " 1", " 4", " 9")) for e in examples]
    expected = stats.pearsonr(outputs.predictions**2, np.array(labels) ** 2).statistic
    assert BUILTIN["pearson"](outputs, squares) == pytest.approx(expected)


def test_a_text_without_a_number_counts_as_minus_one_and_a_constant_correlates_with_nothing() -> None:
    batch = generated(["1", "well", "3"], [["1"], ["2"], ["3"]])
    assert BUILTIN["pearson"](*batch) == pytest.approx(stats.pearsonr([1, -1, 3], [1, 2, 3]).statistic)
    assert BUILTIN["pearson"](*generated(["1", "1"], [["1"], ["2"]])) == 0
    assert BUILTIN["spearman"](*generated(["1", "2"], [["2"], ["2"]])) == 0


# Likelihoods


def test_acc_norm_is_lm_evaluation_harnesss() -> None:
    outputs, examples = graded()
    lengths = np.array([[float(len(o.removeprefix(" "))) for o in e.options] for e in examples])
    expected = np.mean((outputs.loglikelihoods / lengths).argmax(1) == [e.label for e in examples])
    assert BUILTIN["acc_norm"](outputs, examples) == expected != BUILTIN["accuracy"](outputs, examples)
    assert BUILTIN["acc_norm"].needs is Needs.FULL


def test_acc_norm_with_fewer_options_than_others() -> None:
    scores = np.array([[-4, -1, -np.inf], [-9, -9.5, -1]], dtype=np.float32)
    examples = [Example(0, "p", {}, (" abcdefgh", " a"), 0), Example(1, "p", {}, (" a", " b", " c"), 2)]
    assert BUILTIN["acc_norm"](Choices(scores), examples) == 1


def test_expected_accuracy_and_margin_by_hand() -> None:
    values = np.log(np.array([[0.6, 0.4], [0.1, 0.9]], dtype=np.float32)) - 5  # up to a constant of the row
    _, examples = labelled([0, 0], [0, 0], 2)
    assert BUILTIN["expected_accuracy"](Choices(values), examples) == pytest.approx((0.6 + 0.1) / 2, abs=1e-6)
    expected = (math.log(0.6 / 0.4) + math.log(0.1 / 0.9)) / 2
    assert BUILTIN["margin"](Choices(values), examples) == pytest.approx(expected, abs=1e-6)


def test_other_right_options_count() -> None:
    scores = np.log(np.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3], [0.2, 0.5, 0.3]], dtype=np.float32))
    options = (" a", " b", " c")
    examples = [
        Example(0, "p", {}, options, 0, also=(1,)),
        Example(1, "p", {}, options, 0, also=(2,)),
        Example(2, "p", {}, options, 1),
    ]
    batch = Choices(scores), examples
    assert BUILTIN["accuracy"](*batch) == BUILTIN["acc_norm"](*batch) == pytest.approx(2 / 3)
    assert BUILTIN["accuracy"].samples is not None and BUILTIN["accuracy"].samples(*batch) == [1, 0, 1]
    assert BUILTIN["expected_accuracy"](*batch) == pytest.approx((0.7 + 0.5 + 0.5) / 3)
    assert BUILTIN["margin"](*batch) == pytest.approx((math.log(5 / 3) + math.log(3 / 5) + math.log(5 / 3)) / 3)
    assert BUILTIN["f1_macro"](*batch) == pytest.approx((0 + 0.8 + 0) / 3), "the label is the prediction where that is right"
    assert BUILTIN["exact_match"](*batch) == pytest.approx(2 / 3)


def test_binary_f1_is_of_two_classes() -> None:
    with pytest.raises(InputError, match="this task has 3: use f1_macro"):
        BUILTIN["f1"](*graded())


# Class metrics of drawn options


def several(seed: int, size: int, classes: int) -> tuple[Choices, list[Example]]:
    """Random log-likelihoods, and examples of which a third have another right option."""
    outputs, examples = graded(seed, size, classes)
    rng = np.random.default_rng(seed + 1)
    also = [tuple(c for c in range(classes) if c != e.label and rng.random() < 1 / 3) for e in examples]
    return outputs, [replace(e, also=a) for e, a in zip(examples, also, strict=True)]


BATCHES = st.builds(
    several, st.integers(0, 10_000), st.integers(1, 60), st.shared(st.sampled_from([2, 3, 5]), key="classes")
)
OF_CLASSES = [*CLASS_METRICS]


@FIXED
@given(BATCHES, st.floats(0.1, 10))
def test_expected_accuracy_is_the_mean_probability_of_what_is_right(
    batch: tuple[Choices, list[Example]], temperature: float
) -> None:
    outputs, examples = batch
    powers = np.exp(outputs.loglikelihoods.astype(np.float64) / temperature)
    right = [[c == e.label or c in e.also for c in range(powers.shape[1])] for e in examples]
    expected = float(((powers / powers.sum(1, keepdims=True)) * right).sum(1).mean())
    assert resolve(f"expected_accuracy?temperature={temperature}")(*batch) == pytest.approx(expected, abs=1e-9)
    assert resolve("expected_accuracy?temperature=1")(*batch) == pytest.approx(
        BUILTIN["expected_accuracy"](*batch), abs=1e-9
    )


@FIXED
@given(BATCHES, st.sampled_from(OF_CLASSES))
def test_an_expected_metric_goes_to_the_metric_as_the_temperature_goes_to_0(
    batch: tuple[Choices, list[Example]], name: str
) -> None:
    """What is right too counts as the metric counts it; classes nobody has or predicts included (law 9)."""
    if name == "f1" and batch[0].loglikelihoods.shape[1] != 2:
        return
    assert resolve(f"expected_{name}?temperature=1e-8")(*batch) == pytest.approx(BUILTIN[name](*batch), abs=1e-9)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_an_expected_metric_is_that_of_many_draws(name: str) -> None:
    outputs, examples = several(7, 40, 2 if name == "f1" else 4)
    draws, temperature, rng = 2000, 0.7, np.random.default_rng(0)
    noise = rng.gumbel(size=(draws, *outputs.loglikelihoods.shape))
    drawn = Choices((outputs.loglikelihoods / temperature + noise).reshape(draws * 40, -1).astype(np.float32))
    found = resolve(f"expected_{name}?temperature={temperature}")(outputs, examples)
    assert found == pytest.approx(BUILTIN[name](drawn, examples * draws), abs=0.01)
    assert abs(found - BUILTIN[name](outputs, examples)) > 0.02, "it should differ from the metric of the likeliest"


def test_fewer_options_than_others_have_no_chance() -> None:
    scores = np.array([[-1, -1, -np.inf], [-2, -2, -2]], dtype=np.float32)
    examples = [Example(0, "p", {}, (" a", " b"), 0), Example(1, "p", {}, (" a", " b", " c"), 2)]
    assert resolve("expected_accuracy?temperature=3")(Choices(scores), examples) == pytest.approx((1 / 2 + 1 / 3) / 2)
    f1 = (2 * 1 / 2 / (5 / 6 + 1), 0, 2 * 1 / 3 / (1 + 1 / 3))
    assert resolve("expected_f1_macro")(Choices(scores), examples) == pytest.approx(sum(f1) / 3)


def test_an_expected_metric_moves_where_the_metric_is_flat() -> None:
    outputs, examples = labelled([0, 1, 1], [0, 0, 0], 2)
    nearer = Choices(outputs.loglikelihoods * np.float32(0.99))
    assert BUILTIN["f1_macro"](nearer, examples) == BUILTIN["f1_macro"](outputs, examples)
    assert resolve("expected_f1_macro")(nearer, examples) > resolve("expected_f1_macro")(outputs, examples)


@pytest.mark.parametrize("temperature", ["0", "-1", "inf", "nan", "true", "warm", "1e999", "[1]"])
@pytest.mark.parametrize("name", ["expected_accuracy", "expected_mcc"])
def test_a_temperature_that_is_none_is_refused(name: str, temperature: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}\?temperature=.*': give a number above 0"):
        resolve(f"{name}?temperature={temperature}")


def test_what_an_expected_metric_cannot_be_of_is_said() -> None:
    with pytest.raises(InputError, match="'expected_f1_macro' takes temperature, not average"):
        resolve("expected_f1_macro?average=macro")
    with pytest.raises(InputError, match="this task has 3: use expected_f1_macro"):
        resolve("expected_f1")(*graded())
    with pytest.raises(InputError, match="'expected_f1_macro' needs a multiple-choice task"):
        resolve("expected_f1_macro")(*sentences())


def test_expected_metrics_are_listed_and_need_likelihoods() -> None:
    listed = {row.name: row.bounds for row in listing.rows()}
    assert {f"expected_{name}" for name in OF_CLASSES} <= set(listed)
    assert listed["expected_mcc"] == "-1 to 1" and listed["expected_f1"] == "0 to 1"
    found = resolve("expected_balanced_accuracy?temperature=0.5")
    assert (found.name, found.needs) == ("expected_balanced_accuracy?temperature=0.5", Needs.LIKELIHOOD)


def test_a_sum_of_an_expected_metric_and_the_metric() -> None:
    name, batch = "0.5 * expected_f1_macro?temperature=0.5 + 0.5 * f1_macro", graded()
    parts = [resolve(part)(*batch) for part in ("expected_f1_macro?temperature=0.5", "f1_macro")]
    assert resolve(name)(*batch) == pytest.approx(sum(parts) / 2)
    for text in (name.replace(" * ", "*"), "0.5*f1_macro"):
        with pytest.raises(InputError, match=r"with spaces around \+ - \*"):
            resolve(text)


# Rewards


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("words", "three small words", 3),
        ("characters", " four ", 4),
        ("length?at_most=4", "one two three", 1),
        ("length?at_most=4", "1 2 3 4 5 6", 0.5),
        ("length?at_most=4", "1 2 3 4 5 6 7 8 9", 0),
        ("length?at_least=4", "one two", 0.5),
        ("length", "", 0),
        ("length?at_most=4&unit=characters", "123456", 0.5),
        (r"format?pattern=<think>.*</think>\w+", "<think>\nhm\n</think>yes ", 1),
        (r"format?pattern=<think>.*</think>\w+", "yes", 0),
        ("format?pattern=a%26b%3D1", "a&b=1", 1),
        ("keywords?words=good,great", "a Great film", 0.5),
        ("keywords?words=good,great", "a greater film", 0),
        ("keywords?words=good&without=bad", "good, not bad", 0),
        ("keywords?without=bad", "good", 1),
    ],
)
def test_rewards_of_texts_by_hand(name: str, text: str, value: float) -> None:
    objective = resolve(name)
    assert objective(*generated([text], [[]])) == value
    assert objective.name == name and objective.about


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("format", "'format' needs pattern: format?pattern=..."),
        ("format?pattern=(", "is not a regular expression"),
        ("length?at_mots=3", "takes at_least, at_most, unit, not at_mots"),
        ("length?unit=tokens", "Unknown unit 'tokens'"),
        ("keywords", "'keywords' needs words"),
        ("accuracy?average=macro", "'accuracy' takes no arguments, found average"),
        ("bleu?smooth=1", "'bleu': .*smooth"),
    ],
)
def test_wrong_arguments_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        resolve(name)(*sentences())


def test_a_length_in_words_can_be_had_of_the_predicted_option() -> None:
    assert BUILTIN["words"](*labelled([0, 1], [1, 0], 2)) == 2


# All of them


@pytest.mark.parametrize(
    "name",
    [
        *BUILTIN,
        *(f"expected_{name}" for name in OF_CLASSES),
        "length?at_most=12",
        "keywords?words=the",
        "format?pattern=.*\\d",
    ],
)
def test_every_builtin_keeps_the_laws(name: str) -> None:
    check_objective(resolve(name))


@pytest.mark.parametrize("name", ["exact_match", "bleu", "words", "numeric_match"])
def test_texts_cannot_be_scored_where_there_are_likelihoods(name: str) -> None:
    _, examples = sentences()
    with pytest.raises(InputError, match="looks at generated text"):
        BUILTIN[name](Likelihoods(np.zeros(8, dtype=np.float32), np.ones(8, dtype=np.int64)), examples)


@pytest.mark.parametrize(("alias", "name"), [("acc", "accuracy"), ("f1_binary", "f1"), ("token_f1", "squad_f1")])
def test_aliases(alias: str, name: str) -> None:
    assert resolve(alias) is BUILTIN[name]


def test_the_same_batch_is_prepared_once() -> None:
    outputs, examples = graded()
    counted: list[int] = []

    class Watched(list[Example]):
        def __iter__(self) -> Any:
            counted.append(1)
            return super().__iter__()

    bound = BUILTIN["accuracy"].bound(Watched(examples))
    before = len(counted)
    assert [bound(outputs) for _ in range(5)] == [BUILTIN["accuracy"](outputs, examples)] * 5
    assert len(counted) == before


def test_makers_say_what_they_are() -> None:
    assert all(m.about or name in BUILTIN for name, m in MAKERS.items())
    assert isinstance(MAKERS["length"].make(), Objective)
