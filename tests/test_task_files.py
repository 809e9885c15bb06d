"""The shipped tasks: every prompt, option and answer on a row of the hub's schema, word for word; generators; rewards."""

import importlib.util
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zo_objectives.language import data, prompts
from zo_objectives.language.countdown import SIZES, countdown
from zo_objectives.language.filters import normalised
from zo_objectives.language.prepare import GENERATED, PREPARE, filled, grouped, labelled, read_jsonl
from zo_objectives.language.tasks import TaskSpec, apply_filters, find_task, read_task, task_files, tasks_folder

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
NLI = {"premise": "A dog runs.", "hypothesis": "An animal moves.", "idx": 0}
SUPPOSE = 'Suppose A dog runs. Can we infer that "An animal moves."? Yes, No, or Maybe?\n'
PASSAGE = "Ann won.\n@highlight\nAnn Lee is 20\n@highlight\nBo came second"


@dataclass(frozen=True)
class Case:
    """A row of the hub's schema and what it must become."""

    row: dict[str, Any]
    prompt: str
    answers: tuple[str, ...]  # the options with their delimiter, or the targets
    right: tuple[int, ...] = ()
    mask: str | None = None
    words: tuple[str, ...] = ()
    calibration: str | None = None


CASES = {
    "sst2": Case(
        {"sentence": "a fine film ", "label": 1, "idx": 0},
        "a fine film It was",
        (" terrible", " great"),
        (1,),
        "a fine film It was<mask>.",
        ("terrible", "great"),
        " It was",
    ),
    "sst5": Case(
        {"text": "a fine film .", "label": 3, "label_text": "positive"},
        "a fine film . It was",
        (" terrible", " bad", " okay", " good", " great"),
        (3,),
        "a fine film . It was<mask>.",
        ("terrible", "bad", "okay", "good", "great"),
        " It was",
    ),
    "snli": Case(
        {**NLI, "label": 1},
        SUPPOSE,
        ("Yes", "Maybe", "No"),
        (1,),
        "A dog runs?<mask>, an animal moves.",
        ("Yes", "Maybe", "No"),
        "",
    ),
    "mnli": Case(
        {**NLI, "label": 2},
        SUPPOSE,
        ("Yes", "Maybe", "No"),
        (2,),
        "A dog runs?<mask>, an animal moves.",
        ("Yes", "Maybe", "No"),
        "",
    ),
    "rte": Case(
        {**NLI, "label": 0},
        'A dog runs.\nDoes this mean that "An animal moves." is true? Yes or No?\n',
        ("Yes", "No"),
        (0,),
        "A dog runs?<mask>, an animal moves.",
        ("Yes", "No"),
        "",
    ),
    "trec": Case(
        {"text": "How far is it ?", "coarse_label": 5, "fine_label": 40},
        "Question: How far is it ?\nType of answer:",
        (" Expression", " Entity", " Description", " Human", " Location", " Number"),
        (5,),
        "<mask>: How far is it ?",
        ("Expression", "Entity", "Description", "Human", "Location", "Number"),
        "Type of answer:",
    ),
    "cb": Case({**NLI, "label": 1}, SUPPOSE, ("Yes", "No", "Maybe"), (1,), calibration=""),
    "boolq": Case(
        {"question": "is a dog a wolf", "answer": True, "passage": "Dogs come from wolves."},
        "Dogs come from wolves. Is a dog a wolf?\n",
        ("No", "Yes"),
        (1,),
        calibration="",
    ),
    "wsc": Case(
        {
            "text": "Ann saw Bo. She left.",
            "span1_index": 0,
            "span2_index": 3,
            "span1_text": "Ann",
            "span2_text": "She",
            "label": 1,
        },
        'Ann saw Bo. She left.\nIn the previous sentence, does the pronoun "she" refer to Ann? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        calibration="",
    ),
    "wic": Case(
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "The bank lends.", "start1": 8, "label": 0, "idx": 0},
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nA river bank.\nThe bank lends.\n',
        ("No", "Yes"),
        (0,),
        calibration="",
    ),
    "multirc": Case(
        {"paragraph": "P.", "question": "Who?", "answer": "Ann", "idx": {"paragraph": 0, "question": 0}, "label": 1},
        'P.\nQuestion: Who?\nI found this answer "Ann". Is that correct? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        calibration="",
    ),
    "copa": Case(
        {"premise": "The man fell. ", "choice1": "He slipped.", "choice2": "I Saw it.", "question": "cause", "label": 0},
        "The man fell because",
        (" he slipped.", " I Saw it."),
        (0,),
        calibration="because",
    ),
    "record": Case(
        {
            "passage": PASSAGE,
            "query": "The winner is @placeholder.",
            "entities": ["Bo", "Ann", "Ann Lee"],
            "answers": ["Ann Lee", "Ann"],
        },
        "Ann won.\n- Ann Lee is 20\n- Bo came second\n-",
        (" The winner is Bo.", " The winner is Ann.", " The winner is Ann Lee."),
        (2, 1),
        calibration="-",
    ),
    "squad": Case(
        {
            "id": "5",
            "title": "Dog",
            "context": "C.",
            "question": " Who? ",
            "answers": {"text": ["it's A", "A"], "answer_start": [1, 6]},
        },
        "Title: Dog\nContext: C.\nQuestion: Who?\nAnswer:",
        ("it's A", "A"),
    ),
    "drop": Case(
        {
            "section_id": "nfl_1",
            "query_id": "f3",
            "passage": "P.",
            "question": "How many? ",
            "answers_spans": {"spans": ["2", "two"], "types": ["number", "span"]},
        },
        "Passage: P.\nQuestion: How many?\nAnswer:",
        ("2", "two"),
    ),
    "cola": Case(
        {"sentence": "He go.", "label": 0, "idx": 0},
        "He go. This is",
        (" incorrect", " correct"),
        (0,),
        "He go. This is<mask>.",
        ("incorrect", "correct"),
        " This is",
    ),
    "mrpc": Case(
        {"sentence1": "It rains.", "sentence2": "Rain falls.", "label": 1, "idx": 0},
        'It rains.\nDoes this mean the same as "Rain falls."? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        "It rains.<mask>, rain falls.",
        ("No", "Yes"),
        "",
    ),
    "qqp": Case(
        {"question1": "Why?", "question2": "What for?", "label": 1, "idx": 0},
        'Why?\nDoes this ask the same as "What for?"? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        "Why?<mask>, what for?",
        ("No", "Yes"),
        "",
    ),
    "qnli": Case(
        {"question": "Who ran?", "sentence": "The dog ran.", "label": 0, "idx": 0},
        'The dog ran.\nDoes this answer the question "Who ran?"? Yes or No?\n',
        ("Yes", "No"),
        (0,),
        "Who ran?<mask>, the dog ran.",
        ("Yes", "No"),
        "",
    ),
    "ag_news": Case(
        {"text": "Shares rose.", "label": 2},
        "Article: Shares rose.\nTopic:",
        (" World", " Sports", " Business", " Tech"),
        (2,),
        "<mask> News: Shares rose.",
        ("World", "Sports", "Business", "Tech"),
        "Topic:",
    ),
    "gsm8k": Case(
        {"question": "1 + 1?", "answer": "It's <<1+1=2>>2.\n#### 2"},
        "Question: 1 + 1?\nAnswer:",
        ("It's <<1+1=2>>2.\n#### 2", "2"),
    ),
    "e2e_nlg": Case(
        {"meaning_representation": "name[Mo's], area[riverside]", "human_reference": "Mo's is by the river."},
        "Facts: name[Mo's], area[riverside]\nText:",
        ("Mo's is by the river.",),
    ),
    "countdown": Case(
        {"numbers": [3, 5, 7], "target": 22, "solution": "(3 * 5) + 7"},
        "Numbers: 3 5 7\nTarget: 22\nExpression:",
        ("(3 * 5) + 7",),
    ),
}


