"""Baselines and protocols on the embedded model: demonstrations, few shots, linear probes, forms of fine-tuning, sweeps."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from typer.testing import CliRunner

from zo_objectives import baselines, probing, sweep
from zo_objectives.cli import app
from zo_objectives.compare import plan_runs, run_folder, run_plan
from zo_objectives.config import RunConfig, make_config
from zo_objectives.demonstrations import Demonstrations, answered
from zo_objectives.errors import InputError, Unfit
from zo_objectives.language import data
from zo_objectives.language.hf import encode
from zo_objectives.language.outputs import Example
from zo_objectives.language.tasks import TaskSpec, find_task, read_task
from zo_objectives.losses import cross_entropy
from zo_objectives.methods import method_settings
from zo_objectives.replay import verify
from zo_objectives.run import execute
from zo_objectives.scoring import Pool
from zo_objectives.search import journal
from zo_objectives.settings import task_settings
from zo_objectives.workbench import Workbench

SMALL: dict[str, Any] = {
    "task": "reviews", "steps": 2, "batch": 16, "directions": 2, "n_train": 80, "n_validation": 20, "n_test": 20,
    "evaluations": 2, "ft": {"steps": 3, "batch": 8, "learning_rates": [1e-3]},
}  # fmt: skip
CHOICE = TaskSpec.model_validate(
    {
        "task": "t",
        "dataset_path": "x",
        "description": "Judge {{kind}}s.\n\n",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}} is",
        "doc_to_target": "label",
        "doc_to_choice": ["bad", "good"],
        "zo": {"mask": "{{text}} is{{mask}}."},
    }
)
ROWS = [
    {"text": f"the {a} {b}", "label": i % 2, "kind": "film"}
    for i, (a, b) in enumerate((a, b) for a in "abcd" for b in "xyz")
]


def config(method: str, **given: Any) -> RunConfig:
    return make_config(method_settings({**SMALL, **given}, method))


def scores(folder: Path) -> dict[str, float]:
    rows = pd.read_csv(folder / "results.csv")
    return {f"{r['split']} {r['metric']}": r["value"] for _, r in rows.iterrows()}


# Demonstrations


def splits_of(form: data.Form, train: int = 8) -> data.Splits:
    examples = tuple(form.render(row, i, "here") for i, row in enumerate(ROWS))
    return data.Splits(examples[:train], examples[train : train + 2], examples[train + 2 :], shown=examples[:train])


def test_demonstrations_are_answered_examples_of_train_before_the_prompt() -> None:
    lm, form = tiny.make(), data.Form(CHOICE)
    splits = splits_of(form)
    assert answered(lm, form, splits.train[1]) == "the a y is good"
    shown = Demonstrations.of(lm, form, splits.shown, 3, seed=0)
    after, note = shown.before(splits)
    texts = [answered(lm, form, e) for e in shown.shown]
    first = after.test[0].prompt
    fitting = first.count("\n\n") - 1
    assert 0 < fitting <= 3 and f"{fitting}" in note
    assert first == "Judge films.\n\n" + "".join(t + "\n\n" for t in texts[:fitting]) + "the d y is"
    assert after.test[0].options == splits.test[0].options and after.test[0].label == splits.test[0].label
    for before, example in zip(splits.train, after.train, strict=True):  # none shows its own answer
        assert answered(lm, form, before) not in example.prompt
    assert Demonstrations.of(lm, form, splits.shown, 3, seed=1).shown != shown.shown


def test_as_many_demonstrations_as_fit_and_no_fewer() -> None:
    lm, form = tiny.make(), data.Form(CHOICE)
    splits = splits_of(form)
    shown = Demonstrations.of(lm, form, splits.shown, 8, seed=0)
    after, note = shown.before(splits)
    prompt, option = after.test[0].prompt, " good"
    taken = len(encode(lm, prompt + option)[0])
    fitting = prompt.count("\n\n") - 1
    assert fitting < 8 and taken <= lm.context < taken + shown.lengths[fitting] + 2
    assert f"of 8 demonstrations fit before a test prompt of {lm.name}" in note


def test_demonstrations_of_a_masked_model_have_their_word_at_the_mask() -> None:
    lm = tiny.make_masked("roberta")
    form = data.Form(CHOICE, lm.mask)
    after, _ = Demonstrations.of(lm, form, (splits := splits_of(form)).shown, 1, seed=0).before(splits)
    assert after.test[0].prompt.count(str(lm.mask)) == 1
    assert any(f" is {word}." in after.test[0].prompt for word in ("bad", "good"))


def test_the_first_rows_are_shown_where_the_task_says_so() -> None:
    first = TaskSpec.model_validate(CHOICE.model_dump() | {"fewshot_config": {"sampler": "first_n"}})
    form = data.Form(first)
    splits = splits_of(form)
    assert Demonstrations.of(tiny.make(), form, splits.shown, 3, seed=7).shown == splits.train[:3]


# Few shots


def test_few_shots_are_so_many_of_each_class_in_two_disjoint_parts() -> None:
    rows = [{"label": 0 if i % 3 else 1} for i in range(60)]
    labels = [row["label"] for row in rows]
    train, validation = data.few_shot(rows, labels, 8, seed=13)
    for part in (train, validation):
        assert Counter(row["label"] for _, row in part) == {0: 8, 1: 8}
        assert [i for i, _ in part] == sorted(i for i, _ in part)
    assert not {i for i, _ in train} & {i for i, _ in validation}
    assert data.few_shot(rows, labels, 8, seed=13) == (train, validation)
    assert data.few_shot(rows, labels, 8, seed=21)[0] != train
    scarce = data.few_shot(rows, labels, 15, seed=13)  # there are 20 of class 1
    assert [Counter(row["label"] for _, row in part) for part in scarce] == [{0: 15, 1: 10}, {0: 15, 1: 10}]


def test_what_stands_in_a_later_split_is_left_out_of_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    texts = {"train": ["a", "b", "c", "d"], "validation": ["b", "e"], "test": ["c", "e", "f"]}
    for split, found in texts.items():
        rows = [json.dumps({"text": t, "label": 0, "kind": "k"}) for t in found]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    splits = data.load(data.Form(CHOICE), tmp_path)
    assert [[e.row["text"] for e in getattr(splits, s)] for s in data.SPLITS] == [["a", "d"], ["b"], ["c", "e", "f"]]
    assert splits.leaks == 3


def test_shots_reach_a_run_and_depend_on_its_seed() -> None:
    bench = Workbench.open(config("zo", shots=5, seed=13))
    assert [len(part) for part in (bench.train, bench.validation)] == [10, 10]
    assert not bench.serves(config("zo", shots=5, seed=21)) and bench.serves(config("mezo-ce", shots=5, seed=13))


def test_examples_with_demonstrations_are_those_of_their_seed() -> None:
    whole = {"n_train": None, "demonstrations": 2}
    bench = Workbench.open(config("zo", **whole, seed=1))
    assert not bench.serves(config("zo", **whole, seed=2)) and bench.serves(config("mezo-ce", **whole, seed=1))
    assert Workbench.open(config("zo", n_train=None, seed=1)).serves(config("zo", n_train=None, seed=2))


@pytest.mark.parametrize(("long", "done"), [("drop", "left out"), ("cut", "cut at their beginning")])
def test_how_many_examples_do_not_fit_is_told(long: str, done: str, tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split, count in (("train", 12), ("validation", 5), ("test", 5)):
        rows = [{"text": f"{split} {i} " + "good " * (600 if i == 0 else 3), "label": i % 2} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bench = Workbench.open(config("zo", data_dir=str(tmp_path), long_prompts=long))
    assert bench.notes == [f"3 of 22 examples are too long for reviews-1m, and were {done}."]
    assert len(bench.pool.examples) == (19 if long == "drop" else 22)
    assert max(map(len, bench.pool.choices.sequences)) <= bench.lm.context


def test_room_is_kept_for_virtual_tokens(tmp_path: Path) -> None:
    """A prompt that fits the context, and no longer does behind a prefix."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [
            {"text": f"{split} {i} " + "good " * (n if i == 0 else 3), "label": i % 2}
            for i, n in enumerate([495, 3, 3, 3, 3])
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = {}
    for method in ("zo", "zo:prompt:20", "ft:prefix:20"):
        bench = Workbench.open(config(method, data_dir=str(tmp_path), long_prompts="drop"))
        counts[method] = len(bench.pool.examples)
        assert max(map(len, bench.pool.choices.sequences)) <= 512 - (0 if method == "zo" else 20)
    assert counts == {"zo": 15, "zo:prompt:20": 12, "ft:prefix:20": 12}


