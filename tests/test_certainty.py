"""How sure a gain is: intervals that hold, tests that are exact, and a guard that keeps the start where chance would do."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.objective_batches import generated, graded, labelled
from zo_objectives import selection
from zo_objectives.active_run import Run
from zo_objectives.certainty import RESAMPLES, Uncertain, confidence, gain, unrepeatable, view_of
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError
from zo_objectives.language.culprits import take
from zo_objectives.language.isolation import Isolation, isolated
from zo_objectives.language.objective import Objective, from_samples
from zo_objectives.language.objectives import from_callable, product, resolve, weighted
from zo_objectives.language.outputs import Choices, Example, Generations, Likelihoods, Outputs, joined
from zo_objectives.methods import method_settings
from zo_objectives.replay import export, restore, verify
from zo_objectives.results import read_history
from zo_objectives.run import NOTES, execute
from zo_objectives.selection import SELECTION, Look, Selection, select
from zo_objectives.starts import BEST, FIRST
from zo_objectives.workbench import Workbench

CLASS = ("f1_macro", "f1_micro", "f1_weighted", "balanced_accuracy", "mcc")


def reward(values: Any) -> Likelihoods:
    return Likelihoods(np.asarray(values, dtype=np.float32), np.ones(len(values), dtype=np.int64))


PLAIN = from_samples("plain", lambda outputs, examples: [float(v) for v in outputs.predictions])


def some(n: int) -> list[Example]:
    return [Example(i, f"prompt {i}", {}) for i in range(n)]


def classes(seed: int, n: int, count: int) -> tuple[Choices, Choices, list[Example]]:
    """Before and after, of which the second is right more often."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, n)
    said = [np.where(rng.random(n) < share, labels, rng.integers(0, count, n)) for share in (0.2, 0.35)]
    before, examples = labelled(labels.tolist(), said[0].tolist(), count)
    return before, labelled(labels.tolist(), said[1].tolist(), count)[0], examples


# Intervals


def normal(rng: np.random.Generator, n: int) -> tuple[Any, Any, float]:
    before = rng.normal(0, 1, n)
    return before, before + rng.normal(0.1, 0.5, n), 0.1


def binary(rng: np.random.Generator, n: int) -> tuple[Any, Any, float]:
    before = rng.random(n) < 0.5
    flips = rng.random(n)
    return before, np.where(before, flips > 0.1, flips < 0.3), 0.1


@pytest.mark.parametrize("draw", [normal, binary])
def test_the_interval_covers_the_truth_as_often_as_it_says(draw: Callable[..., tuple[Any, Any, float]]) -> None:
    covered = []
    for seed in range(200):
        before, after, truth = draw(np.random.default_rng(seed), 60)
        found = gain(PLAIN, reward(before), reward(after), some(60), seed, level=0.9)
        covered.append(found.low <= truth <= found.high)
    assert 0.84 <= np.mean(covered) <= 0.96  # 0.9 by three standard errors; percentile intervals are a little short


def test_of_means_it_agrees_with_the_closed_form() -> None:
    before, after, _ = normal(np.random.default_rng(0), 400)
    found = gain(PLAIN, reward(before), reward(after), some(400), 3, resamples=8000)
    differences = np.float32(after).astype(float) - np.float32(before)
    error = differences.std() / 20
    assert found.value == pytest.approx(differences.mean(), abs=1e-12)
    assert [found.low, found.high] == pytest.approx([found.value - 1.96 * error, found.value + 1.96 * error], abs=error / 8)
    tail = gain(PLAIN, reward(before), reward(before + error * 20 * np.sign(after - before)), some(400), 3, resamples=8000)
    slope = tail.value / ((tail.high - tail.low) / 3.92)
    assert tail.chance == pytest.approx(0.5 * (1 + math.erf(slope / math.sqrt(2))), abs=0.01)


def test_it_is_a_function_of_the_seed_and_pairs_what_belongs_together() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(0, 10, 200)
    given = (PLAIN, reward(before), reward(before + 0.1), some(200))
    found = gain(*given, 5)
    assert found == gain(*given, 5)
    assert found.high - found.low < 1e-5, "what is common to both cancels"
    assert gain(PLAIN, reward([0, 0, 1]), reward([0, 0, 1]), some(3), 0) == (0.0, 0.0, 0.0, 0.5)


