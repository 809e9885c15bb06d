"""Files of lm-evaluation-harness: those of the subset render the hub's rows unchanged, the others say what to do instead."""

from pathlib import Path
from typing import Any

import pytest

from zo_objectives.errors import InputError
from zo_objectives.language import prompts
from zo_objectives.language.filters import normalised
from zo_objectives.language.tasks import TaskSpec, apply_filters, read_task

FOLDER = Path(__file__).parent / "lm_eval"
CHOICES = {"text": ["earth", "air"], "label": ["A", "B"]}
ROWS: dict[str, tuple[dict[str, Any], str, tuple[str, ...], int]] = {  # a row, and its prompt, options and label
    "arc_easy": (
        {"id": "1", "question": "What do wings push?", "choices": CHOICES, "answerKey": "B"},
        "Question: What do wings push?\nAnswer:",
        ("earth", "air"),
        1,
    ),
    "boolq": (
        {"question": "is it so", "passage": "So it is.", "idx": 0, "label": 1},
        "So it is.\nQuestion: is it so?\nAnswer:",
        ("no", "yes"),
        1,
    ),
    "sciq": (
        {
            "question": "Q?",
            "distractor1": "a",
            "distractor2": "b'",
            "distractor3": "c",
            "correct_answer": "d",
            "support": " S.",
        },
        "S.\nQuestion: Q?\nAnswer:",
        ("a", "b'", "c", "d"),
        3,
    ),
    "openbookqa": (
        {"id": "7-980", "question_stem": "Birds fly through", "choices": CHOICES, "answerKey": " B"},
        "Birds fly through",
        ("earth", "air"),
        1,
    ),
    "mrpc": (
        {"sentence1": "One.", "sentence2": "Two.", "label": 0, "idx": 3},
        "Sentence 1: One.\nSentence 2: Two.\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        ("no", "yes"),
        0,
    ),
}
TEMPLATE = (
    "are not run from data: write it as a Jinja template on the row's columns, or write the finished rows to DATA/<task>/"
)
REFUSED = {
    "piqa": ["field 'group' is not supported. Its name today is tag"],
    "hellaswag": ["field 'process_docs': Python functions (here utils.process_docs)", "name one of ours in zo.prepare, or"],
    "winogrande": [
        f"field '{name}': Python functions (here preprocess_winogrande.{name}) {TEMPLATE}"
        for name in ("doc_to_text", "doc_to_target", "doc_to_choice")
    ],
    "copa": [f"field 'doc_to_text': Python functions (here utils.doc_to_text) {TEMPLATE}"],
    "cb": [
        "field 'metric_list.1.aggregation': Python functions (here aggregate.cb_multi_fi)",
        "a function of yours as file.py",
    ],
    "lambada_openai": [
        "field 'output_type': 'loglikelihood' is not supported: for right and wrong continuations write multiple_choice",
        "field 'group' is not supported. Its name today is tag",
        "field 'template_aliases' is not supported. Write what it sets into the templates that use it",
        "field 'metric_list.0.higher_is_better': objectives here are better the higher they are",
    ],
    "hendrycks_math_algebra": [
        "field 'process_docs': Python functions (here utils.process_docs)",
        "field 'process_results': Python functions (here utils.process_results) are not run from data: score with a metric",
    ],
}


def harness(name: str) -> TaskSpec:
    return read_task(FOLDER / f"{name}.yaml")


def test_every_file_is_looked_at() -> None:
    assert {p.stem for p in FOLDER.glob("*.yaml")} == set(ROWS) | set(REFUSED) | {"gsm8k", "triviaqa"}


@pytest.mark.parametrize("name", ROWS)
def test_a_choice_file_renders_the_hubs_rows(name: str) -> None:
    spec, (row, prompt, options, label) = harness(name), ROWS[name]
    choice = list(spec.doc_to_choice) if isinstance(spec.doc_to_choice, tuple) else spec.doc_to_choice
    assert choice is not None and spec.doc_to_target is not None
    assert prompts.render(spec.doc_to_text, row, "") == prompt
    assert prompts.options(choice, row, "") == options
    assert prompts.label(spec.doc_to_target, row, options, "") == label
    assert prompts.labels(spec.doc_to_target, row, options, "") == (label,)
    assert spec.target_delimiter == " " and spec.metrics[0] == "accuracy"


def test_the_metrics_of_choice_files() -> None:
    assert harness("arc_easy").metrics == ("accuracy", "acc_norm")
    assert harness("mrpc").metrics == ("accuracy", "f1")
    assert harness("openbookqa").metadata == {"version": 1.0}, "a list of mappings is one"
    assert harness("arc_easy").tag == ("ai2_arc",)


def test_gsm8k_runs_unchanged() -> None:
    spec = harness("gsm8k")
    assert (spec.num_fewshot, spec.fewshot_split, spec.fewshot_delimiter) == (5, "train", "\n\n")
    assert spec.generation_kwargs.until == ("\n\n", "Question:") and not spec.generation_kwargs.do_sample
    row = {"question": "How many?", "answer": "It is 1,200 / 2 = <<1200/2=600>>600.\n#### 1,600"}
    assert prompts.targets(str(spec.doc_to_target), row, "") == (row["answer"],)
    arguments = spec.metric_list[0].arguments
    assert arguments == {"ignore_case": True, "regexes_to_ignore": (",", "\\$", "(?s).*#### ")}
    said = apply_filters(spec.filter_list, "So.\n#### 1600")
    assert normalised(said, **arguments) == normalised(row["answer"], **arguments) == "1600"


def test_triviaqa_runs_unchanged() -> None:
    spec = harness("triviaqa")
    row = {"question": "Who", "answer": {"aliases": ["Ann O'Dea", "A. O."], "value": "Ann"}}
    assert prompts.targets(str(spec.doc_to_target), row, "") == ("Ann O'Dea", "A. O.")
    said = apply_filters(spec.filter_list, " ann odea")
    assert said == "ann odea"
    assert normalised("Ann O'Dea", **spec.metric_list[0].arguments) == said


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_beyond_the_subset_says_what_to_do_instead(name: str) -> None:
    with pytest.raises(InputError) as caught:
        harness(name)
    said = str(caught.value)
    assert said.startswith(f"{FOLDER / name}.yaml: ")
    for sentence in REFUSED[name]:
        assert sentence in said, said