def spec_of(name: str) -> TaskSpec:
    return read_task(find_task(name))


def prepared(spec: TaskSpec, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return PREPARE[spec.zo.prepare](rows) if spec.zo.prepare else rows


def reward(name: str) -> ModuleType:
    """A reward file of the tasks folder."""
    found = importlib.util.spec_from_file_location(name, tasks_folder() / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


# Every task


def test_every_task_is_here() -> None:
    assert set(CASES) | {"reviews", "sums", "tidy", "sst2_good_bad", "sst2_skewed", "ag_news_skewed"} == set(task_files())


@pytest.mark.parametrize("name", CASES)
def test_a_row_becomes_exactly_this(name: str) -> None:
    spec, case = spec_of(name), CASES[name]
    (row,) = prepared(spec, [case.row])
    assert prompts.render(spec.doc_to_text, row, name) == case.prompt
    assert spec.doc_to_target is not None
    if spec.output_type == "generate_until":
        assert prompts.targets(str(spec.doc_to_target), row, name) == case.answers
        return
    choice = list(spec.doc_to_choice) if isinstance(spec.doc_to_choice, tuple) else spec.doc_to_choice
    assert choice is not None
    options = prompts.options(choice, row, name)
    assert tuple(spec.target_delimiter + o for o in options) == case.answers
    assert prompts.labels(spec.doc_to_target, row, options, name) == case.right


@pytest.mark.parametrize(("name", "plain"), [("sst2_skewed", "sst2_good_bad"), ("ag_news_skewed", "ag_news")])
def test_a_skewed_task_is_the_plain_one_but_for_what_is_kept_and_measured(name: str, plain: str) -> None:
    skewed, even = (spec_of(n).model_dump(exclude={"task", "metric_list", "metadata"}) for n in (name, plain))
    for spec in (skewed, even):
        spec["zo"]["settings"] = {k: v for k, v in spec["zo"]["settings"].items() if k in ("keep", "ft")}
    keep = skewed["zo"]["settings"].pop("keep")
    assert keep == {"sst2_skewed": [1.0, 0.1], "ag_news_skewed": [1.0, 0.3, 0.1, 0.03]}[name]
    assert skewed == {**even, "zo": {**even["zo"], "folder": {"sst2_skewed": "sst2", "ag_news_skewed": "ag_news"}[name]}}
    assert spec_of(name).metrics == ("f1_macro", "mcc", "balanced_accuracy", "accuracy")


@pytest.mark.parametrize("name", CASES)
def test_the_other_forms_of_a_row(name: str) -> None:
    spec, case = spec_of(name), CASES[name]
    (row,) = prepared(spec, [case.row])
    assert spec.words == case.words
    assert (spec.zo.mask is None, spec.zo.calibration is None) == (case.mask is None, case.calibration is None)
    if spec.zo.mask is not None:
        assert prompts.render(spec.zo.mask, {**row, "mask": "<mask>"}, name) == case.mask
    if spec.zo.calibration is not None:
        assert prompts.render(spec.zo.calibration, row, name) == case.calibration


def test_details_of_the_papers_prompts() -> None:
    def shown(name: str, **columns: Any) -> Any:
        return prompts.render(spec_of(name).doc_to_text, {**CASES[name].row, **columns}, name)

    assert shown("copa", premise="It rained", question="effect") == "It rained so"
    assert shown("copa", premise="It rained...", question="effect") == "It rained.. so", "one full stop goes"
    assert shown("boolq", question="Is it?") == "Dogs come from wolves. Is it?\n", "one question mark stays one"
    superglue = {"question": "is it", "passage": "P.", "label": 0, "idx": 0}
    assert prompts.labels(str(spec_of("boolq").doc_to_target), superglue, ("No", "Yes"), "") == (0,)


@pytest.mark.parametrize("name", sorted(n for n in CASES if not read_task(find_task(n)).zo.source))
def test_local_rows_have_the_columns_and_labels(name: str) -> None:
    """The first rows of each split, and all labels, of the data beside the checkout."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not in ../shared/data")
    spec = spec_of(name)
    for file in sorted(folder.glob("*.jsonl")):
        rows = prepared(spec, read_jsonl(file))
        assert rows
        for number, row in enumerate(rows[:20]):
            example = data.Form(spec).render(row, number, f"{file.name}, row {number}")
            assert example.prompt and "{{" not in example.prompt and (len(example.options) > 1 or example.targets)
            if spec.zo.mask is not None:
                text = prompts.render(spec.zo.mask, {**row, "mask": "<mask>"}, name)
                assert text.count("<mask>") == 1
        if isinstance(spec.doc_to_choice, tuple):
            words = spec.doc_to_choice
            found = {prompts.labels(str(spec.doc_to_target), row, words, name)[0] for row in rows}
            assert found == set(range(len(words))), "every class, and no other label"


def test_large_model_tasks_are_scored_and_sized_as_in_the_paper() -> None:
    for name in ("sst2", "rte", "cb", "boolq", "wsc", "wic", "multirc", "copa", "record"):
        assert spec_of(name).zo.settings["scoring"] == "mean"
    for name in ("rte", "boolq", "wsc", "wic", "multirc", "record", "squad", "drop"):
        settings = spec_of(name).zo.settings
        assert (settings["n_train"], settings["n_validation"], settings["n_test"]) == (1000, 500, 1000)
    assert spec_of("cb").zo.settings["n_validation"] == spec_of("copa").zo.settings["n_validation"] == 100


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("gsm8k", "She has 3 * 4 = 12.\n#### 1,212.50.", "1,212.50"),
        ("gsm8k", "It falls by -5", "-5"),
        ("gsm8k", "no idea", "[invalid]"),
        ("squad", "  in 1999", "in 1999"),
        ("countdown", " (3 * 5) + 7", "(3 * 5) + 7"),
    ],
)
def test_what_is_taken_from_a_text(name: str, text: str, found: str) -> None:
    assert apply_filters(spec_of(name).filter_list, text) == found


# Prepare functions


def test_labelled_drops_what_has_no_label() -> None:
    rows = [{"label": 0}, {"label": -1}, {"label": 2}, {"label": None}, {}]
    assert labelled(rows) == [{"label": 0}, {"label": 2}]


def test_filled_keeps_every_entity_and_drops_rows_without_an_answer() -> None:
    row = {"query": "@placeholder or @placeholder", "entities": ["A", "B", "A"], "answers": ["B", "C", "B"]}
    assert filled([row]) == [{**row, "sentences": ["A or A", "B or B"], "right": [1]}]
    assert filled([{**row, "answers": []}, {**row, "answers": ["C"]}]) == []


def test_grouped_gathers_all_references_in_order() -> None:
    rows = [{"meaning_representation": m, "human_reference": r} for m, r in (("x", "1"), ("y", "2"), ("x", "3"), ("x", "1"))]
    assert grouped(rows) == [
        {"meaning_representation": "x", "human_reference": ["1", "3"]},
        {"meaning_representation": "y", "human_reference": ["2"]},
    ]


def test_a_line_may_hold_any_separator_of_unicode(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"a{c}b"}, ensure_ascii=False) + "\r\n" for c in "\u2028\x85\x1c\u2029"))
    assert [len(row["text"]) for row in read_jsonl(path)] == [3] * 4


# Countdown


def test_countdown_is_made_from_its_seed_and_never_in_two_splits() -> None:
    bags = []
    for split, size in SIZES.items():
        made = countdown(split)
        assert len(made) == size and made == countdown(split) == GENERATED["countdown"](split)
        assert made != countdown(split, seed=1)
        bags += [tuple(sorted(row["numbers"])) for row in made]
    assert len(bags) == len(set(bags))
    assert {len(b) for b in bags} == {3, 4}


def test_every_countdown_has_a_solution_that_uses_all_numbers() -> None:
    check = reward("countdown_reward")
    for split in SIZES:
        rows = countdown(split)
        columns = {key: [row[key] for row in rows] for key in ("numbers", "target")}
        solutions = [row["solution"] for row in rows]
        assert check.solved(solutions, **columns) == check.countdown(solutions, **columns) == [1.0] * len(rows)
        assert all(row["target"] not in row["numbers"] and 10 <= row["target"] <= 100 for row in rows)
        short = [row["numbers"][:-1] for row in rows]
        assert not any(check.solved(solutions, short, columns["target"])), "without its last number none can be written"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3 * 5 + 7", 22),
        ("(7 - 3) * 5", 20),
        (" 7/5 ", Fraction(7, 5)),
        ("7/5*5", None),  # 5 twice
        ("7/5*3 = 21", Fraction(21, 5)),
        ("3*5 + 7 = 100", 22),
        ("7", 7),
        ("3 * 5 + 8", None),  # 8 is not given
        ("3 + 3", None),  # 3 once
        ("3 ** 5", None),
        ("7 // 3", None),
        ("-3 + 7", None),
        ("3(5)", None),
        ("35", None),
        ("3 / (5 - 5)", None),
        ("3 / (7 - 7)", None),
        ("3.0 + 5", None),
        ("03 + 5", None),
        ("3 + ", None),
        ("", None),
        ("3 + 5\n+ 7", None),
        ("__import__('os')", None),
        ("x := 3", None),
        ("(" * 150 + "3" + ")" * 150, None),
        ("(" * 95 + "3" + ")" * 95, 3),
        ("٣ + 5", None),
    ],
)
def test_the_verifier_of_countdown(text: str, found: Fraction | int | None) -> None:
    assert reward("countdown_reward").value(text, [3, 5, 7]) == found


def test_countdown_pays_a_little_for_an_expression_that_misses() -> None:
    check = reward("countdown_reward")
    texts, numbers, target = ["3 * 5 + 7", "3 + 5", "3 + 9", "three"], [[3, 5, 7]] * 4, [22] * 4
    assert check.countdown(texts, numbers, target, solution=[""] * 4) == [1.0, 0.1, 0.0, 0.0]
    assert check.solved(texts, numbers, target) == [1.0, 0.0, 0.0, 0.0]


# Slots of E2E


@pytest.mark.parametrize(
    ("meaning", "text", "share"),
    [
        ("name[The Mill], food[Fast food]", "The Mill sells fast-food.", 1.0),
        ("name[The Mill], food[French]", "The Mill sells fast-food.", 0.5),
        ("name[The Mill], food[French]", "", 0.0),
        ("familyFriendly[yes]", "It welcomes children.", 1.0),
        ("familyFriendly[yes]", "It is not family-friendly.", 0.0),
        ("familyFriendly[no]", "It is not family-friendly.", 1.0),
        ("familyFriendly[no]", "It welcomes children.", 0.0),
        ("familyFriendly[no]", "It is a pub.", 0.0),
        ("near[Café Rouge], area[city centre]", "In the center of the town, near Cafe Rouge.", 1.0),
        ("customer rating[5 out of 5], priceRange[£20-25]", "It has five stars and costs 20 to 25 pounds.", 1.0),
        ("customer rating[low], priceRange[more than £30]", "Prices are above £30.", 0.5),
        ("customer rating[1 out of 5]", "It is rated 5 out of 5.", 0.0),
        ("no slots at all", "text", 0.0),
    ],
)
def test_slots_of_e2e(meaning: str, text: str, share: float) -> None:
    assert reward("e2e_reward").slots([text], [meaning], human_reference=[[]]) == [share]


@pytest.mark.skipif(not (SHARED / "e2e_nlg").is_dir(), reason="e2e_nlg is not in ../shared/data")
def test_people_tell_the_slots_and_others_texts_do_not() -> None:
    rows = read_jsonl(SHARED / "e2e_nlg" / "test.jsonl")
    meanings, texts = [r["meaning_representation"] for r in rows], [r["human_reference"] for r in rows]
    slots = reward("e2e_reward").slots
    told, shifted = slots(texts, meanings), slots(texts[len(texts) // 2 :] + texts[: len(texts) // 2], meanings)
    assert sum(told) / len(rows) > 0.9
    assert sum(shifted) / len(rows) < 0.5


def test_normalised_does_as_the_harness_exact_match() -> None:
    assert normalised("A-1, b.") == "A-1, b."
    assert normalised("A-1, b.", ignore_case=True) == "a-1, b."
    assert normalised("A-1, b.", ignore_punctuation=True) == "A1 b"
    assert normalised("A-1, b.", ignore_numbers=True) == "A-, b."
    assert normalised("x #### A", regexes_to_ignore=["(?s).*#### "], ignore_case=True) == "a"