def test_rewards_that_do_not_apply_are_left_out_of_each_mean() -> None:
    def where_positive(outputs: Outputs, examples: Sequence[Example]) -> list[float | None]:
        return [float(v) if v > 0 else None for v in outputs.predictions]

    objective = from_samples("where_positive", where_positive)
    before, after = reward([1, 2, -1, 3, 4, -1]), reward([2, -1, 5, 4, 6, -1])
    found = gain(objective, before, after, some(6), 0)
    assert found.value == pytest.approx(17 / 4 - 10 / 4) == objective(after, some(6)) - objective(before, some(6))
    assert found.low < found.value < found.high
    with pytest.raises(Uncertain, match="applies to no resample"):
        gain(objective, reward([-1, -1]), reward([-1, -1]), some(2), 0)


# What an objective is had from


OBJECTIVES = {
    **{name: resolve(name) for name in (*CLASS, "accuracy", "acc_norm", "cross_entropy", "expected_f1_macro", "spearman")},
    "a sum": weighted((1.0, resolve("accuracy")), (-0.5, resolve("f1_macro")), (0.1, resolve("words"))),
    "a product with a limit": product(resolve("mcc"), resolve("accuracy subject to f1_macro >= 0.6 and characters <= 9")),
    "a user's": from_callable(lambda predictions, references: float(np.mean(np.equal(predictions, references))), "own"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resample_scores_what_the_objective_scores_on_it(name: str) -> None:
    objective, rng = OBJECTIVES[name], np.random.default_rng(1)
    (before, examples), (after, _) = graded(1, 40), graded(2, 40)
    view = view_of(objective, before, after, examples)
    counts = rng.multinomial(40, np.full(40, 1 / 40), 5)
    for row, scores in zip(counts, view.scores(counts.astype(float), view.columns), strict=True):
        chosen = np.repeat(np.arange(40), row).tolist()
        wanted = [objective(take(said, chosen), [examples[i] for i in chosen]) for said in (before, after)]
        assert scores.tolist() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("name", CLASS)
def test_class_metrics_agree_with_resampling_by_hand(name: str) -> None:
    before, after, examples = classes(3, 120, 3)
    objective, rng = resolve(name), np.random.default_rng(9)
    by_hand = []
    for _ in range(600):
        chosen = rng.integers(0, 120, 120).tolist()
        some = [examples[i] for i in chosen]
        by_hand.append(objective(take(after, chosen), some) - objective(take(before, chosen), some))
    found = gain(objective, before, after, examples, 0, resamples=4000)
    assert found.value == pytest.approx(objective(after, examples) - objective(before, examples))
    spread = float(np.std(by_hand))
    assert [found.low, found.high] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]).tolist(), abs=0.3 * spread)
    assert found.chance == pytest.approx(np.mean(np.array(by_hand) > 0), abs=0.04)


def test_another_right_option_counts_as_the_label() -> None:
    before, examples = labelled([0, 1, 2, 0], [1, 1, 0, 0], 3)
    examples = [
        Example(e.id, e.prompt, e.row, e.options, e.label, also=(1,) if i == 0 else ()) for i, e in enumerate(examples)
    ]
    after, _ = labelled([0, 1, 2, 0], [2, 1, 2, 0], 3)
    for name in CLASS:
        objective = resolve(name)
        found = gain(objective, before, after, examples, 0)
        assert found.value == pytest.approx(objective(after, examples) - objective(before, examples))


def test_outputs_of_every_kind_are_put_one_after_another() -> None:
    for said in (graded()[0], Generations(["a", "b", "c"]), reward([1.0, 2.0])):
        both = joined([said, take(said, [1, 0])])
        assert list(both.predictions) == [*said.predictions, said.predictions[1], said.predictions[0]]


# What is called, and how often


def counting(seconds: float = 0.0) -> tuple[Objective, list[int]]:
    calls: list[int] = []

    def own(predictions: Sequence[str], references: Sequence[str]) -> float:
        calls.append(len(predictions))
        if seconds:
            time.sleep(seconds)
        return float(np.mean([p == r for p, r in zip(predictions, references, strict=True)]))

    return from_callable(own), calls


BATCH = generated(["a", "b", "c", "d"], [["a"], ["x"], ["x"], ["x"]]), Generations(["a", "x", "c", "x"])


def test_a_quick_function_of_a_whole_batch_is_called_on_every_resample() -> None:
    (before, examples), after = BATCH
    objective, calls = counting()
    found = gain(objective, before, after, examples, 0, looks=12, seconds=60.0)
    assert found.value == 0.5 and found.low <= 0.5 <= found.high and found.chance > 0.9
    assert calls == [4] * (2 * RESAMPLES + 2)


