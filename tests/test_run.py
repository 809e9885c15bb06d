"""Runs from end to end on the embedded model: what is written, resuming, replaying, and who pays for what."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from zo_objectives import workbench as bench_module
from zo_objectives.api import tune
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError, RunError
from zo_objectives.language.objectives import from_callable
from zo_objectives.replay import export, restore, verify
from zo_objectives.results import read_history
from zo_objectives.run import execute
from zo_objectives.workbench import Workbench

SMALL = {
    "task": "sums", "tune": "norms", "steps": 4, "batch": 16, "directions": 2, "scale": 0.1, "evaluations": 4,
    "n_train": 64, "n_validation": 16, "n_test": 16, "ft": {"learning_rates": [1e-3], "steps": 2, "batch": 8},
}  # fmt: skip


def config(**given: object) -> RunConfig:
    return make_config({**SMALL, **given})


def results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv").drop(columns=["seconds", "peak_memory_mb"])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(config(), tmp_path_factory.mktemp("run") / "a", show=False)


def test_a_run_leaves_a_whole_folder(done: Path) -> None:
    assert {p.name for p in done.iterdir()} >= {
        "config.yaml", "journal.zoj", "history.csv", "predictions.jsonl", "results.csv", "best.safetensors",
    }  # fmt: skip
    rows = results(done)
    assert set(rows["split"]) == {"validation", "test"}
    assert (rows["forwards"] == 2 * 2 * 4).all()
    assert (rows["examples"] == 2 * 2 * 4 * 16).all()
    history = read_history(done / "history.csv")
    assert [r.step for r in history] == [0, 1, 2, 3, 4]
    assert rows.loc[rows["split"] == "validation", "value"].iloc[0] == max(r.validation or 0.0 for r in history)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_killed_run_goes_on_to_the_same_bits(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Killed while the validation of step `stop` is being looked at, then resumed by the same command."""
    from zo_objectives.active_run import Run

    watch, calls = Run.watch, 0

    def dying(self, *arguments):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == stop + 2:
            raise KeyboardInterrupt
        return watch(self, *arguments)

    monkeypatch.setattr(Run, "watch", dying)
    with pytest.raises(KeyboardInterrupt):
        execute(config(), tmp_path / "b", show=False)
    monkeypatch.undo()
    execute(config(), tmp_path / "b", show=False)
    for name in ("journal.zoj", "best.safetensors", "predictions.jsonl"):
        assert (tmp_path / "b" / name).read_bytes() == (done / name).read_bytes(), name
    pd.testing.assert_frame_equal(results(tmp_path / "b"), results(done))


def test_a_finished_run_is_left_alone(done: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in done.iterdir()}
    execute(config(), done, show=False)
    assert before == {p.name: p.stat().st_mtime_ns for p in done.iterdir()}


def test_another_run_in_the_folder_is_refused_by_name(done: Path) -> None:
    with pytest.raises(InputError, match=r"scale was 0\.1 there, and is 0\.2 now"):
        execute(config(scale=0.2), done, show=False)


def test_a_half_written_folder_is_refused(done: Path, tmp_path: Path) -> None:
    (tmp_path / "journal.zoj").write_bytes((done / "journal.zoj").read_bytes())
    with pytest.raises(InputError, match=r"half-written run folder without config\.yaml"):
        execute(config(), tmp_path, show=False)
    shutil.copy(done / "config.yaml", tmp_path / "config.yaml")
    with pytest.raises(InputError, match=r"no history\.csv"):
        execute(config(), tmp_path, show=False)
    (tmp_path / "journal.zoj").write_bytes((done / "journal.zoj").read_bytes()[:20])
    with pytest.raises(InputError, match="header"):
        execute(config(), tmp_path, show=False)


def test_wrong_input_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unknown objective"):
        execute(config(objective="exact_macth"), tmp_path, show=False)
    execute(config(method="zero-shot"), tmp_path, show=False)
    assert (tmp_path / "results.csv").exists()


def test_replay_verify_and_export(done: Path, tmp_path: Path) -> None:
    assert "bit for bit" in verify(done)
    first, last = restore(done, 0), restore(done, 4)
    assert first.weights.fingerprint() != last.weights.fingerprint()
    export(done, tmp_path / "model", step=4)
    untouched = execute(config(method="zero-shot", model=str(tmp_path / "model")), tmp_path / "z", show=False)
    history = read_history(done / "history.csv")
    value = results(untouched).set_index("split").loc["validation", "value"]
    assert value == history[-1].validation
    with pytest.raises(InputError, match="no step 5"):
        restore(done, 5)


