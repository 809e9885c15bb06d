"""Settings: how they are merged, read from --set, and refused by name."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo_objectives.config import RunConfig, make_config
from zo_objectives.config_files import dump, read_config
from zo_objectives.errors import InputError
from zo_objectives.language.tasks import TaskSpec
from zo_objectives.methods import METHODS, method_settings, named
from zo_objectives.settings import for_task, merge, parse_set, read_settings, task_settings

VALUES = st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3))
TREES = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        make_config(settings)
    return str(caught.value)


# Merging


def test_merge_lays_mappings_over_one_another() -> None:
    base = {"a": 1, "ft": {"steps": 1, "batch": 2}, "list": [1, 2]}
    merged = merge(base, {"ft": {"steps": 3}, "list": [4], "new": {"x": 1}})
    assert merged == {"a": 1, "ft": {"steps": 3, "batch": 2}, "list": [4], "new": {"x": 1}}
    assert base == {"a": 1, "ft": {"steps": 1, "batch": 2}, "list": [1, 2]}


@given(TREES, TREES, TREES)
def test_merge_keeps_order_of_precedence(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]) -> None:
    assert merge(a, {}) == merge({}, a) == merge(a, a) == a
    assert merge(a, b).items() >= {k: v for k, v in b.items() if not isinstance(v, dict)}.items()
    assert set(merge(merge(a, b), c)) == set(a) | set(b) | set(c)


# --set


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("learning_rate=1e-3", {"learning_rate": 1e-3}),
        ("scale=2.5E+2", {"scale": 250.0}),
        ("scale=-1.e2", {"scale": -100.0}),
        ("ft.learning_rates=[1e-3, 0.1, 1]", {"ft": {"learning_rates": [1e-3, 0.1, 1]}}),
        ("ft={steps: 3, weight_decay: 1e-2}", {"ft": {"steps": 3, "weight_decay": 1e-2}}),
        ("methods.zo.scale=0.5", {"methods": {"zo": {"scale": 0.5}}}),
        ("tune=layers:0-1", {"tune": "layers:0-1"}),
        ("tune=pattern:a=b", {"tune": "pattern:a=b"}),
        ("task=e2e_nlg", {"task": "e2e_nlg"}),
        ("model=1e3b", {"model": "1e3b"}),
        ("n_train=null", {"n_train": None}),
        ("n_train=", {"n_train": None}),
        ("relative=false", {"relative": False}),
    ],
)
def test_set_reads_values_as_what_they_are(text: str, settings: dict[str, Any]) -> None:
    read = parse_set([text])
    assert read == settings
    assert repr(read) == repr(settings), "1 is not 1.0"


def test_later_assignments_win_and_add_up() -> None:
    assert parse_set(["ft.steps=1", "seed=1", "ft.batch=2", "seed=2"]) == {"ft": {"steps": 1, "batch": 2}, "seed": 2}
    assert parse_set([]) == {}


def test_a_number_in_scientific_notation_works_for_whole_numbers_too() -> None:
    assert make_config({"task": "t", **parse_set(["steps=1e3", "learning_rate=1e-3"])}).steps == 1000


@pytest.mark.parametrize("text", ["steps", "=3", "", "steps: 3", "ft..steps=1", ".steps=1", "ft.=1"])
def test_set_without_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write key=value"):
        parse_set([text])


def test_set_with_broken_yaml_is_refused() -> None:
    with pytest.raises(InputError, match=r"'\[1, 2' is not a value"):
        parse_set(["ft.learning_rates=[1, 2"])


# Methods


def test_settings_of_a_method_are_laid_over_the_others() -> None:
    settings = {"task": "t", "scale": 1, "ft": {"steps": 5}, "methods": {"zo": {"scale": 2}, "ft": {"ft": {"batch": 3}}}}
    of = {name: {"method": name, "label": "", "task": "t"} for name in ("zo", "ft", "zero-shot")}
    assert method_settings(settings, "zo") == of["zo"] | {"scale": 2, "ft": {"steps": 5}}
    assert method_settings(settings, "ft") == of["ft"] | {"scale": 1, "ft": {"steps": 5, "batch": 3}}
    assert method_settings(settings, "zero-shot") == of["zero-shot"] | {"scale": 1, "ft": {"steps": 5}}
    assert "methods" in settings


@pytest.mark.parametrize(
    ("text", "method", "settings"),
    [
        ("zo", "zo", {"label": ""}),
        ("zo:lora:4", "zo", {"label": "zo:lora:4", "tune": "lora:4"}),
        ("mezo-ce:norms+head", "mezo-ce", {"label": "mezo-ce:norms+head", "tune": "norms+head"}),
        ("ft:prefix", "ft", {"label": "ft:prefix", "ft": {"tune": "prefix"}}),
        ("lp+zo:all", "zo", {"label": "lp+zo:all", "tune": "all"}),
        ("icl", "icl", {"label": "", "demonstrations": 32}),
        ("calibrated", "calibrated", {"label": "", "scoring": "calibrated"}),
    ],
)
def test_a_methods_name_says_its_settings(text: str, method: str, settings: dict[str, Any]) -> None:
    assert named(text) == (method, {"method": method, **settings})
    assert make_config({"task": "t", **named(text)[1]}).called == text


def test_what_is_set_for_a_name_comes_after_what_is_set_for_its_method() -> None:
    methods = {"ft": {"ft": {"steps": 5, "batch": 3}}, "ft:lora": {"ft": {"steps": 7}}}
    assert method_settings({"methods": methods}, "ft:lora")["ft"] == {"tune": "lora", "steps": 7, "batch": 3}
    assert method_settings({"methods": methods}, "ft")["ft"] == {"steps": 5, "batch": 3}


def test_settings_of_a_task_are_laid_over_the_others_and_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("steps: 5\nlearning_rate: 1e-3\ntasks: {sst2: {steps: 7}, rte: {methods: {zo: {steps: 9}}}}\n")
    settings = read_settings(path)
    of = {task: for_task(settings, task, ["sst2", "rte", "cb"]) for task in ("sst2", "rte", "cb")}
    assert [of[task]["steps"] for task in of] == [7, 5, 5] and of["cb"]["learning_rate"] == 1e-3
    assert method_settings(of["rte"], "zo")["steps"] == 9
    with pytest.raises(InputError, match="Did you mean 'sst2'"):
        for_task({"tasks": {"sst3": {}}}, "sst2", ["sst2"])
    with pytest.raises(InputError, match="one mapping for each task"):
        for_task({"tasks": 3}, "sst2", ["sst2"])
    path.write_text("- a")
    with pytest.raises(InputError, match="must hold a mapping of settings, found list"):
        read_settings(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["zo:", "icl:lora", "lp+icl", "lp+", "zero-shot+zo", "zo+lp", ":zo"])
def test_a_methods_name_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        named(text)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"mezo": {}}, "Unknown method 'mezo'. Did you mean 'mezo-ce'"),
        ("zo", "must hold one mapping"),
        ({"zo": 3}, "must hold one mapping"),
    ],
)
def test_wrong_method_settings_are_refused(methods: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method_settings({"methods": methods}, "zo")


# The configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "Unknown setting 'learning_rat'. Did you mean 'learning_rate'?"),
        ({"ft": {"stepps": 1}}, "Unknown setting 'stepps'. Did you mean 'steps'?"),
        ({"steps": -1}, "Setting steps=-1: Input should be greater than or equal to 0."),
        ({"steps": "many"}, "Setting steps='many': Input should be a valid integer"),
        ({"steps": 1.5}, "Setting steps=1.5: "),
        ({"scale": 0}, "Setting scale=0: Input should be greater than 0."),
        ({"scale": float("nan")}, "Setting scale=nan: "),
        ({"learning_rate": float("inf")}, "Setting learning_rate=inf: "),
        ({"ft": {"learning_rates": []}}, "Setting ft.learning_rates=[]: "),
        ({"dtype": "float8"}, "Setting dtype='float8': Input should be 'float32', 'bfloat16' or 'float16'."),
        ({"method": "mezo"}, "Unknown method 'mezo'. Did you mean 'mezo-ce'?"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    assert refusal({"task": "t", **settings}).startswith(message)


def test_a_missing_task_is_named() -> None:
    assert "task" in refusal({})


def test_defaults_make_a_configuration_for_every_method() -> None:
    for method in METHODS:
        config = make_config({"task": "t", "method": method})
        assert config.forwards(config.steps) == 2 * config.directions * config.steps
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3


def test_settings_that_a_task_suggests() -> None:
    zo = {"source": "embedded:x", "settings": {"steps": 5, "ft": {"steps": 1}}, "demo": {"ft": {"batch": 2}}}
    spec = TaskSpec.model_validate({"task": "t", "doc_to_text": "x", "zo": zo})
    assert task_settings(spec) == {"steps": 5, "ft": {"steps": 1}}
    assert task_settings(spec, demo=True) == {"steps": 5, "ft": {"steps": 1, "batch": 2}}


# Run folders


def test_a_dumped_configuration_is_read_back(tmp_path: Path) -> None:
    config = make_config({"task": "té", "learning_rate": 1e-5, "ft": {"learning_rates": [1e-3]}, "seed": 3})
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert read_config(tmp_path) == config
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no run folder"),
        ("", "is empty or half-written"),
        ("[1", "cannot be read"),
        ("task: t\nstep: 1\n", "Did you mean 'steps'"),
    ],
)
def test_a_broken_configuration_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path)
