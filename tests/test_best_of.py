"""Random search: its rounds and their price, what it keeps, and that it is a function of the seed."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from zo_objectives.best_of import FINALISTS, Round, halving, plan, probes, rounds
from zo_objectives.building import build_search
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError, RunError
from zo_objectives.language.objectives import from_callable
from zo_objectives.methods import method_settings
from zo_objectives.replay import restore
from zo_objectives.results import read_history
from zo_objectives.run import NOTES, execute
from zo_objectives.workbench import Workbench

SMALL: dict[str, Any] = {
    "task": "reviews", "tune": "head", "objective": "accuracy", "steps": 8, "batch": 16, "directions": 3, "scale": 0.3,
    "evaluations": 3, "n_train": 64, "n_validation": 32, "n_test": 20,
}  # fmt: skip


BF16 = {"tune": "norms", "dtype": "bfloat16", "steps": 2, "batch": 2, "n_validation": 6, "n_test": 4}


def config(method: str = "best-of-n", **given: Any) -> RunConfig:
    return make_config(method_settings({**SMALL, **given}, method))


def results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv").drop(columns=["seconds", "peak_memory_mb"])


# Rounds


@settings(derandomize=True, deadline=None, database=None)
@given(st.integers(1, 20_000), st.integers(1, 40))
def test_a_plan_spends_nearly_all_and_never_more(forwards: int, finalists: int) -> None:
    planned = plan(forwards, finalists)
    spent = sum(r.forwards for r in planned)
    assert spent <= forwards < sum(r.forwards for r in rounds(planned[0].members + 1, finalists))
    assert [r.batches for r in planned] == [2**i for i in range(len(planned))]
    for before, after in pairwise(planned):
        assert 4 * after.members >= before.members > after.members > finalists


def test_a_plan_by_hand() -> None:
    assert rounds(4800, 12) == (Round(4800, 1), Round(1200, 2), Round(300, 4), Round(75, 8), Round(19, 16))
    assert plan(5, 12) == (Round(5, 1),)
    with pytest.raises(InputError, match="give steps=1 or more"):
        plan(0, 12)


def test_halving_keeps_the_best_on_fresh_batches_that_all_of_them_see() -> None:
    asked: list[tuple[int, int]] = []

    def score(members: Any, batch: int) -> list[float]:
        asked.extend((member, batch) for member in members)
        return [-abs(member - 40) + 0.1 * batch for member in members]

    met = list(halving(rounds(64, 3), score))
    assert [len(members) for members in met] == [64, 16, 4]
    assert list(met[0])[:5] == [40, 39, 41, 38, 42], "the first of equals first"
    assert met[-1] == pytest.approx({40: 0.45, 39: -0.55, 41: -0.55, 38: -1.55})
    assert len(asked) == len(set(asked)) == sum(r.forwards for r in rounds(64, 3))
    for batch, count in ((0, 64), (1, 16), (2, 16), (3, 4), (6, 4)):
        assert sum(b == batch for _, b in asked) == count


def test_a_member_without_a_score_is_out_and_one_with_a_few_is_judged_by_them() -> None:
    def score(members: Any, batch: int) -> list[float]:
        return [math.nan if m == 7 or (m == 3 and batch == 1) else float(m) for m in members]

    first, second = halving((Round(8, 1), Round(7, 2)), score)
    assert list(first) == [6, 5, 4, 3, 2, 1, 0] == list(second)
    assert second[3] == 3.0
    assert list(halving(rounds(8, 1), lambda members, batch: [math.nan] * len(members)))[-1] == {}


# Runs


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(config(), tmp_path_factory.mktemp("best") / "a", show=False)


def test_a_run_costs_what_its_rounds_cost_and_no_more_than_zo(done: Path) -> None:
    planned = plan(config().forwards(8), 3)
    spent = sum(r.forwards for r in planned)
    rows = results(done)
    assert 0.8 * 2 * 3 * 8 <= spent <= 2 * 3 * 8
    assert (rows["forwards"] == spent).all() and (rows["examples"] == 16 * spent).all() and (rows["tokens"] > 0).all()
    assert set(rows["method"]) == {"best-of-n"} and set(rows["tune"]) == {"head"} and set(rows["objective"]) == {"accuracy"}
    history = read_history(done / "history.csv")
    assert [r.step for r in history] == list(range(len(planned) + 1)) and history[-1].forwards == spent
    assert [r.validation is None for r in history] == [False, *[True] * (len(planned) - 1), False]


def test_the_best_finalist_on_validation_is_kept_or_the_base(done: Path) -> None:
    finalists = pd.read_csv(done / FINALISTS)
    base, *_, last = read_history(done / "history.csv")
    assert len(finalists) == 3 and finalists["score"].is_monotonic_decreasing
    assert last.validation == finalists["validation"].max() and base.validation is not None
    row = results(done).query("split == 'validation' and metric == 'accuracy'").iloc[0]
    assert row["value"] == max(base.validation, last.validation)
    assert row["best_step"] == (last.step if last.validation > base.validation else 0)


@pytest.mark.parametrize(
    "setting",
    [{}, BF16, {"tune": "layers:3", "noise": "low-rank:1", "members": "batched"}],
)
def test_what_is_saved_is_where_its_perturbation_leads(setting: dict[str, Any], tmp_path: Path) -> None:
    """And the base is untouched for whoever comes next."""
    given = config(objective="cross_entropy", scale=1e-3, **setting)
    bench = Workbench.open(given)
    folder = execute(given, tmp_path / "a", bench=bench, show=False)
    finalists = pd.read_csv(folder / FINALISTS)
    search = build_search(bench, bench.fresh(given.tune), given)
    saved, (best,) = load_file(folder / "best.safetensors"), [finalists["validation"].idxmax()]
    base = read_history(folder / "history.csv")[0].validation
    (probe,) = probes(given, search.weights, [int(finalists["perturbation"][best]) - 1])
    moved = search.weights.stacked([probe])
    assert base is not None
    for name, start in search.weights.state_dict().items():
        wanted = moved[name][0].to(start.dtype) if finalists["validation"][best] > base else start
        assert torch.equal(saved[name], wanted)


def test_it_is_a_function_of_the_seed(done: Path, tmp_path: Path) -> None:
    execute(config(), tmp_path / "b", show=False)
    for name in (FINALISTS, "predictions.jsonl", "best.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (done / name).read_bytes(), name
    pd.testing.assert_frame_equal(results(tmp_path / "b"), results(done))
    execute(config(seed=1), tmp_path / "c", show=False)
    other = pd.read_csv(tmp_path / "c" / FINALISTS)
    assert other["perturbation"].tolist() != pd.read_csv(done / FINALISTS)["perturbation"].tolist()


def test_a_killed_run_begins_again_to_the_same_end(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zo_objectives import best_of

    with monkeypatch.context() as patch:
        patch.setattr(best_of, "_looked_at", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            execute(config(), tmp_path / "a", show=False)
    execute(config(), tmp_path / "a", show=False)
    pd.testing.assert_frame_equal(results(tmp_path / "a"), results(done))
    assert len(read_history(tmp_path / "a" / "history.csv")) == len(read_history(done / "history.csv"))


def test_it_finds_what_is_there_to_be_found(tmp_path: Path) -> None:
    """The log-likelihood of the embedded model's own task, which it does not yet know well: hundreds of tries go up."""
    folder = execute(config(objective="cross_entropy", steps=60, n_train=200, n_validation=100), tmp_path / "a", show=False)
    base, *_, last = read_history(folder / "history.csv")
    assert base.validation is not None and last.validation is not None and last.validation > base.validation
    assert "random perturbations" not in (folder / NOTES).read_text()


