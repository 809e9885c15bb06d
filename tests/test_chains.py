"""Chains of methods: each stage begins with the best weights of the one before it; all that it needs is in its folder."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small import FIXED

from zo_objectives import baselines, handover, starts, subsets
from zo_objectives.active_run import Run
from zo_objectives.api import tune
from zo_objectives.building import search_seed
from zo_objectives.compare import plan_runs, run_folder, run_plan, with_budget
from zo_objectives.config import RunConfig, make_config
from zo_objectives.config_files import dump, identity, read_config
from zo_objectives.errors import InputError
from zo_objectives.families import families, family, forward_only, group, rank, told
from zo_objectives.language.tasks import load_task
from zo_objectives.methods import METHODS, in_all_stages, method_settings, named, stages
from zo_objectives.replay import export, restore, verify
from zo_objectives.results import read_history
from zo_objectives.run import execute
from zo_objectives.settings import merge, task_settings
from zo_objectives.starts import BEST, START, Start, start_of
from zo_objectives.sweep import plan_sweep, run_sweep
from zo_objectives.workbench import Workbench

OLD = Path(__file__).parent / "golden" / "lp+zo"  # as version 0.1.0 wrote it: `start: lp`
SMALL: dict[str, Any] = {
    "task": "reviews", "steps": 3, "batch": 16, "directions": 2, "n_train": 80, "n_validation": 20, "n_test": 20,
    "evaluations": 3, "ft": {"steps": 5, "batch": 8, "learning_rates": [1e-3]},
}  # fmt: skip
SHARED = {key: value for key, value in SMALL.items() if key != "task"}
TUNING = [name for name, kind in METHODS.items() if kind.tunes]
STAGES = st.builds(
    lambda method, tune: method + (f":{tune}" if tune else ""),
    st.sampled_from(TUNING),
    st.sampled_from(["", "head", "norms+head", "lora:8:q_proj", "layers:0-1+head", "pattern:a.b"]),
)
CHAINS = st.tuples(st.sampled_from([[], ["lp"]]), st.lists(STAGES, min_size=1, max_size=4)).map(lambda p: [*p[0], *p[1]])


def config(method: str, **given: Any) -> RunConfig:
    """A run as a comparison makes it."""
    return make_config(method_settings(merge(task_settings(load_task("reviews")[0]), {**SMALL, **given}), method))


def results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv").drop(columns=["seconds", "peak_memory_mb", "run"])


def validation(folder: Path) -> float:
    """The headline on validation that a run's results report."""
    rows = results(folder)
    return float(rows[rows["split"] == "validation"]["value"].iloc[0])


# What a text says


@FIXED
@given(CHAINS)
def test_a_chains_text_is_its_stages(chain: list[str]) -> None:
    text = "+".join(chain)
    assert list(stages(text)) == chain
    method, settings = named(text)
    assert method == chain[-1].partition(":")[0] and settings | {"label": ""} == named(chain[-1])[1] | {"label": ""}
    found = make_config({"task": "t", **method_settings({"task": "t"}, text)})
    assert found.called == text and "+".join(s.called for s in found.stages if s.before is None) == chain[0]
    assert [stage.called for stage in found.stages] == ["+".join(chain[: n + 1]) for n in range(len(chain))]
    assert families(text) == [stage.partition(":")[0] for stage in chain] and family(f"{text} \u00b7 f1") == method


NONE = "zero-shot+zo zo+zero-shot zo+lp lp+lp ft+icl icl+zo calibrated+ft lp:head+zo ft:+zo ft+zo: ft++zo +zo ft+ ft+sgd"


@pytest.mark.parametrize("text", [*NONE.split(), "lp+icl:lora"])
def test_what_is_no_chain_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"Unknown method|Method '.*': write METHOD"):
        method_settings({}, text)


def test_what_tunes_may_stand_in_a_chain_also_without_a_form() -> None:
    assert [name for name, kind in METHODS.items() if kind.whole] == ["grpo"]
    assert [stage.tuned for stage in config("grpo+zo:norms").stages] == ["all", "norms"]


