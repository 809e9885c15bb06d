"""Tasks: the shipped files are right, a user's file runs, and what is wrong in one is named with file, field and cure."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from zo_objectives.errors import InputError
from zo_objectives.language import data, harness, hf, objectives
from zo_objectives.language.outputs import Example, Generations
from zo_objectives.language.prepare import ASSETS, GENERATED, openings, read_jsonl, sums
from zo_objectives.language.tasks import TaskSpec, apply_filters, find_task, read_task, task_files
from zo_objectives.scoring import Pool
from zo_objectives.validate import validate

CHOICE: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "owner/mine",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}} It was",
    "doc_to_choice": ["bad", "good"],
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}
LM_EVAL = r"""
task: arithmetic_words
tag:
  - math_word_problems
dataset_path: owner/arithmetic_words
dataset_name: main
output_type: generate_until
training_split: train
test_split: test
description: "Solve.\n"
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs:
  until:
    - "Question:"
    - "</s>"
  do_sample: false
  temperature: 0.0
  max_gen_toks: 64
filter_list:
  - name: strict-match
    filter:
      - function: regex
        regex_pattern: "#### (\\-?[0-9\\.\\,]+)"
      - function: take_first
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"
      - function: take_first
num_fewshot: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 3.0
"""


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"film {i}", "label": i % 2} for i in range(start, start + count)]


def write(folder: Path, content: Mapping[str, Any] | str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(dict(content)), encoding="utf-8")
    return path


def write_data(folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], task: str = "mine") -> Path:
    (folder / task).mkdir(exist_ok=True)
    for split, content in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (folder / task / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


# The shipped files


@pytest.mark.parametrize("name", sorted(task_files()))
def test_a_shipped_task_is_well_formed(name: str) -> None:
    path = find_task(name)
    spec = read_task(path)
    assert spec.task == name
    for metric in (*spec.metrics, *([spec.zo.objective] if spec.zo.objective else [])):
        objectives.resolve(metric, path.parent)


@pytest.mark.parametrize("name", sorted(n for n, p in task_files().items() if read_task(p).zo.source))
def test_a_shipped_task_without_a_hub_renders(name: str) -> None:
    splits = data.load(data.Form(read_task(find_task(name))), sizes=data.Sizes(20, 20, 20))
    for examples in (splits.train, splits.validation, splits.test):
        assert len(examples) == 20
        assert all(e.prompt and ("{" not in e.prompt) and (e.options or e.targets) for e in examples)


def test_embedded_reviews_are_many_balanced_and_told_apart() -> None:
    texts: list[str] = []
    for split, least in (("train", 300), ("validation", 100), ("test", 200)):
        reviews = read_jsonl(ASSETS / "reviews" / f"{split}.jsonl")
        assert len(reviews) >= least
        assert 0.4 < sum(r["label"] for r in reviews) / len(reviews) < 0.6
        assert {r["label"] for r in reviews} == {0, 1}
        texts += [" ".join(re.findall(r"\w+", r["text"].lower())) for r in reviews]
    assert len(texts) == len(set(texts))


def test_sums_are_right_and_never_in_two_splits() -> None:
    seen: set[tuple[int, int, str]] = set()
    for split, count in (("train", 1000), ("validation", 300), ("test", 500)):
        made = sums(split)
        assert len(made) == count
        assert made == sums(split)
        for row in made:
            assert int(row["answer"]) == eval(f"{row['a']} {row['sign']} {row['b']}")
            assert 0 <= int(row["answer"]) <= 99
            assert row["word"] == {"+": "plus", "-": "minus"}[row["sign"]]
            seen.add((row["a"], row["b"], row["sign"]))
    assert len(seen) == 1800
    assert sums("train", seed=1) != sums("train")


def test_openings_lose_no_word() -> None:
    made = openings([{"text": "one two three four five six seven", "label": 1}, {"text": "one two three"}])
    assert [(r["opening"], r["rest"]) for r in made] == [("one two", "three four five six seven"), ("one two", "three")]
    assert made[0]["label"] == 1


# A file of lm-evaluation-harness


def test_a_file_of_the_harness_runs_unchanged(tmp_path: Path) -> None:
    folder = write_data(
        tmp_path,
        {
            "train": [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(10)],
            "test": [{"question": "x", "answer": "1"}],
        },
        "arithmetic_words",
    )
    spec = read_task(write(tmp_path, LM_EVAL))
    splits = data.load(data.Form(spec), folder)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 4, 1)
    assert splits.test[0].prompt == "Solve.\nQuestion: x\nAnswer:"
    assert splits.test[0].targets == ("1",)
    assert spec.metrics == ("exact_match",)
    assert apply_filters(spec.filter_list, "So 2 + 3\n#### 1,234") == "1,234"
    assert apply_filters(spec.filter_list, "So 5.") == "[invalid]"


def test_conventions_of_the_harness_for_templates(tmp_path: Path) -> None:
    def example(**fields: Any) -> Any:
        spec = TaskSpec.model_validate(CHOICE | fields)
        row = {"text": "Fine", "label": "1", "choices": ["no", "yes"], "gold": "yes", "many": ["a", "b", "a"]}
        return data.Form(spec).render(row, 0, "here")

    assert example().prompt == "Fine It was"
    assert example(doc_to_text="text").prompt == "Fine", "a column's name is the column"
    assert example().options == (" bad", " good")
    assert example(target_delimiter="").options == ("bad", "good")
    assert example(doc_to_choice="choices").options == (" no", " yes")
    assert example(doc_to_choice="{{choices}}").options == (" no", " yes"), "a list as text is read as a list"
    assert example(doc_to_choice=["{{text}} no", "yes"]).options == (" Fine no", " yes")
    assert example(doc_to_target="label").label == 1, "digits are an index"
    assert example(doc_to_choice="choices", doc_to_target="gold").label == 1, "a text is an option"
    assert example(doc_to_target=0).label == 0
    assert example(output_type="generate_until", doc_to_choice=None, doc_to_target="many").targets == ("a", "b")
    assert example(output_type="generate_until", doc_to_choice=None, doc_to_target="['c', 'd']").targets == ("c", "d")


@pytest.mark.parametrize(
    ("steps", "text", "found"),
    [
        ([{"function": "regex", "regex_pattern": r"(\d+)"}], "7 of 9", "7"),
        ([{"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1}], "7 of 9", "9"),
        ([{"function": "regex", "regex_pattern": r"(\d+)", "group_select": 2}], "7 of 9", "[invalid]"),
        ([{"function": "regex", "regex_pattern": r"(\d+)", "fallback": "none"}], "no number", "none"),
        ([{"function": "regex", "regex_pattern": r"A(\d)|B(\d)"}], "B3", "3"),
        ([{"function": "regex", "regex_pattern": r"is(.*)"}], "it is 4 ", "4"),
        ([{"function": "remove_whitespace"}, {"function": "lowercase"}], "  Yes", "yes"),
        ([{"function": "regex", "regex_pattern": r"(x)?(y)?\d"}], "7", "[invalid]"),
        ([{"function": "remove_whitespace"}], " \n a ", "a "),
        ([{"function": "uppercase"}, {"function": "take_first"}], "yes", "YES"),
        ([{"function": "map", "mapping_dict": {"A": 1, "B": 2}, "default_value": 0}], "B", "2"),
        ([{"function": "map", "mapping_dict": {"A": 1, "B": 2}, "default_value": 0}], "C", "0"),
        ([{"function": "map", "mapping_dict": {"A": "x"}}], "C", ""),
        ([{"function": "lowercase"}, {"function": "map", "mapping_dict": {"yes": "1"}}], "YES", "1"),
        ([], " as it is ", " as it is "),
    ],
)
def test_filters(steps: list[dict[str, Any]], text: str, found: str) -> None:
    spec = TaskSpec.model_validate(CHOICE | {"filter_list": [{"filter": steps}] if steps else []})
    assert apply_filters(spec.filter_list, text) == found


def test_fields_of_the_harness_and_their_defaults(tmp_path: Path) -> None:
    spec = read_task(write(tmp_path, CHOICE))
    assert (spec.num_fewshot, spec.fewshot_split, spec.fewshot_delimiter) == (0, None, "\n\n")
    assert spec.fewshot_config.sampler == "default"
    more = {
        "task_alias": "Mine",
        "num_fewshot": 4,
        "fewshot_split": "dev",
        "fewshot_delimiter": "\n",
        "fewshot_config": {"sampler": "first_n"},
        "dataset_kwargs": {"trust_remote_code": True, "data_files": "a.csv"},
        "should_decontaminate": True,
        "doc_to_decontamination_query": "text",
        "repeats": 1,
        "doc_to_choice": {"A": "bad", "B": "good"},
        "metadata": [{"version": 1.0}, {"about": "x"}],
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "f1", "average": "macro"},
            {"metric": "f1"},
            {"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": [","]},
        ],
    }
    spec = read_task(write(tmp_path, CHOICE | more))
    assert (spec.num_fewshot, spec.fewshot_split, spec.fewshot_config.sampler) == (4, "dev", "first_n")
    assert spec.dataset_kwargs == {"data_files": "a.csv"}, "data sets bring no code that could be trusted"
    assert spec.doc_to_choice == ("bad", "good")
    assert spec.metadata == {"version": 1.0, "about": "x"}
    *names, exact = spec.metrics
    assert names == ["accuracy", "f1_macro", "f1"]
    matching = objectives.resolve(exact)
    assert matching.name == "exact_match"
    assert matching(Generations(["A 1,000"]), [Example(0, "p", {}, targets=("a 1000",))]) == 1.0
    assert matching(Generations(["A 1.000"]), [Example(0, "p", {}, targets=("a 1000",))]) == 0.0
    assert [m.arguments for m in spec.metric_list][-2:] == [{}, {"ignore_case": True, "regexes_to_ignore": (",",)}]
    nothing = read_task(write(tmp_path, CHOICE | {"num_fewshot": None, "dataset_kwargs": None, "metadata": None}))
    assert (nothing.num_fewshot, nothing.dataset_kwargs, nothing.metadata) == (0, {}, {})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, (False, 0.0, None, None)),
        ({"do_sample": False, "temperature": 0.7}, (False, 0.7, None, None)),
        ({"do_sample": True}, (True, 1.0, None, None)),
        ({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 40}, (True, 0.5, 0.9, 40)),
    ],
)
def test_how_texts_are_made(given: dict[str, Any], wanted: tuple[Any, ...]) -> None:
    found = TaskSpec.model_validate(CHOICE | {"generation_kwargs": given}).generation_kwargs
    assert (found.do_sample, found.temperature, found.top_p, found.top_k) == wanted


def test_the_words_of_the_masked_form() -> None:
    def words(**zo: Any) -> tuple[str, ...]:
        return TaskSpec.model_validate(CHOICE | {"zo": zo}).words

    assert words() == ()
    assert words(mask="{{text}}{{mask}}.") == ("bad", "good")
    assert words(mask="{{text}}{{ mask }}.", words=["awful", "fine"]) == ("awful", "fine")


def test_include_merges_and_own_keys_win(tmp_path: Path) -> None:
    write(tmp_path, CHOICE, "_base.yaml")
    path = write(tmp_path, {"include": "_base.yaml", "task": "other", "doc_to_text": "{{text}}!"}, "other.yaml")
    spec = read_task(path)
    assert (spec.task, spec.doc_to_text, spec.doc_to_choice) == ("other", "{{text}}!", ("bad", "good"))
    assert "other" in task_files(tmp_path)
    assert "_base" not in task_files(tmp_path)
    assert find_task("other", tmp_path) == path


# What is wrong in a file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"doc_to_txt": "x"},
            "field 'doc_to_txt' is not supported. Unknown field 'doc_to_txt'. Did you mean 'doc_to_text'?",
        ),
        (
            {"zo": {"objectives": "mcc"}},
            "'zo.objectives' is not supported. Unknown field 'objectives'. Did you mean 'objective'?",
        ),
        (
            {"generation_kwargs": {"untill": ["x"]}},
            "field 'generation_kwargs.untill' is not supported.* Did you mean 'until'?",
        ),
        ({"metric_list": [{"metrics": "acc"}]}, "field 'metric_list.0.metrics' is not supported.* Did you mean 'metric'?"),
        ({"doc_to_choice": [False, True]}, "field 'doc_to_choice': False is no text: YAML reads unquoted yes, no"),
        ({"doc_to_choice": {"A": 1}}, "field 'doc_to_choice': 1 is no text"),
        ({"output_type": "loglikelihood"}, "field 'output_type': 'loglikelihood' is not supported: for right and wrong"),
        ({"output_type": "greedy_until"}, "its name today is generate_until"),
        ({"num_fewshot": -1}, "field 'num_fewshot'"),
        ({"repeats": 4}, "field 'repeats'"),
        ({"training_split": None}, "field 'training_split': there must be one: tuning needs rows to train on"),
        ({"task": ["a", "b"]}, "field 'task': a group of tasks is no task"),
        ({"fewshot_config": {"sampler": "random"}}, "field 'fewshot_config.sampler'"),
        ({"fewshot_config": {"samples": []}}, "field 'fewshot_config.samples' is not supported. Demonstrations are rows of"),
        ({"generation_kwargs": {"num_beams": 4}}, "'generation_kwargs.num_beams' is not supported. Texts are made greedily"),
        ({"generation_kwargs": {"max_new_tokens": 4}}, "Its name here is max_gen_toks"),
        ({"generation_kwargs": {"do_sample": True, "temperature": 0.0}}, "do_sample: true needs a temperature above 0"),
        ({"generation_kwargs": {"top_p": 1.5}}, "field 'generation_kwargs.top_p'"),
        (
            {"filter_list": [{"filter": [{"function": "majority_vote"}]}]},
            "'majority_vote' is not supported: one completion is",
        ),
        ({"filter_list": [{"filter": [{"function": "regexp"}]}]}, "field 'filter_list.0.filter.0.function'"),
        (
            {"metric_list": [{"metric": "acc", "hf_evaluate": True}]},
            "'metric_list.0.hf_evaluate' is not supported. Leave it out",
        ),
        ({"metric_list": [{"metric": "acc", "ignore_case": True}]}, "ignore_case is an argument of exact_match alone"),
        ({"metric_list": [{"metric": "f1", "average": "samples"}]}, "field 'metric_list.0.average'"),
        ({"metric_list": [{"metric": "x", "higher_is_better": False}]}, "objectives here are better the higher they are"),
        ({"metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["("]}]}, "'(' is not a regular expression"),
        ({"zo": {"mask": "{{text}} It was."}}, "field 'zo.mask': it must hold {{mask}} once"),
        ({"zo": {"words": ["bad", "good"]}}, "zo.words are the label words of zo.mask, which is missing"),
        ({"zo": {"mask": "{{mask}}", "words": ["bad"]}}, "zo.words are 1, and doc_to_choice has 2"),
        ({"zo": {"mask": "{{mask}}"}, "doc_to_choice": "options"}, "zo.mask needs zo.words, since doc_to_choice is no list"),
        ({"zo": {"calibration": ""}, "output_type": "generate_until"}, "zo.calibration is of multiple_choice tasks"),
        ({"doc_to_choice": None}, "needs doc_to_choice and doc_to_target"),
        ({"dataset_path": None}, "dataset_path .* is missing"),
        (
            {"filter_list": [{"filter": [{"function": "regex", "regex_pattern": "("}]}]},
            "regex_pattern.* not a regular expression",
        ),
    ],
)
def test_a_wrong_field_is_named_with_the_file_and_the_cure(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, CHOICE | change)
    said = refusal(lambda: read_task(path))
    assert said.startswith(f"{path}: ")
    assert re.search(".*".join(map(re.escape, message.split(".*"))), said), said


@pytest.mark.parametrize("field", sorted(harness.FIELDS))
def test_a_field_of_the_harness_beyond_the_subset_gets_its_cure(field: str, tmp_path: Path) -> None:
    said = refusal(lambda: read_task(write(tmp_path, CHOICE | {field: "x"})))
    assert f"field '{field}' is not supported. " in said
    assert harness.FIELDS[field][1:] in said and "Did you mean" not in said


def test_unquoted_words_get_the_hint(tmp_path: Path) -> None:
    path = write(tmp_path, "task: t\ndataset_path: d\noutput_type: multiple_choice\ndoc_to_text: a\ndoc_to_target: 0\n"
                           "doc_to_choice: [no, yes]\n")  # fmt: skip
    assert "so quote it" in refusal(lambda: read_task(path))


def test_every_wrong_field_is_named_at_once(tmp_path: Path) -> None:
    said = refusal(lambda: read_task(write(tmp_path, CHOICE | {"one": 1, "two": 2})))
    assert "'one'" in said and "'two'" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("process_docs: !function utils.process\n", "not run from data: name one of ours in zo.prepare"),
        ("task: [\n", "is not valid YAML"),
        ("- a\n- b\n", "must hold a mapping of fields, found list"),
        ("include: nowhere.yaml\n", "Cannot read the task file"),
        ("include: mine.yaml\n", "include goes round in a circle (mine.yaml -> mine.yaml)"),
        ("include: 5\n", "'include' must be a file's name or a list of them"),
        ("", "must hold a mapping of fields, found NoneType"),
    ],
)
def test_a_broken_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    assert message in refusal(lambda: read_task(path))


def test_a_circle_of_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"include": "mine.yaml"}, "_other.yaml")
    assert "mine.yaml -> _other.yaml -> mine.yaml" in refusal(
        lambda: read_task(write(tmp_path, {**CHOICE, "include": ["_other.yaml"]}))
    )


def test_an_unknown_task_gets_the_nearest_name(tmp_path: Path) -> None:
    assert "Did you mean 'reviews'?" in refusal(lambda: find_task("review"))
    assert "nowhere.yaml does not exist" in refusal(lambda: find_task("nowhere.yaml"))
    assert "is not a folder" in refusal(lambda: find_task("reviews", tmp_path / "none"))


# What is wrong in the data


def load(tmp_path: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], **fields: Any) -> data.Splits:
    return data.load(data.Form(TaskSpec.model_validate(CHOICE | fields)), write_data(tmp_path, splits))


@pytest.mark.parametrize(
    ("splits", "fields", "message"),
    [
        ({"train": [], "test": rows(2)}, {}, "the train split is empty"),
        ({"train": rows(4), "test": []}, {}, "the test split is empty"),
        ({"train": rows(4)}, {}, "neither a validation nor a test split"),
        ({"train": rows(1), "test": rows(2)}, {}, "one example, too few to cut a validation split from"),
        ({"test": rows(2)}, {}, "train.jsonl does not exist"),
        ({"train": rows(4), "test": rows(1)}, {"doc_to_text": "{{txt}}"}, "undefined. The data has the columns text, label"),
        ({"train": rows(4), "test": rows(1)}, {"doc_to_text": "{{text"}, "doc_to_text: the template '{{text' is wrong"),
        ({"train": rows(4), "test": rows(1)}, {"doc_to_text": "{{text + 1}}"}, "the template '{{text + 1}}' is wrong"),
        ({"train": rows(4), "test": [{"text": "a", "label": 2}]}, {}, "test row 0, doc_to_target: label 2 has no option"),
        ({"train": rows(4), "test": [{"text": "a", "label": -1}]}, {}, "label -1 has no option"),
        ({"train": rows(4), "test": [{"text": "a", "label": None}]}, {}, "label None has no option"),
        ({"train": rows(4), "test": [{"text": "a", "label": "great"}]}, {}, "the label 'great' is none of the options"),
        ({"train": rows(4), "test": rows(1)}, {"doc_to_choice": "text"}, "doc_to_choice: 'film 0' is not a list of options"),
        ({"train": rows(4), "test": rows(1)}, {"doc_to_choice": "label"}, "options must be texts, found 0"),
        ({"train": rows(4), "test": rows(1)}, {"zo": {"prepare": "opening"}}, "Did you mean 'openings'?"),
    ],
)  # fmt: skip
def test_wrong_data_is_named_with_its_place(
    splits: dict[str, Any], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refusal(lambda: load(tmp_path, splits, **fields))


def test_a_generation_row_without_any_target_is_refused(tmp_path: Path) -> None:
    fields = {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "answers"}
    splits = {"train": [{"text": "a", "answers": ["b"]}] * 4, "test": [{"text": "a", "answers": []}]}
    assert "test row 0, doc_to_target: the list of right answers is empty" in refusal(
        lambda: load(tmp_path, splits, **fields)
    )


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    folder = write_data(tmp_path, {"train": rows(2), "test": rows(2)})
    with (folder / "mine" / "test.jsonl").open("a") as file:
        file.write("\n{oops}\n")
    spec = TaskSpec.model_validate(CHOICE)
    assert "test.jsonl, line 4 is not JSON" in refusal(lambda: data.load(data.Form(spec), folder))
    write_data(tmp_path, {"test": [[1]]})  # type: ignore[list-item]
    assert "test.jsonl, line 1 is not an object" in refusal(lambda: data.load(data.Form(spec), folder))
    assert "elsewhere/mine does not exist" in refusal(lambda: data.load(data.Form(spec), tmp_path / "elsewhere"))


def test_an_unknown_source_gets_the_nearest_name() -> None:
    for source, near in (("generated:sum", "sums"), ("generate:sums", "generated")):
        spec = TaskSpec.model_validate(CHOICE | {"dataset_path": None, "zo": {"source": source}})
        assert f"Did you mean '{near}'?" in refusal(lambda spec=spec: data.load(data.Form(spec)))  # type: ignore[misc]
    assert GENERATED


# Splits and samples


def ids(splits: data.Splits) -> list[list[str]]:
    return [[str(e.row["text"]) for e in part] for part in (splits.train, splits.validation, splits.test)]


def test_validation_is_cut_from_train_disjoint_and_always_the_same(tmp_path: Path) -> None:
    splits = {"train": rows(50), "test": rows(5, 100)}
    train, validation, test = ids(load(tmp_path, splits))
    assert (len(train), len(validation), len(test)) == (30, 20, 5)
    assert sorted(train + validation) == sorted(r["text"] for r in rows(50))
    assert ids(load(tmp_path, splits)) == [train, validation, test]


def test_a_lone_validation_split_is_the_test(tmp_path: Path) -> None:
    train, validation, test = ids(load(tmp_path, {"train": rows(50), "validation": rows(5, 100)}))
    assert test == [r["text"] for r in rows(5, 100)]
    assert len(validation) == 20
    assert not set(train) & set(validation)


def test_three_splits_are_left_as_they_are(tmp_path: Path) -> None:
    splits = {"train": rows(5), "validation": rows(5, 10), "test": rows(5, 20)}
    assert ids(load(tmp_path, splits)) == [[r["text"] for r in part] for part in splits.values()]


def test_samples_depend_on_the_seed_in_train_alone(tmp_path: Path) -> None:
    folder = write_data(tmp_path, {"train": rows(60), "validation": rows(60, 100), "test": rows(60, 200)})
    form = data.Form(TaskSpec.model_validate(CHOICE))
    first, again, other = (ids(data.load(form, folder, data.Sizes(20, 20, 20), seed=s)) for s in (0, 0, 1))
    assert first == again
    assert first[0] != other[0]
    assert first[1:] == other[1:]
    assert all(len(set(part)) == 20 for part in first)
    assert ids(data.load(form, folder, data.Sizes(99, None, 60), seed=0)) == ids(data.load(form, folder))


def test_an_example_is_numbered_as_its_row(tmp_path: Path) -> None:
    folder = write_data(tmp_path, {"train": rows(60), "validation": rows(60, 100), "test": rows(60, 200)})
    for example in data.load(data.Form(TaskSpec.model_validate(CHOICE)), folder, data.Sizes(7, 7, 7), seed=3).train:
        assert example.row == rows(60)[example.id]


# tasks validate


@cache
def model() -> hf.LanguageModel:
    return hf.load("reviews-1m")


def lines_of(tmp_path: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], **fields: Any) -> list[tuple[str, bool]]:
    path = write(tmp_path, CHOICE | fields)
    return list(validate(str(path), model(), write_data(tmp_path, splits), None))


def test_validate_passes_a_good_task(tmp_path: Path) -> None:
    said = lines_of(tmp_path, {"train": rows(50), "test": rows(5, 100)})
    assert all(good for _, good in said)
    text = "\n".join(line for line, _ in said)
    assert "30 train, 20 validation, 5 test" in text
    assert "'film 0 It was' -> ' bad'" in text or "'film 1 It was' -> ' good'" in text
    assert "no example is in two splits" in text


def test_validate_finds_a_leak(tmp_path: Path) -> None:
    said = lines_of(tmp_path, {"train": rows(50), "validation": rows(5, 60), "test": rows(5, 47)})
    told = "3 examples are in both train and test, and are left out of train, such as 'film 47 It was'"
    assert f"mine: {told}" in [line for line, _ in said]
    assert "47 train, 5 validation, 5 test" in said[1][0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"doc_to_choice": ["good", "good"]}, "are the same tokens"),
        ({"doc_to_text": "{{text}} " * 300}, "too long for reviews-1m: 30 of 30 in train"),
        ({"metric_list": [{"metric": "acuracy"}]}, "Did you mean 'accuracy'?"),
        ({"doc_to_text": "{{nothing}}"}, "The data has the columns"),
        ({"task": "mine", "unknown": 1}, "is not supported"),
    ],
)
def test_validate_says_what_is_wrong(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    wrong = [line for line, good in lines_of(tmp_path, {"train": rows(50), "test": rows(5, 100)}, **fields) if not good]
    assert message in wrong[-1]


def test_validate_works_for_generation(tmp_path: Path) -> None:
    said = list(validate("sums", model(), None, None))
    assert all(good for _, good in said), said
    assert Pool(tiny.make(), read_task(find_task("sums")), ()).new_tokens == 3
