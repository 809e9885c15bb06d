"""Prompts: templates on rows, options, one right option or several; what comes from the row is never a template."""

from typing import Any

import pytest

from zo_objectives.errors import InputError
from zo_objectives.language import prompts

ROW: dict[str, Any] = {"text": "a  b", "right": [2, 0], "answers": ["air", "earth"], "words": ["earth", "fire", "air"]}
OPTIONS = ("earth", "fire", "air")


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("right", (2, 0)),
        ("{{right}}", (2, 0)),
        ("answers", (2, 0)),
        ("{{answers}}", (2, 0)),
        ("{{[answers[1], answers[1]]}}", (0,)),
        ("['1', '0', 1]", (1, 0)),
        ("{{right[0]}}", (2,)),
        (1, (1,)),
        ("{{answers[0]}}", (2,)),
    ],
)
def test_several_right_options_the_main_one_first(spec: str | int, found: tuple[int, ...]) -> None:
    assert prompts.labels(spec, ROW, OPTIONS, "here") == found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{{[]}}", "here: the list of right options is empty"),
        ("{{[0, 3]}}", "here: label 3 has no option: there are 3"),
        ("{{['air', 'water']}}", "here: the label 'water' is none of the options"),
        ("{{[-1]}}", r"zo.prepare: labelled"),
        ("[0, 1", "none of the options"),
    ],
)
def test_wrong_labels_are_named(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        prompts.labels(spec, ROW, OPTIONS, "here")


def test_an_option_that_looks_like_a_list_is_an_option() -> None:
    assert prompts.labels("{{'[0]'}}", ROW, ("[1]", "[0]"), "here") == (1,)
    assert prompts.labels("{{'[0]'}}", ROW, ("a", "b"), "here") == (0,)


@pytest.mark.parametrize("label", [float("nan"), 0.5, None, 3])
def test_a_label_that_is_no_index_is_refused(label: object) -> None:
    with pytest.raises(InputError, match="has no option"):
        prompts.labels("label", {"label": label}, OPTIONS, "here")


def test_options_of_a_row_are_taken_as_they_are() -> None:
    row = {"words": ["{{secret}}", "{% raw %}"], "secret": "told"}
    assert prompts.options("words", row, "here") == ("{{secret}}", "{% raw %}")
    assert prompts.options(["{{secret}}", "{% raw %}"], row, "here") == ("told", "{% raw %}"), "a list is the task file's"
    assert prompts.render("{{words[0]}}", row, "here") == "{{secret}}"


def test_options_of_a_mapping_are_its_values() -> None:
    assert prompts.options("options", {"options": {"A": "earth", "B": "air"}}, "here") == ("earth", "air")
    assert prompts.options("{{options}}", {"options": {"A": "earth", "B": "air"}}, "here") == ("earth", "air")


def test_the_harness_filter_on_templates() -> None:
    assert prompts.render("{{text|regex_replace('\\\\s+', ' ')}}", ROW, "here") == "a b"
    assert prompts.render("{{text|regex_replace(' ', '-', 1)}}", ROW, "here") == "a- b"
    with pytest.raises(InputError, match=r"here: the template .* is wrong"):
        prompts.render("{{text|regex_replace('(', '')}}", ROW, "here")


def test_templates_reach_no_code() -> None:
    for template in ("{{''.__class__.__mro__}}", "{{text.__init__.__globals__}}"):
        with pytest.raises(InputError, match="here: "):
            prompts.render(template, ROW, "here")


def test_several_targets_in_a_text() -> None:
    assert prompts.targets("{{['way to 4', 4]}}", {}, "here") == ("way to 4", "4")
    assert prompts.targets("text", {"text": "[sic]"}, "here") == ("[sic]",)