# Linear probes


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench.open(config("lp"))


def test_a_probe_is_scikit_learns_on_the_state_that_the_head_reads(bench: Workbench) -> None:
    from sklearn.linear_model import LogisticRegression

    pool = bench.fresh()
    probe = probing.fit(pool, bench.train, bench.validation, bench.metrics[0])
    states = []
    for example in pool.at(bench.train):
        ids = torch.tensor([encode(pool.lm, example.prompt)[0]])
        states.append(pool.lm.model.model(input_ids=ids).last_hidden_state[0, -1].detach().double().numpy())
    x, y = np.stack(states), np.array([e.label for e in pool.at(bench.train)])
    np.testing.assert_allclose(probing.features(pool, bench.train), x, atol=1e-4)
    gain = float(np.sqrt(np.mean(x**2)))
    model = LogisticRegression(C=probe.strength, fit_intercept=False, max_iter=2000).fit(x / gain, y)
    assert (probe.choices(x).predictions == model.predict(x / gain)).mean() > 0.97
    assert probe.choices(x).predictions.tolist() != [0] * len(x)


def test_a_run_that_begins_at_a_probe_begins_where_the_probe_ends(tmp_path: Path) -> None:
    lp = execute(config("lp"), tmp_path / "lp", show=False)
    for method in ("lp+zo", "lp+ft", "lp+zo:norms"):
        folder = execute(
            config(method, steps=0, learning_rate=1e-9, ft={"steps": 1, "learning_rates": [1e-12]}), tmp_path / method
        )
        assert scores(folder) == pytest.approx(scores(lp)), method
    assert set(pd.read_csv(tmp_path / "lp+zo" / "results.csv")["method"]) == {"lp+zo"}