def test_a_slow_one_is_not() -> None:
    (before, examples), after = BATCH
    objective, calls = counting(0.01)
    for told in (
        lambda: gain(objective, before, after, examples, 0),
        lambda: confidence(objective, before, after, examples, 0, 0.9, seconds=1.0),
    ):
        calls.clear()
        with pytest.raises(Uncertain, match=r"s for one resample, of 500, is too slow"):
            told()
        assert len(calls) == 4


@pytest.mark.parametrize("isolation", [Isolation(timeout=60.0), Isolation(timeout=60.0, pure=True)])
def test_one_that_is_kept_apart_is_never_called_for_it(isolation: Isolation) -> None:
    (before, examples), after = BATCH
    objective, calls = counting()
    apart = isolated(objective, isolation)
    for each in (
        apart,
        weighted((0.5, apart), (1.0, resolve("exact_match"))),
        isolated(weighted((2.0, objective)), isolation),
    ):
        assert "is isolated" in str(unrepeatable(each))
        with pytest.raises(Uncertain, match="is isolated"):
            gain(each, before, after, examples, 0)
    assert calls == [] and unrepeatable(isolated(objective, Isolation(pure=True))) is None
    assert "is isolated" in str(unrepeatable(isolated(resolve("bleu"), Isolation(workers=1))))