def test_where_nothing_is_better_the_base_stays_and_that_is_said(done: Path, tmp_path: Path) -> None:
    folder = execute(config(scale=1e-7), tmp_path / "a", show=False)
    assert set(results(folder)["best_step"]) == {0}
    assert "random perturbations is better than the start on validation: the scale (1e-07) is wrong" in (
        (folder / NOTES).read_text()
    )
    alone = execute(config("zero-shot"), tmp_path / "z", show=False)
    assert results(folder)["value"].tolist() == results(alone)["value"].tolist()


def test_forms_of_it_and_layers_in_turn(tmp_path: Path) -> None:
    given = config("best-of-n:layers:2-3", blocks="round-robin", layerwise={"sizes": "parameter"})
    bench = Workbench.open(given)
    folder = execute(given, tmp_path / "a", bench=bench, show=False)
    assert {*results(folder)["method"], *results(folder)["tune"]} == {"best-of-n:layers:2-3", "layers:2-3"}
    search = build_search(bench, bench.fresh(given.tune), given)
    assert [p.group for p in probes(given, search.weights, range(5))] == [0, 1, 0, 1, 0]
    assert len({p.key for p in probes(given, search.weights, range(99))}) == 99


def test_it_climbs_what_zo_climbs_draws_and_a_task_of_texts(tmp_path: Path) -> None:
    """With four draws for each example, scores are in quarters of an example."""
    given = config(temperature=1.0, samples=4)
    batches = plan(given.forwards(8), 3)[-1].batches
    scores = pd.read_csv(execute(given, tmp_path / "a", show=False) / FINALISTS)["score"] * 16 * batches
    assert np.allclose(scores * 4, np.round(scores * 4)) and not np.allclose(scores, np.round(scores))
    texts = config(task="sums", objective=None, tune="norms", scale=0.05, steps=2, n_validation=8, n_test=8, batch=8)
    rows = results(execute(texts, tmp_path / "b", show=False))
    assert set(rows["metric"]) == {"exact_match"} and set(rows["objective"]) == {"exact_match"}


def test_a_chain_may_hold_it_and_its_model_comes_back(tmp_path: Path) -> None:
    bench = Workbench.open(config())
    first = execute(config(objective="cross_entropy"), tmp_path / "a", show=False)
    restored = restore(first)
    assert restored.best_step == results(first)["best_step"].iloc[0] > 0
    for name, values in load_file(first / "best.safetensors").items():
        assert torch.equal(restored.lm.model.get_parameter(name), values)
    for method in ("best-of-n+zo", "lp+best-of-n"):
        folder = execute(config(method, steps=2), tmp_path / method, bench=bench, show=False)
        ended = pd.read_csv(folder / "before" / "results.csv")["value"].iloc[0]
        assert read_history(folder / "history.csv")[0].validation == pytest.approx(ended)
        assert results(folder)["value"].iloc[0] >= ended - 1e-9 and set(results(folder)["method"]) == {method}


def test_a_failing_objective_stops_it_or_is_left_out(tmp_path: Path) -> None:
    calls = 0

    def now_and_then(predictions: list[int], references: list[int]) -> float:
        nonlocal calls
        calls += len(predictions) == 16
        if calls % 7 == 6 and len(predictions) == 16:
            raise ValueError("boom")
        return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(predictions)

    own = from_callable(now_and_then)
    with pytest.raises(RunError, match="boom"):
        execute(given := config(n_test=17), tmp_path / "a", bench=Workbench.open(given, own), show=False)
    skipping = config(on_failure="skip-step", n_test=17)
    folder = execute(skipping, tmp_path / "b", bench=Workbench.open(skipping, own), show=False)
    assert "steps were left out" in (folder / NOTES).read_text() and (folder / "skipped.jsonl").exists()