def test_a_run_that_begins_at_a_probe_replays_and_resumes(tmp_path: Path) -> None:
    folder = execute(config("lp+zo"), tmp_path / "a", show=False)
    assert "replays to the saved weights bit for bit" in verify(folder)
    before = (folder / "best.safetensors").read_bytes()
    (folder / "results.csv").unlink()
    execute(config("lp+zo"), folder, show=False)
    assert (folder / "best.safetensors").read_bytes() == before


def test_what_cannot_be_probed_is_said(bench: Workbench) -> None:
    pool = bench.fresh()
    differing = tuple(Example(i, f"a {i}", {}, (f" x{i}", " y"), i % 2) for i in range(4))
    with pytest.raises(InputError, match="ft:head"):
        probing.fit(Pool(pool.lm, pool.spec, differing), np.arange(2), np.arange(2, 4), bench.metrics[0])
    plan = plan_runs(["reviews", "copa", "sums"], ["lp", "calibrated", "icl", "lp+zo"], [0], {}, budget=None, demo=False)
    assert Counter(c.task for c in plan.configs) == {"reviews": 4, "copa": 2, "sums": 1}
    assert any("copa: no lp, since its options differ" in note for note in plan.notes)
    assert any("sums: no calibrated, since the task has no options" in note for note in plan.notes)


# Fine-tuning


def test_recomputed_activations_change_no_gradient(bench: Workbench) -> None:
    pool = bench.fresh()
    parameters = [p.requires_grad_(True) for p in pool.lm.model.parameters()]

    def gradients() -> list[torch.Tensor]:
        with torch.enable_grad():
            cross_entropy(pool, bench.train[:8]).backward()
        found = [p.grad.clone() for p in parameters if p.grad is not None]
        pool.lm.model.zero_grad(set_to_none=True)
        return found

    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        plain, of_plain = gradients(), kept
        kept = 0
        with baselines.checkpointed(pool.lm):
            again, of_again = gradients(), kept
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)
    assert of_again < 0.6 * of_plain
    for p in parameters:
        p.requires_grad_(False)