def test_settings_of_a_stage_come_from_its_method_its_text_and_the_chain_that_ends_in_it() -> None:
    methods = {
        "zo": {"scale": 1},
        "zo:head": {"batch": 2},
        "zo:norms": {"batch": 3},
        "zo:head+zo:norms": {"scale": 4},
        "ft": {"ft": {"steps": 5}},
    }
    found = method_settings({"task": "t", "steps": 6, "methods": methods}, "zo:head+zo:norms")
    first, last = found.pop("before"), found
    assert (first["scale"], first["batch"], first["steps"], first["tune"]) == (1, 2, 6, "head")
    assert (last["scale"], last["batch"], last["steps"], last["tune"]) == (4, 3, 6, "norms")
    assert first == method_settings({"task": "t", "steps": 6, "methods": methods}, "zo:head")
    whole = in_all_stages(found | {"before": first}, seed=7)
    assert whole["seed"] == whole["before"]["seed"] == 7


@pytest.mark.parametrize("settings", [{"before": {}}, {"methods": {"zo": {"before": {}}}}, {"start": "lp"}])
def test_where_a_run_begins_is_not_a_setting(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="follows from the method's text"):
        method_settings(settings, "zo")


def test_a_wrong_setting_of_an_earlier_stage_is_named() -> None:
    with pytest.raises(InputError, match=r"Unknown setting 'stepps'. Did you mean 'steps'"):
        config("ft+zo", methods={"ft": {"ft": {"stepps": 3}}})
    with pytest.raises(InputError, match=r"Setting before.scale=-1"):
        config("zo+zo:norms", methods={"zo:norms": {"scale": 1}, "zo": {"scale": -1}})


def test_families_of_chains_stand_beside_their_last_stage() -> None:
    labels = [
        "mezo-ce+zo",
        "zo",
        "ft",
        "ft:lora+zo:head",
        "lp+zo",
        "zo:norms",
        "mezo-ce",
        "lp+mezo-ce+zo",
        "zo:head+zo:norms",
    ]
    assert sorted(labels, key=rank) == [
        "ft", "mezo-ce", "zo", "zo:norms", "ft:lora+zo:head", "lp+zo", "mezo-ce+zo", "zo:head+zo:norms", "lp+mezo-ce+zo",
    ]  # fmt: skip
    assert group("ft+zo") == "zeroth-order" and group("zo+ft") == "backprop"
    assert [forward_only(text) for text in ("zo", "lp+zo", "ft+zo", "zo+ft", "ft")] == [True, True, False, False, False]
    assert told("zo \u00b7 f1") == " with forward passes only"
    assert told("ft+zo") == " with forward passes, from where ft ends"
    assert told("zo:head+zo:norms+head") == " with forward passes only, from where zo:head ends"


# What it begins with


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """ft and chains of it and of searches, and how often ft was trained."""
    trained = 0

    def counted(run: Run) -> Any:
        nonlocal trained
        trained += 1
        return baselines.fine_tuning(run)

    folder = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(baselines.BASELINES, "ft", counted)
        plan = plan_runs(["reviews"], METHODS_COMPARED, [0], SHARED, budget=None, demo=False)
        run_plan(plan, folder, command="here", show=False, say=lambda line: None)
    yield folder, trained


METHODS_COMPARED = ["zo", "ft+zo", "ft", "ft+zo:norms", "mezo-ce+zo", "zo:head+zo:norms", "lp+mezo-ce+zo"]
CHAINED = [text for text in METHODS_COMPARED if "+" in text]


def folder_of(comparison: tuple[Path, int], text: str) -> Path:
    return comparison[0] / run_folder(config(text))


def test_a_comparison_trains_what_its_chains_begin_with_once(comparison: tuple[Path, int]) -> None:
    folder, trained = comparison
    assert trained == 1 and not list(folder.rglob("before"))
    made = {path.name for path in (folder / "runs" / "reviews").iterdir()}
    of_plan = {Path(run_folder(config(text))).name for text in METHODS_COMPARED}
    assert made == of_plan | {"mezo-ce-seed0", "zo-head-seed0", "lp-seed0", "lp+mezo-ce-seed0"}
    assert set(pd.read_csv(folder / "results.csv")["method"]) == set(METHODS_COMPARED)


@pytest.mark.parametrize("text", CHAINED)
def test_a_chain_begins_where_the_one_before_it_ends_and_never_ends_below(comparison: tuple[Path, int], text: str) -> None:
    folder, before = folder_of(comparison, text), folder_of(comparison, "+".join(stages(text)[:-1]))
    seen = [row.validation for row in read_history(folder / "history.csv") if row.validation is not None]
    assert seen[0] == pytest.approx(validation(before), abs=1e-12)
    assert validation(folder) == max(seen) >= validation(before) - 1e-12
    assert not (folder / "notes.txt").exists() or "It begins at" not in (folder / "notes.txt").read_text()