def test_verify_notices_changed_weights(done: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(done, tmp_path / "c")
    values = load_file(tmp_path / "c" / "best.safetensors")
    name = next(iter(values))
    values[name][0] += 1e-3
    save_file(values, tmp_path / "c" / "best.safetensors")
    with pytest.raises(InputError, match="differ in"):
        verify(tmp_path / "c")


def test_the_bench_is_shared_without_one_run_touching_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head runs give the base back bit for bit; deeper runs ask for a fresh model."""
    loads = []
    load = bench_module.hf.load
    monkeypatch.setattr(bench_module.hf, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    head = config(tune="head")
    shared = Workbench.open(head)
    a = execute(head, tmp_path / "a", bench=shared, show=False)
    execute(config(tune="norms"), tmp_path / "b", bench=shared, show=False)
    execute(config(method="ft"), tmp_path / "c", bench=shared, show=False)
    d = execute(config(tune="head", method="mezo-ce"), tmp_path / "d", bench=shared, show=False)
    e = execute(config(tune="head", seed=0), tmp_path / "e", bench=shared, show=False)
    assert len(loads) >= 3
    assert (a / "journal.zoj").read_bytes() == (e / "journal.zoj").read_bytes()
    assert results(d)["objective"].eq("cross_entropy").all()


def test_fine_tuning_charges_the_whole_grid_and_a_backward_as_two(tmp_path: Path) -> None:
    folder = execute(config(method="ft", ft={"learning_rates": [1e-3, 1e-2], "steps": 3, "batch": 8}), tmp_path, show=False)
    assert (results(folder)["forwards"] == 3 * 3 * 2).all()
    assert (results(folder)["examples"] == 3 * 3 * 2 * 8).all()
    assert results(folder)["parameters"].eq(1_066_112).all()


def test_fine_tuning_lowers_the_loss(tmp_path: Path) -> None:
    """The headline is the cross-entropy itself, so that a rise is no accident."""
    rate = {"learning_rates": [3e-4], "steps": 40, "batch": 32}
    sizes = {"n_train": 200, "n_validation": 100, "n_test": 16}
    folder = execute(config(method="ft", ft=rate, objective="cross_entropy", **sizes), tmp_path, show=False)
    history = [r.validation for r in read_history(folder / "history.csv") if r.validation is not None]
    assert history[-1] > history[0] + 0.05


def test_a_callable_that_fails_at_once_is_wrong_input_and_later_a_failed_run(tmp_path: Path) -> None:
    def broken(predictions: list[str], references: list[str]) -> float:
        raise KeyError("boom")

    with pytest.raises(InputError, match=r"'broken' raised KeyError: 'boom' \(.*example \d+: prompt"):
        tune(output=tmp_path / "a", objective=broken, show=False, **SMALL)
    calls = 0

    def late(predictions: list[str], references: list[str]) -> float:
        nonlocal calls
        calls += 1
        return float("nan") if calls == 14 else sum(p == r for p, r in zip(predictions, references, strict=True)) / 7

    with pytest.raises(RunError, match="'late' returned nan"):
        tune(output=tmp_path / "b", objective=late, show=False, **SMALL)
    tuned = tune(output=tmp_path / "b", objective=late, show=False, **SMALL)
    assert tuned.results["metric"].iloc[0] == "late"
    model, tokenizer = tuned.model()
    assert model.config.vocab_size == len(tokenizer)


def test_an_objective_object_is_taken_as_it_is(tmp_path: Path) -> None:
    length = from_callable(lambda completions, **columns: [float(len(c)) for c in completions], "length")
    tuned = tune(output=tmp_path, objective=length, show=False, **{**SMALL, "steps": 1})
    assert set(tuned.results["metric"]) == {"length", "exact_match"}


SETTINGS: dict[str, dict[str, object]] = {
    "one-sided": {"estimator": "one_sided", "shaping": "unit"},
    "one-point": {"estimator": "one_point", "shaping": "raw", "learning_rate": 1e-6},
    "es by ranks": {"estimator": "es", "shaping": "rank", "directions": 4},
    "es by floored z-scores, growing": {"estimator": "es", "shaping": "zscore:0.05", "directions": 6, "growth": "linear"},
    "growing n-spsa, clipped": {"growth": "linear", "directions": 4, "clip": 0.5},
    "momentum, recomputed": {"rule": "momentum", "moments": "recomputed", "warmup": 2},
    "adam of signs": {"rule": "adam", "moments": "recomputed", "directions": 1},
    "sign, anchored": {"rule": "sign", "pull": 0.5, "learning_rate": 0.01},
    "low-rank, batched": {"noise": "low-rank:2", "members": "batched", "tune": "layers:2-3", "directions": 3},
    "low-rank, batched, on the loss": {"noise": "low-rank", "members": "batched", "tune": "all", "method": "mezo-ce"},
    "gaussian, masked, bfloat16": {"noise": "gaussian", "mask": "smallest:0.5", "dtype": "bfloat16"},
    "round-robin": {"blocks": "round-robin", "tune": "all", "scale": 0.05},
    "sizes from parameters": {"layerwise": {"sizes": "parameter"}, "tune": "all"},
    "sizes from zeroth order": {
        "layerwise": {"sizes": "zeroth-order", "every": 2, "average": 0.5, "directions": 1, "modified": "expectation"},
        "tune": "layers:2-3",
        "scale": 0.05,
    },
    "sizes from backprop": {"layerwise": {"sizes": "backprop", "every": 3}, "tune": "norms", "store": "master"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_form_of_search_runs_and_replays_to_the_bit(name: str, tmp_path: Path) -> None:
    settings = config(**{**SETTINGS[name], "n_validation": 8, "n_test": 8, "batch": 8})
    folder = execute(settings, tmp_path / "run", show=False)
    assert "bit for bit" in verify(folder)
    history = read_history(folder / "history.csv")
    assert len(history) == 5 and all(row.applied_frac is not None for row in history[1:] if row.tie_rate != 1)
    measured = settings.layerwise.sizes == "zeroth-order"
    assert (results(folder)["forwards"] > settings.forwards(4)).all() == measured
    last = restore(folder, step=4)  # the journal leads to the end of the run as well
    assert last.weights.fingerprint() != restore(folder, step=0).weights.fingerprint()


def test_batched_members_score_what_members_one_after_another_score(tmp_path: Path) -> None:
    """The same run, up to the order of sums: exact match of generations, from the same probes."""
    own = {"noise": "low-rank", "tune": "layers:2-3", "scale": 0.02, "shaping": "raw", "learning_rate": 1e-9, "batch": 8}
    runs = [execute(config(**own, members=m), tmp_path / m, show=False) for m in ("sequential", "batched")]
    scores = [[row.objective for row in read_history(run / "history.csv")] for run in runs]
    assert scores[0] == scores[1] and len({*scores[0]}) > 2
    assert results(runs[0])["tokens"].tolist() == results(runs[1])["tokens"].tolist()


REFUSED = {
    "dense noise in a batch": ({"members": "batched", "tune": "layers:3"}, "Dense noise in a matrix"),
    "ranks of one": ({"estimator": "one_point", "shaping": "rank"}, "one score a step"),
    "moments of nothing": ({"moments": "recomputed"}, "keeps no moments"),
    "signs of gaussians": ({"rule": "adam", "moments": "recomputed", "noise": "gaussian"}, "directions of signs"),
    "two directions for one": ({"rule": "adam", "moments": "recomputed"}, "one direction a step"),
    "a store that drifts": ({"store": "in_place"}, "Unknown weight store 'in_place'"),
    "a population of one": ({"estimator": "es", "directions": 1}, "at least 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_a_cure(name: str, tmp_path: Path) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        execute(config(**settings), tmp_path / "run", show=False)


@pytest.mark.parametrize(
    "wrong", [{"noise": "low-rank:0"}, {"mask": "smallest:2"}, {"noise": "pink"}, {"layerwise": {"every": -1}}]
)
def test_wrong_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"Setting {next(iter(wrong))}.*(Give|greater than)"):
        config(**wrong)
    with pytest.raises(InputError, match=r"Unknown setting 'sises'. Did you mean 'sizes'"):
        config(layerwise={"sises": "parameter"})