@pytest.mark.parametrize("form", ["lora:2", "prefix:3", "prompt:3", "head", "layers:3"])
def test_fine_tuning_of_a_part_says_so_and_learns(form: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = execute(config(f"ft:{form}", ft={**SMALL["ft"], "learning_rates": [1e-2]}), tmp_path / "a", show=False)
    row = pd.read_csv(folder / "results.csv").iloc[0]
    assert (row["method"], row["tune"], row["dtype"]) == (f"ft:{form}", form, "float32")
    assert 0 < row["parameters"] < 300_000


@pytest.mark.parametrize("setting", [{"checkpointing": True}, {"autocast": True}])
def test_fine_tuning_at_other_prices(setting: dict[str, bool], tmp_path: Path) -> None:
    folder = execute(config("ft", ft={**SMALL["ft"], **setting}), tmp_path / "a", show=False)
    assert pd.read_csv(folder / "results.csv")["dtype"].iloc[0] == (
        "float32 autocast" if "autocast" in setting else "float32"
    )


def test_checkpointing_and_a_prefix_do_not_go_together(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(InputError, match="Turn one off"):
        execute(config("ft:prefix", ft={**SMALL["ft"], "checkpointing": True}), tmp_path / "a", show=False)


def test_a_comparison_keeps_variants_apart_and_tells_what_is_worth_knowing(tmp_path: Path) -> None:
    plan = plan_runs(
        ["reviews"], ["icl", "zo", "zo:norms"], [0], {k: v for k, v in SMALL.items() if k != "task"}, budget=None, demo=False
    )
    assert [run_folder(c) for c in plan.configs] == [f"runs/reviews/{m}-seed0" for m in ("icl", "zo", "zo-norms")]
    said: list[str] = []
    run_plan(plan, tmp_path, command="here", show=False, say=said.append)
    about = json.loads((tmp_path / "comparison.json").read_text())
    assert any("of 32 demonstrations fit" in note and note.startswith("reviews, icl, seed 0:") for note in about["notes"])
    assert set(pd.read_csv(tmp_path / "results.csv")["method"]) == {"icl", "zo", "zo:norms"}


# Sweeps


def test_the_papers_grids() -> None:
    """MeZO, Tables 15 and 16 and appendix E.6."""
    grid, fixed = sweep.paper_grid("mezo-ce", "sst2", masked=True, shots=16)
    assert grid == {"learning_rate": (1e-7, 1e-6, 1e-5)}
    assert (fixed["batch"], fixed["steps"], fixed["scale"]) == (64, 100_000, 1e-3)
    grid, fixed = sweep.paper_grid("mezo-ce:prefix:5", "squad", masked=False, shots=None)
    assert grid == {"learning_rate": (5e-2, 1e-2, 5e-3)} and (fixed["batch"], fixed["scale"]) == (16, 1e-1)
    grid, fixed = sweep.paper_grid("ft", "rte", masked=True, shots=16)
    assert grid == {"ft.learning_rates": [[1e-5], [3e-5], [5e-5]], "ft.batch": (2, 4, 8)} and fixed == {
        "ft": {"steps": 1000}
    }
    assert sweep.paper_grid("mezo-ce:lora:8", "sst2", masked=True, shots=512)[1]["weight_decay"] == 0.1
    assert sweep.paper_grid("zo", "squad", masked=False, shots=None)[0] == {"learning_rate": (1e-6, 5e-6, 1e-5)}
    with pytest.raises(InputError, match="no grid for zo:norms"):
        sweep.paper_grid("zo:norms", "sst2", masked=False, shots=None)


def test_every_point_of_the_papers_grids_is_a_valid_run() -> None:
    for method, masked in (("mezo-ce", False), ("mezo-ce:lora:8", True), ("ft:prefix:5", True), ("zo:prefix:5", False)):
        points = sweep.plan_sweep(["sst2"], [method], [13, 21], None, {"steps": 10}, masked=masked)
        assert len(points) % 2 == 0 and len({p.folder for p in points}) == len(points)
        assert all(p.config.steps == 10 for p in points)  # the user's setting wins
        tuned = {p.config.ft.tune if method.startswith("ft") else p.config.tune for p in points}
        assert tuned == {method.partition(":")[2] or "all"}  # not what the task suggests


def test_a_file_of_settings_may_serve_other_tasks_too() -> None:
    settings = {"tasks": {"sst2": {"steps": 3}, "rte": {"steps": 4}}}
    points = sweep.plan_sweep(["sst2", "rte"], ["zo"], [0], {"scale": [0.1]}, settings, masked=False)
    assert [p.config.steps for p in points] == [3, 4]
    (alone,) = plan_runs(["rte"], ["zo"], [0], settings, budget=None, demo=False).configs
    assert alone.steps == 4
    with pytest.raises(InputError, match="Did you mean 'squad'"):
        plan_runs(["rte"], ["zo"], [0], {"tasks": {"sqad": {}}}, budget=None, demo=False)


@pytest.mark.parametrize("text", ["learning_rate", "=1", "scale="])
def test_a_grid_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write key=value,value"):
        sweep.parse_grid([text])


def test_the_choice_is_the_best_mean_on_validation_and_the_first_of_equals() -> None:
    def row(point: str, seed: int, validation: float, test: float) -> dict[str, Any]:
        return {"task": "t", "method": "zo", "point": point, "seed": seed, "validation": validation, "test": test}

    rows = [
        row("a", 0, 0.9, 0.1),
        row("a", 1, 0.1, 0.1),
        row("b", 0, 0.6, 0.2),
        row("b", 1, 0.6, 0.2),
        row("c", 0, 0.6, 0.9),
        row("c", 1, 0.6, 0.9),
    ]
    found = sweep.table(rows)
    assert found[found["chosen"]]["point"].unique().tolist() == ["b"]
    assert found["mean"].tolist() == pytest.approx([0.5, 0.5, 0.6, 0.6, 0.6, 0.6])


def test_a_sweep_is_one_command_that_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["sweep", "reviews", "--methods", "zo,ft", "--grid", "ft.steps=1,2", "--output", str(tmp_path), "--quiet"]
    for key in ("steps=1", "directions=1", "batch=8", "n_train=20", "n_validation=10", "n_test=10", "ft.batch=4"):
        arguments += ["--set", key]
    monkeypatch.setattr(sweep, "execute", (calls := _Counting()))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = pd.read_csv(tmp_path / "sweep.csv")
    assert found.groupby("method")["chosen"].sum().to_dict() == {"ft": 1, "zo": 1}
    assert set(found["point"]) == {"ft.steps=1", "ft.steps=2"} and calls.fresh == 4
    again = CliRunner().invoke(app, arguments)
    assert again.output.count("(was there)") == 4 and calls.fresh == 4
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "sweep.csv"), found)