def test_ft_is_above_the_base_and_leaves_its_best_weights(comparison: tuple[Path, int]) -> None:
    """So that the tests above are of something."""
    folder = folder_of(comparison, "ft")
    history = [row.validation for row in read_history(folder / "history.csv") if row.validation is not None]
    assert validation(folder) == max(history) > history[0]
    assert sum(values.numel() for values in load_file(folder / BEST).values()) == 1_066_112
    start = start_of(folder_of(comparison, "ft+zo"))
    assert start is not None and start.ended is not None and start.ended.validation == validation(folder)
    assert {name: bool(torch.equal(v, start.values[name])) for name, v in load_file(folder / BEST).items()} == dict.fromkeys(
        load_file(folder / BEST), True
    )


@pytest.mark.parametrize("text", CHAINED)
def test_costs_are_those_of_all_stages_and_the_history_is_its_own(comparison: tuple[Path, int], text: str) -> None:
    folder, before = folder_of(comparison, text), folder_of(comparison, "+".join(stages(text)[:-1]))
    last = read_history(folder / "history.csv")[-1]
    own, whole, earlier = {}, pd.read_csv(folder / "results.csv").iloc[0], pd.read_csv(before / "results.csv").iloc[0]
    for name in ("forwards", "examples", "tokens"):
        own[name] = getattr(last, name)
        assert whole[name] == own[name] + earlier[name]
    assert own["forwards"] == 2 * 2 * 3
    assert whole["seconds"] == pytest.approx(last.seconds + earlier["seconds"], abs=0.02)
    assert whole["peak_memory_mb"] >= earlier["peak_memory_mb"]
    assert whole["best_step"] <= 3


@pytest.mark.parametrize("text", CHAINED)
def test_a_chain_replays_from_its_own_folder(comparison: tuple[Path, int], text: str, tmp_path: Path) -> None:
    alone = shutil.copytree(folder_of(comparison, text), tmp_path / "alone")
    assert "bit for bit" in verify(alone)
    if text != "ft+zo":
        return
    export(alone, tmp_path / "model")
    untouched = execute(config("zero-shot", model=str(tmp_path / "model")), tmp_path / "zero", show=False)
    pd.testing.assert_series_equal(results(untouched)["value"], results(alone)["value"])
    header = restore(alone, step=0)
    assert header.weights is not None and header.step == 0
    (alone / START).unlink()
    with pytest.raises(InputError, match=r"lacks start.safetensors, which ft\+zo began with"):
        verify(alone)


def test_a_finished_chain_is_left_alone_and_goes_on_without_the_run_before(
    comparison: tuple[Path, int], tmp_path: Path
) -> None:
    alone = shutil.copytree(folder_of(comparison, "ft+zo"), tmp_path / "alone")
    execute(config("ft+zo"), alone, show=False)
    assert not (alone / "before").exists()
    (alone / "results.csv").unlink()
    execute(config("ft+zo"), alone, show=False)
    assert not (alone / "before").exists()
    pd.testing.assert_frame_equal(results(alone), results(folder_of(comparison, "ft+zo")))
    with pytest.raises(InputError, match=r"before\.ft\.steps was 5 there, and is 6 now"):
        execute(config("ft+zo", methods={"ft": {"ft": {"steps": 6}}}), alone, show=False)
    execute(config("ft+zo", methods={"ft": {"on_failure": "skip-step"}}), alone, show=False)  # how, not which