def test_a_reward_is_asked_once_for_each_set_of_outputs_isolated_or_not() -> None:
    (before, examples), after = BATCH
    calls: list[int] = []

    def praise(completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return [float(text == "x") for text in completions]

    for objective in (from_callable(praise), isolated(from_callable(praise), Isolation(timeout=60.0))):
        calls.clear()
        assert gain(objective, before, after, examples, 0).value == 0.5 and calls == [4, 4]


def test_one_that_fails_on_a_resample_is_no_end_of_a_run() -> None:
    (before, examples), after = BATCH

    def fussy(predictions: Sequence[str], references: Sequence[str]) -> float:
        if "a" not in predictions:
            raise ValueError("no a")
        return 0.5

    with pytest.raises(Uncertain, match=r"failed when it was asked again: .*'fussy' raised ValueError: no a"):
        gain(from_callable(fussy), before, after, examples, 0)


# The best of several looks


def noise(seed: int, looks: int, n: int = 60) -> tuple[Any, list[Any]]:
    """Outcomes 0 or 1 at the start and at so many looks that are no better, the best of which is last."""
    rng = np.random.default_rng(seed)
    start = rng.random(n) < 0.5
    found = [np.where(rng.random(n) < 0.4, rng.random(n) < 0.5, start) for _ in range(looks)]
    return start, sorted(found, key=lambda said: said.mean())


def test_intervals_and_confidence_allow_for_the_choice() -> None:
    plain, adjusted, sure = [], [], []
    for seed in range(100):
        start, found = noise(seed, 8)
        given = (PLAIN, reward(start), reward(found[-1]), some(60), seed)
        plain.append(gain(*given).low > 0)
        adjusted.append(gain(*given, looks=8).low > 0)
        sure.append(confidence(*given, 0.9, looks=8) >= 0.9)
    assert np.mean(plain) > 0.1 and np.mean(adjusted) < 0.05 and np.mean(sure) < 0.15


def test_the_randomisation_test_is_exact() -> None:
    """Of five that changed, all for the better: 1 of 32 exchanges is as good. The bootstrap would be far surer."""
    start, better = reward([0.0] * 32), reward([1.0] * 5 + [0.0] * 27)
    found = confidence(PLAIN, start, better, some(32), 0, 0.99)
    assert found == pytest.approx(1 - 1 / 32, abs=0.005) and gain(PLAIN, start, better, some(32), 0).chance > 0.99
    assert confidence(PLAIN, start, better, some(32), 0, 0.99, looks=3) == pytest.approx(1 - 3 / 32, abs=0.015)
    assert confidence(PLAIN, better, start, some(32), 0, 0.9) == confidence(PLAIN, start, start, some(32), 0, 0.9) == 0
    assert confidence(PLAIN, reward([0.0]), reward([1.0]), some(1), 0, 0.9) == pytest.approx(0.5, abs=0.05)


def test_on_noise_a_confidence_is_as_rare_as_it_says() -> None:
    found = np.array(
        [confidence(PLAIN, reward(a), reward(b[-1]), some(60), s, 0.8) for s in range(200) for a, b in [noise(s, 1)]]
    )
    assert np.mean(found >= 0.8) < 0.2 + 0.05 and np.mean(found >= 0.95) < 0.05 + 0.03


@pytest.mark.parametrize("guard", [0.5, 0.9, 0.999])
def test_every_guard_can_be_met(guard: float) -> None:
    """By outputs that are all right, for rewards and for what has to be called."""
    before, after = Generations(["b"] * 40), Generations(["a"] * 40)
    examples = [Example(i, "", {}, targets=("a",)) for i in range(40)]
    for objective in (resolve("exact_match"), counting()[0]) if guard < 0.99 else (resolve("exact_match"),):
        assert confidence(objective, before, after, examples, 0, guard, looks=12) >= guard


# The choice


def chosen(**given: Any) -> Selection:
    config = make_config({"task": "reviews", **given})
    (before, examples), after = BATCH
    return select(config, resolve("exact_match"), Look(0, 0.25, before), Look(7, 0.75, after), examples, looks=3, steps=9)


def test_a_choice_is_written_down_told_and_read_again(tmp_path: Path) -> None:
    found = chosen()
    assert (found.step, found.best_step, found.steps, found.start, found.best) == (7, 7, 9, 0.25, 0.75)
    assert found.gain == 0.5 and found.guard is None and found.confidence is None
    assert found.notes == [
        f"Validation: +0.500 [{found.low:+.3f}, {found.high:+.3f}] over the start (95 %, paired bootstrap; adjusted for the"
        " choice among 3 looks at the same examples)."
    ]
    selection.write(tmp_path, found)
    assert selection.read(tmp_path) == found and selection.read(tmp_path / "none") is None
    assert {"metric", "step", "start", "best", "gain", "low", "high", "level", "chance", "guard"} <= set(
        json.loads((tmp_path / SELECTION).read_text())
    )
    (tmp_path / SELECTION).write_text("{")
    with pytest.raises(InputError, match=r"selection\.json cannot be read"):
        selection.read(tmp_path)


def test_a_guard_that_is_not_met_or_cannot_be_told_keeps_the_start() -> None:
    found = chosen(guard=0.9)
    assert found.step == 0 and found.best_step == 7 and found.confidence is not None and found.confidence < 0.9
    assert "The start was kept: the confidence with which step 7 beats it on validation is 0." in found.notes[1]
    (before, examples), after = BATCH
    config, slow = make_config({"task": "reviews", "guard": 0.9}), counting(0.08)[0]
    for metric, start, why in ((slow, 0.25, "is too slow"), (slow, None, "the start has no score")):
        told = select(config, metric, Look(0, start, before), Look(7, 0.75, after), examples, looks=3, steps=9)
        assert told.step == 0 and told.gain is None and why in str(told.why) and "cannot be told" in told.notes[1]
    assert (
        "+0.500 over the start, without an interval"
        in select(
            make_config({"task": "reviews"}), slow, Look(0, 0.25, before), Look(7, 0.75, after), examples, looks=3, steps=9
        ).notes[0]
    )
    same = select(config, slow, Look(0, 0.25, before), Look(0, 0.25, before), examples, looks=3, steps=9)
    assert (same.step, same.gain, same.chance, same.notes) == (0, 0.0, 0.5, [])


def test_what_a_guard_could_never_judge_is_refused_before_the_run() -> None:
    apart = isolated(counting()[0], Isolation(timeout=60.0))
    for given, metric in (({"pass_at": 2, "samples": 4}, resolve("exact_match")), ({}, apart)):
        with pytest.raises(InputError, match=r"guard=0\.9 cannot be judged: .*Leave it out"):
            selection.check(make_config({"task": "sums", "guard": 0.9, **given}), metric)
        selection.check(make_config({"task": "sums", **given}), metric)
        selection.check(make_config({"task": "sums", "guard": 0.9, "method": "zero-shot", **given}), metric)
    with pytest.raises(InputError, match="Setting guard=1"):
        make_config({"task": "sums", "guard": 1.0})


# Runs

SMALL: dict[str, Any] = {
    "task": "reviews", "tune": "head", "steps": 8, "batch": 32, "directions": 4, "scale": 1.0, "learning_rate": 0.4,
    "evaluations": 8, "n_train": 32, "n_validation": 40, "n_test": 20,
    "ft": {"learning_rates": [1e-2], "steps": 5, "batch": 8},
}  # fmt: skip


def coin(prompts: list[str], completions: list[str]) -> list[float]:
    """Random labels: which option is right says nothing of any other example."""
    return [float((crc32(p.encode()) >> 7) % 2 == ("positive" in c)) for p, c in zip(prompts, completions, strict=True)]


def negative(completions: list[str], **columns: Any) -> list[float]:
    return [float("negative" in text) for text in completions]


def run(own: Callable[..., Any], folder: Path, method: str = "zo", **given: Any) -> Path:
    config: RunConfig = make_config(method_settings({**SMALL, **given}, method))
    return execute(config, folder, bench=Workbench.open(config, from_callable(own)), show=False)


def found_in(folder: Path) -> Selection:
    found = selection.read(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(coin, tmp_path_factory.mktemp("guard") / "a", guard=0.9)


def test_on_random_labels_the_guard_keeps_the_start(guarded: Path, tmp_path: Path) -> None:
    found = found_in(guarded)
    assert found.best_step > 0 and found.best > (found.start or 0) and found.step == 0 and found.looks == 8
    rows = pd.read_csv(guarded / "results.csv")
    assert set(rows["best_step"]) == {0} and rows["value"].iloc[0] == pytest.approx(found.start)
    assert "The start was kept" in (guarded / NOTES).read_text() and not (guarded / FIRST).exists()
    assert "step 0 replays to the saved weights bit for bit" in verify(guarded)
    restored = restore(guarded)
    assert restored.step == restored.best_step == 0 and restore(guarded, found.best_step).step == found.best_step
    export(guarded, tmp_path / "model")
    alone = run(coin, tmp_path / "z", "zero-shot", model=str(tmp_path / "model"))
    assert pd.read_csv(alone / "results.csv")["value"].tolist() == pytest.approx(rows["value"].tolist())


@pytest.mark.parametrize("killed", ["climbing", "measuring"])
def test_a_killed_run_keeps_the_start_as_well(
    guarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """Killed at its fourth look, or when the start is back in place and its results are being measured."""
    name, at = ("watch", 6) if killed == "climbing" else ("measure", 1)
    plain, calls = getattr(Run, name), 0

    def dying(self: Run, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return plain(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Run, name, dying)
        with pytest.raises(KeyboardInterrupt):
            run(coin, tmp_path / "a", guard=0.9)
    folder = run(coin, tmp_path / "a", guard=0.9)
    for each in ("journal.zoj", BEST, SELECTION, NOTES, "predictions.jsonl"):
        assert (folder / each).read_bytes() == (guarded / each).read_bytes(), each
    assert {p.name for p in folder.iterdir()} == {p.name for p in guarded.iterdir()}


def test_a_clear_gain_passes_and_then_the_guard_changes_no_bit(tmp_path: Path) -> None:
    folder, plain = (run(negative, tmp_path / str(guard), guard=guard) for guard in (0.95, None))
    found, without = found_in(folder), found_in(plain)
    assert found.step == found.best_step > 0 and found.confidence is not None and found.confidence >= 0.95
    assert found.low is not None and found.low > 0 and found.gain == without.gain and found.low == without.low
    assert without.guard is None and without.confidence is None
    for name in (BEST, "predictions.jsonl"):
        assert (folder / name).read_bytes() == (plain / name).read_bytes()
    assert f"step {found.step} replays" in verify(folder) and not (folder / FIRST).exists()
    assert "over the start (95 %, paired bootstrap" in (plain / NOTES).read_text()


@pytest.mark.parametrize("method", ["best-of-n", "ft:head"])
def test_other_methods_that_choose_a_step_are_guarded_too(method: str, guarded: Path, tmp_path: Path) -> None:
    held = run(coin, tmp_path / "a", method, guard=0.98)
    found = found_in(held)
    assert found.step == 0 and found.best_step > 0 and restore(held).best_step == 0 and not (held / FIRST).exists()
    rows = pd.read_csv(held / "results.csv")
    assert set(rows["best_step"]) == {0} and rows["value"].iloc[0] == pytest.approx(found.start)
    untouched = dict(restore(guarded).lm.model.named_parameters())
    kept = load_file(held / BEST)
    assert kept and all(torch.equal(values, untouched[name]) for name, values in kept.items())


def test_a_chain_goes_on_from_what_the_guard_kept(guarded: Path, tmp_path: Path) -> None:
    config = make_config(method_settings({**SMALL, "guard": 0.9, "methods": {"zo+zo": {"steps": 1}}}, "zo+zo"))
    bench = Workbench.open(config, from_callable(coin))
    folder = execute(config, tmp_path / "a", bench=bench, show=False, earlier=lambda before, output: guarded)
    assert read_history(folder / "history.csv")[0].validation == pytest.approx(found_in(guarded).start)