class _Counting:
    """Runs, and counts those that were not there yet."""

    fresh = 0

    def __call__(self, config: RunConfig, output: Path, **given: Any) -> Path:
        self.fresh += not (output / "results.csv").exists()
        return execute(config, output, **given)


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("13,21,42", [13, 21, 42]), ("13,", [13])])
def test_seeds_are_a_number_or_themselves(text: str, seeds: list[int]) -> None:
    from zo_objectives.cli.options import seeds_of

    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["0", "x", "1,1", ",", "1,x", ""])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    from zo_objectives.cli.options import seeds_of

    with pytest.raises(InputError, match="--seeds"):
        seeds_of(text)


def test_the_shipped_tasks_settings_are_settings() -> None:
    for name in ("sst2", "cb", "squad", "gsm8k", "countdown"):
        make_config({**task_settings(read_task(find_task(name))), "task": name})


# The metric and a share of the log-likelihood


def test_zo_ce_climbs_the_metric_and_a_share_of_the_log_likelihood(tmp_path: Path) -> None:
    """The same bits as the objective written out; what counts, and chooses the step, is the metric alone."""

    def taken(folder: Path) -> list[bytes]:
        return [np.asarray(record.coefficients).tobytes() for record in journal.read(folder / "journal.zoj")[1]]

    found = execute(config("zo-ce", tune="head", loss_weight=0.3), tmp_path / "a", show=False)
    written = {"objective": "f1_macro + 0.3 * cross_entropy", "metric": "f1_macro"}
    expected = execute(config("zo", tune="head", **written), tmp_path / "b", show=False)
    assert taken(found) == taken(expected) and "bit for bit" in verify(found)
    rows = pd.read_csv(found / "results.csv")
    assert rows["objective"].unique().tolist() == [written["objective"]] and rows["metric"][0] == "f1_macro"
    other = execute(config("zo-ce", tune="head"), tmp_path / "c", show=False)
    assert taken(other) != taken(found)


def test_zo_ce_is_for_options(tmp_path: Path) -> None:
    given = {"task": "sums", "tune": "head", "n_train": 20, "n_validation": 20, "n_test": 20}
    with pytest.raises(Unfit, match=r"task 'sums' has none\. Take mezo-ce\+zo"):
        execute(config("zo-ce", **given), tmp_path, show=False)