@pytest.mark.parametrize("stop", [1, 5, 9, 12])
def test_a_chain_killed_in_either_stage_goes_on_to_the_same_bits(
    comparison: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """ft looks at scores nine times: two at the start, five steps, two splits; then comes zo."""
    watch, calls = Run.watch, 0

    def dying(self: Run, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return watch(self, *arguments)

    monkeypatch.setattr(Run, "watch", dying)
    with pytest.raises(KeyboardInterrupt):
        execute(config("ft+zo"), tmp_path, show=False)
    monkeypatch.undo()
    assert (tmp_path / "before" / "results.csv").exists() == (tmp_path / START).exists() == (stop > 9)
    execute(config("ft+zo"), tmp_path, show=False)
    whole = folder_of(comparison, "ft+zo")
    for name in ("journal.zoj", BEST, "predictions.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    a, b = load_file(tmp_path / START), load_file(whole / START)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    pd.testing.assert_frame_equal(results(tmp_path), results(whole))


def test_a_start_of_another_run_is_made_again(tmp_path: Path) -> None:
    """Killed before its first step, a chain leaves a start, and may be given other settings."""
    first, other = config("zo+zo:norms"), config("zo+zo:norms", methods={"zo": {"scale": 0.7}})
    execute(first.before, tmp_path / "a" / "before", show=False)  # type: ignore[arg-type]
    execute(other.before, tmp_path / "b", show=False)  # type: ignore[arg-type]
    ended = starts.ended(tmp_path / "a" / "before")
    starts.keep_start(tmp_path / "a", {}, first.before, ended)  # type: ignore[arg-type]
    assert starts.is_kept(tmp_path / "a", first.before)  # type: ignore[arg-type]
    assert not starts.is_kept(tmp_path / "a", other.before)  # type: ignore[arg-type]
    folder = execute(other, tmp_path / "a", show=False, earlier=lambda before, output: tmp_path / "b")
    start = start_of(folder)
    assert start is not None and start.ended == starts.ended(tmp_path / "b")


# What a bench keeps


def test_states_of_the_base_do_not_outlive_a_deep_start_and_survive_a_shallow_one(
    comparison: tuple[Path, int], tmp_path: Path
) -> None:
    bench = Workbench.open(config("zo"))
    execute(config("zo"), tmp_path / "a", bench=bench, show=False)
    known, base = bench.sites, {n: p.clone() for n, p in bench.lm.model.named_parameters() if not n.endswith(".rows")}
    assert known is not None and not bench.stale
    execute(config("mezo-ce+zo"), tmp_path / "b", bench=bench, show=False)
    assert bench.sites is known and not bench.stale
    bench.fresh()
    assert all(torch.equal(p, base[n]) for n, p in bench.lm.model.named_parameters())
    execute(config("ft+zo"), tmp_path / "c", bench=bench, show=False)
    assert bench.sites is not known and bench.stale
    execute(config("zo"), tmp_path / "d", bench=bench, show=False)
    for name, text in (("a", "zo"), ("b", "mezo-ce+zo"), ("c", "ft+zo"), ("d", "zo")):
        assert (tmp_path / name / "journal.zoj").read_bytes() == (folder_of(comparison, text) / "journal.zoj").read_bytes()


def test_lora_of_a_later_run_keeps_out_of_the_label_rows_of_an_earlier_one(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    bench = Workbench.open(config("zo"))
    execute(config("zo", steps=1), tmp_path / "a", bench=bench, show=False)
    folder = execute(config("zo:lora:1", steps=1), tmp_path / "b", bench=bench, show=False)
    assert "bit for bit" in verify(folder)


# Adapters


def test_lora_is_merged_and_its_head_polished(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = config("ft:lora:2+zo:head", ft={"steps": 8, "batch": 8, "learning_rates": [1e-2]})
    folder = execute(settings, tmp_path, show=False)
    start = start_of(folder)
    assert start is not None and start.plain
    names = {n for n, _ in Workbench.open(config("zo")).lm.model.named_parameters()}
    assert set(start.values) < names and all(".mlp." in n or ".self_attn." in n for n in start.values)
    seen = read_history(folder / "history.csv")[0].validation
    assert seen == pytest.approx(validation(folder / "before")) and validation(folder) >= validation(folder / "before")
    assert "bit for bit" in verify(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_begun_where_lora_ended_says_what_it_said(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    ids, form = torch.tensor([[5, 9, 11, 30]]), "lora:2+norms"
    lm = starts.begun(tiny.make(family), None, form)
    subset = subsets.select(lm, form, [])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if name in subset.names:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    said = lm.model(input_ids=ids).logits
    starts.keep_best(tmp_path, lm, {n: p for n, p in lm.model.named_parameters() if n in subset.names})
    run = make_config({"task": "t", "tune": form})
    found = handover._merged(tiny.make(family), None, run.tune, *starts.best_of(tmp_path))
    again = starts.begun(tiny.make(family), Start(found, None), "head")
    assert set(found) <= {n for n, _ in tiny.make(family).model.named_parameters()}
    torch.testing.assert_close(again.model(input_ids=ids).logits, said, atol=1e-4, rtol=0)


def test_what_cannot_be_merged_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    for form in ("prefix:3", "prompt", "lora+prefix"):
        with pytest.raises(InputError, match=rf"the {form.split('+')[-1].partition(':')[0]} that ft:.* cannot be merged"):
            execute(config(f"ft:{form}+zo"), tmp_path / "run", show=False)
        with pytest.raises(InputError, match="cannot be merged"):
            plan_runs(["reviews"], [f"zo:{form}+zo"], [0], SHARED, budget=None, demo=False)
    assert not (tmp_path / "run").exists()
    starts.check(config("lp+zo", tune="prefix"))


def test_a_prefix_may_come_last_and_is_saved_with_what_it_stands_before(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = execute(config("ft+zo:prefix:3", steps=1), tmp_path / "run", show=False)
    notes = (folder / "notes.txt").read_text() if (folder / "notes.txt").exists() else ""
    differs = read_history(folder / "history.csv")[0].validation != validation(folder / "before")
    assert ("virtual tokens stand before the text" in notes) == differs
    export(folder, tmp_path / "model")
    ids = torch.tensor([[5, 9, 11, 30]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its notes on deprecated names
        said = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model").eval()(**given).logits
        torch.testing.assert_close(said, restore(folder).lm.model(**given).logits)


def test_label_rows_are_of_the_same_tokens() -> None:
    lm = tiny.make()
    subsets.with_rows(lm, [3, 4])
    subsets.with_rows(lm, [3, 4])
    with pytest.raises(InputError, match="must read the same data"):
        subsets.with_rows(lm, [3, 5])
    subsets.without_rows(lm)
    assert set(subsets.select(lm, "head", [3, 5]).names) >= {"lm_head.rows"}


def test_sizes_are_those_of_the_start() -> None:
    """A label row is as large as what it was made into, not as what it was."""
    rows = {"tokens": torch.tensor([3, 4]), "rows": torch.full((2, 32), 2.0)}
    plain = {"model.norm.weight": torch.full((32,), 3.0)}
    ended = starts.Ended(0, 0, 0, 0.0, 0.0, "f1", 0.0)
    lm = starts.begun(tiny.make(), Start(rows | plain, ended), "head")
    gains = subsets.select(lm, "head", [3, 4]).gains
    effective = lm.head.weight[[3, 4]] + 2.0
    assert gains["lm_head.rows"] == pytest.approx(float(effective.square().mean().sqrt()))
    assert gains["model.norm.weight"] == pytest.approx(3.0)


def test_another_models_start_is_refused() -> None:
    with pytest.raises(InputError, match="of another model"):
        starts.begun(tiny.make(), Start({"model.norm.weight": torch.ones(7)}, None), "head")


# Budgets and draws


def test_the_searches_of_a_chain_share_a_budget() -> None:
    shared = with_budget(config("ft+mezo-ce+zo"), 41)  # 4 forwards a step: 20 for each of two
    first, second, third = shared.stages
    assert first == config("ft") and (second.steps, third.steps) == (5, 5)
    assert with_budget(config("ft+zo"), 41).steps == with_budget(config("zo"), 41).steps == 10
    assert with_budget(config("ft"), 1) == config("ft")
    with pytest.raises(InputError, match="3 for each of 2 stages, is less than one step of 4"):
        with_budget(config("mezo-ce+zo"), 7)


def test_a_stage_with_a_part_of_the_budget_is_another_run(tmp_path: Path) -> None:
    plan = plan_runs(["reviews"], ["mezo-ce", "mezo-ce+zo", "ft+zo"], [0], SHARED, budget=16, demo=False)
    mezo, chain, polished = plan.configs
    assert (mezo.steps, chain.steps, polished.steps) == (4, 2, 4) and chain.before and polished.before
    folder = tmp_path / run_folder(chain)
    assert plan.earlier(tmp_path, chain.before, folder) == folder / "before"
    assert plan.earlier(tmp_path, polished.before, folder) == tmp_path / "runs/reviews/ft-seed0"


def test_a_second_search_draws_afresh() -> None:
    assert search_seed(config("ft+zo", seed=5)) == search_seed(config("lp+zo", seed=5)) == 5
    seeds = [search_seed(stage) for stage in config("zo:head+ft+zo:norms+mezo-ce", seed=5).stages]
    assert seeds[0] == 5 and seeds[1] == seeds[2] and len(set(seeds)) == 3


def test_a_chain_that_cannot_work_on_a_task_is_left_out_with_the_reason() -> None:
    plan = plan_runs(["copa", "tidy"], ["lp+zo", "ft+zo", "mezo-ce+zo"], [0], {}, budget=None, demo=False)
    assert {(c.task, c.called) for c in plan.configs} == {("copa", "ft+zo"), ("copa", "mezo-ce+zo"), ("tidy", "ft+zo")} | {
        ("tidy", "mezo-ce+zo")
    }
    assert any("copa: no lp+zo, since its options differ" in note for note in plan.notes)


# Sweeps and Python


def test_a_sweeps_grid_is_of_the_last_stage_and_all_points_begin_with_one_run(tmp_path: Path) -> None:
    settings = {**SHARED, "steps": 1, "ft": {**SMALL["ft"], "steps": 1}}
    points = plan_sweep(["reviews"], ["zo+zo:norms"], [0, 1], {"scale": [0.1, 0.2]}, settings, masked=False)
    assert {(p.config.seed, p.config.scale, p.config.before.scale) for p in points if p.config.before} == {
        (seed, scale, config("zo").scale) for seed in (0, 1) for scale in (0.1, 0.2)
    }
    paper = plan_sweep(["reviews"], ["mezo-ce+mezo-ce:all"], [0], None, {}, masked=False)
    suggested = make_config({"task": "reviews", **task_settings(load_task("reviews")[0])})
    assert {p.config.batch for p in paper} == {16}
    assert {p.config.before.batch for p in paper if p.config.before} == {suggested.batch}
    run_sweep([p for p in points if p.config.seed == 0], tmp_path, show=False, say=lambda line: None)
    made = {path.name for path in (tmp_path / "runs/reviews/zo+zo-norms").iterdir()}
    assert made == {"zo-seed0", "scale=0.1-seed0", "scale=0.2-seed0"}


def test_a_chain_from_python_with_an_objective_of_ones_own(tmp_path: Path) -> None:
    def share(predictions: list[int], references: list[int]) -> float:
        return float(np.mean(np.array(predictions) == np.array(references)))

    tuned = tune(method="zo+zo:norms", objective=share, output=tmp_path, show=False, **{**SMALL, "steps": 1})
    assert set(tuned.results["method"]) == {"zo+zo:norms"} and tuned.results["metric"].iloc[0] == "share"
    assert (tmp_path / "before" / "results.csv").exists()
    assert tuned.model()[0].config.vocab_size > 0


def test_what_ends_in_backprop_is_exported_and_has_nothing_to_verify(tmp_path: Path) -> None:
    folder = execute(config("lp+ft", ft={**SMALL["ft"], "learning_rates": [1e-5]}), tmp_path / "run", show=False)
    export(folder, tmp_path / "model")
    untouched = execute(config("zero-shot", model=str(tmp_path / "model")), tmp_path / "zero", show=False)
    pd.testing.assert_series_equal(results(untouched)["value"], results(folder)["value"])
    with pytest.raises(InputError, match="no journal to verify"):
        verify(folder)
    with pytest.raises(InputError, match="its best step alone"):
        export(folder, tmp_path / "other", step=99)


def test_a_run_that_left_no_weights_is_named(comparison: tuple[Path, int], tmp_path: Path) -> None:
    old = shutil.copytree(folder_of(comparison, "ft"), tmp_path / "before")
    (old / BEST).unlink()
    with pytest.raises(InputError, match=r"before has no best\.safetensors"):
        execute(config("ft+zo"), tmp_path, show=False)


# Old folders


def test_an_old_run_from_a_probe_is_read_and_replays(tmp_path: Path) -> None:
    found = read_config(OLD)
    assert [(stage.method, stage.called) for stage in found.stages] == [("lp", "lp"), ("zo", "lp+zo")]
    given = {**SMALL, "tune": "head", "scale": 0.5, "ft": {**SMALL["ft"], "steps": 3}}  # the default then
    assert identity(found) == identity(make_config(method_settings(given, "lp+zo")))
    assert "step 1 replays to the saved weights bit for bit" in verify(OLD)
    copied = shutil.copytree(OLD, tmp_path / "old")
    assert execute(found, copied, show=False) == copied and not (copied / "before").exists()


@pytest.mark.parametrize(("start", "count"), [("base", 1), ("lp", 2)])
def test_an_old_configuration_is_read(start: str, count: int, tmp_path: Path) -> None:
    lines = [line for line in dump(config("zo")).splitlines() if not line.startswith("before")]
    (tmp_path / "config.yaml").write_text("\n".join([*lines, f"start: {start}"]))
    assert len(read_config(tmp_path).stages) == count


def test_a_chains_configuration_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(config("lp+mezo-ce+zo:norms")))
    assert read_config(tmp_path) == config("lp+mezo-ce+zo:norms")
