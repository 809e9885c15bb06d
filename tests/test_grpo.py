"""GRPO by TRL: what is drawn and paid for, that rewards reach TRL and move the model, and that nothing else is touched."""

import random
import socket
import sys
from collections.abc import Iterator
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from zo_objectives import grpo as method
from zo_objectives.active_run import Run
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError, Unfit
from zo_objectives.grpo import Rollouts, meant
from zo_objectives.language.objectives import from_callable
from zo_objectives.language.outputs import Choices, Generations
from zo_objectives.methods import method_settings
from zo_objectives.replay import restore
from zo_objectives.results import read_history
from zo_objectives.run import NOTES, execute
from zo_objectives.workbench import Workbench

SMALL: dict[str, Any] = {
    "task": "tidy", "n_train": 40, "n_validation": 8, "n_test": 8,
    "grpo": {"steps": 2, "batch": 3, "generations": 4, "learning_rates": [1e-3]},
}  # fmt: skip
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")


def config(given: dict[str, Any] | None = None, **grpo: Any) -> RunConfig:
    return make_config(method_settings({**SMALL, **(given or {}), "grpo": {**SMALL["grpo"], **grpo}}, "grpo"))


def rollouts(given: dict[str, Any] | None = None, own: Any = None, **grpo: Any) -> Rollouts:
    bench = Workbench.open(config(given, **grpo), own)
    return Rollouts.of(Run(bench, bench.config, Path("."), show=False), bench.fresh())


def results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv").drop(columns=["seconds", "peak_memory_mb"])


# Without TRL


def test_completions_are_drawn_as_evaluation_draws_them_and_each_on_its_own() -> None:
    drawing = rollouts()
    numbers = [3, 3, 3, 7]
    made = drawing.draw([str(n) for n in numbers], None)
    assert made["prompt_ids"] == [list(drawing.pool.prompts[n]) for n in numbers]
    said = made["completion_ids"]
    assert all(0 < len(tokens) <= drawing.pool.new_tokens for tokens in said)
    assert all(token not in drawing.stops for tokens in said for token in tokens[:-1])
    assert len({tuple(tokens) for tokens in said[:3]}) == 3, "the draws of one prompt differ"
    cost = drawing.pool.cost
    assert (cost.forwards, cost.examples) == (1, 4)
    assert cost.tokens == sum(map(len, made["prompt_ids"])) + sum(map(len, said))
    drawing.charge_step()
    assert (cost.forwards, cost.examples, cost.tokens) == (4, 16, 4 * drawing.sizes[1])
    assert drawing.draw(["3"], None)["completion_ids"][0] != said[0], "and those of another batch do"


def test_a_reward_sees_texts_as_they_are_scored_and_may_not_apply() -> None:
    seen: list[str] = []

    def some(completions: list[str], **columns: Any) -> list[float | None]:
        seen.extend(completions)
        return [1.0, None, 0.5]

    drawing = rollouts(own=from_callable(some))
    made = drawing.draw(["1", "1", "2"], None)
    assert drawing.reward(["1", "1", "2"], made["completion_ids"], trainer_state=None) == [1.0, None, 0.5]
    outputs = drawing.outputs(made["completion_ids"], drawing.pool.at(np.array([1, 1, 2])))
    assert isinstance(outputs, Generations) and seen == list(outputs.texts)
    assert drawing.mean == 0.75


def test_a_text_means_the_longest_option_that_it_begins_with() -> None:
    example = tiny.choice(0, "it was", [" good", " goodish", " bad"], label=1)
    said = {" good": 0, "good film": 0, "\n goodish, but": 1, " bad": 2, "": 0, "so good": 0, " BAD": 0}
    assert {text: meant(text, example) for text in said} == said
    assert meant("nothing", tiny.choice(0, "it was", [" good", " bad"], label=0)) == 1


def test_options_are_drawn_as_texts() -> None:
    drawing = rollouts({"task": "reviews", "objective": "accuracy"})
    longest = max(len(ids) for ids in drawing.pool.tokenize(drawing.pool.examples[0].options))
    assert drawing.new_tokens == longest < drawing.pool.new_tokens
    examples = drawing.pool.at(np.array([0, 1]))
    right = [drawing.pool.tokenize([e.options[e.label]])[0] for e in examples]
    wrong = drawing.pool.tokenize([" of the"])[0]
    assert drawing.reward(["0", "1"], right) == [1.0, 1.0] and drawing.mean == 1.0
    assert drawing.reward(["0", "1"], [right[0], wrong]) == [1.0, 0.0]
    assert isinstance(drawing.outputs(right, examples), Choices)


def test_what_cannot_be_a_reward_is_left_out_of_a_comparison() -> None:
    with pytest.raises(Unfit, match="'f1_macro' is none: it is of a whole batch"):
        rollouts({"task": "reviews", "objective": "f1_macro"})
    with pytest.raises(Unfit, match="'cross_entropy' is none"):
        rollouts({"objective": "cross_entropy"})


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"Setting grpo\.generations=1"):
        config(generations=1)
    with pytest.raises(InputError, match=r"Setting grpo\.learning_rates\.0=0"):
        config(learning_rates=[0])
    with pytest.raises(InputError, match="Did you mean 'generations'"):
        config(generation=4)


def test_without_trl_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "zo_objectives.grpo_trainer", raising=False)
    monkeypatch.delattr("zo_objectives.grpo_trainer", raising=False)
    with pytest.raises(InputError, match=r"pip install 'zo-objectives\[grpo\]'"):
        execute(config(), tmp_path / "a", show=False)


# With it


@pytest.fixture(scope="module")
def shared() -> Workbench:
    return Workbench.open(config())


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*given: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.slow
@needs_trl
def test_a_run_charges_every_pass_and_leaves_only_its_folder(
    beta: float, shared: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    method._trainer()  # reading trl draws a random number
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    folder = execute(config(beta=beta, learning_rates=[1e-3, 1e-4]), tmp_path / "a", bench=shared, show=False)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert capfd.readouterr() == ("", "")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert {p.name for p in folder.iterdir()} == {
        "best.safetensors", "config.yaml", "history.csv", "predictions.jsonl", "results.csv",
    }  # fmt: skip
    rows, passes = results(folder), 1 + 3 + (beta > 0)
    assert (rows["forwards"] == 2 * 2 * passes).all() and (rows["examples"] == 2 * 2 * passes * 12).all()
    assert (rows["tune"] == "all").all() and rows["parameters"].eq(1_066_112).all() and set(rows["method"]) == {"grpo"}
    history = read_history(folder / "history.csv")
    assert [r.step for r in history] == [0, 1, 2] and [r.forwards for r in history] == [0, passes, 2 * passes]
    assert all(r.validation is not None for r in history) and all(r.objective is not None for r in history[1:])


@pytest.mark.slow
@needs_trl
def test_rewards_reach_trl_and_the_reference_is_the_start(
    shared: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zo_objectives import grpo_trainer

    told: list[dict[str, Any]] = []

    class Spy(grpo_trainer.GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            out = super()._generate_and_score_completions(inputs)
            told.append({"rewards": list(self._logs["rewards"]["reward"]), "advantages": out["advantages"]})
            return out

        def log(self, logs: Any, start_time: Any = None) -> None:
            told[0]["kl"] = list(self._metrics["train"]["kl"])
            super().log(logs, start_time)

    monkeypatch.setattr(grpo_trainer, "GRPOTrainer", Spy)
    means: list[float] = []
    scored = Rollouts.reward

    @wraps(scored)
    def noting(self: Rollouts, *given: Any, **named: Any) -> Any:
        found = scored(self, *given, **named)
        means.extend(found)
        return found

    monkeypatch.setattr(Rollouts, "reward", noting)
    folder = execute(config(beta=0.1), tmp_path / "a", bench=shared, show=False)
    assert [r for step in told for r in step["rewards"]] == pytest.approx(means) and len(means) == 2 * 12
    groups = np.array(told[0]["rewards"]).reshape(3, 4)
    wanted = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(told[0]["advantages"].numpy(), wanted.reshape(-1), atol=1e-4)
    assert told[0]["kl"][0] == pytest.approx(0.0, abs=1e-6) and told[0]["kl"][1] > 1e-6
    assert read_history(folder / "history.csv")[1].objective == pytest.approx(np.mean(means[:12]))


@pytest.mark.slow
@needs_trl
def test_it_climbs_the_tasks_own_reward(tmp_path: Path) -> None:
    given = config({"n_train": 64, "n_validation": 40}, steps=4, batch=8, generations=8, learning_rates=[3e-4])
    folder = execute(given, tmp_path / "a", show=False)
    first, *later = (r.validation for r in read_history(folder / "history.csv") if r.validation is not None)
    assert len(later) == 4 and max(later) > first + 0.05
    restored = restore(folder)
    assert restored.best_step == results(folder)["best_step"].iloc[0] > 0


@pytest.mark.slow
@needs_trl
def test_equal_rewards_move_nothing_and_whoever_comes_next_finds_the_base(shared: Workbench, tmp_path: Path) -> None:
    def same(completions: list[str], **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    given = config()
    bench = Workbench.open(given, from_callable(same))
    base = {n: p.clone() for n, p in bench.lm.model.named_parameters()}
    execute(given, tmp_path / "a", bench=bench, show=False)
    assert all(torch.equal(p, base[n]) for n, p in bench.pool.lm.model.named_parameters())
    assert bench.stale and not any(p.requires_grad for p in bench.pool.lm.model.parameters())
    alone = execute(config({"method": "zero-shot"}), tmp_path / "b", show=False)
    execute(config(steps=1), tmp_path / "c", bench=shared, show=False)
    after = execute(config({"method": "zero-shot"}), tmp_path / "d", bench=shared, show=False)
    pd.testing.assert_frame_equal(results(alone), results(after))


@pytest.mark.slow
@needs_trl
def test_it_is_a_function_of_the_seed_and_trains_on_options_too(tmp_path: Path) -> None:
    given = {"task": "reviews", "objective": "accuracy"}
    a, b, c = (execute(config({**given, "seed": s}), tmp_path / str(i), show=False) for i, s in enumerate((0, 0, 1)))
    assert (a / "best.safetensors").read_bytes() == (b / "best.safetensors").read_bytes()
    pd.testing.assert_frame_equal(results(a), results(b))
    told = [[(r.objective, r.tokens) for r in read_history(f / "history.csv")] for f in (a, b, c)]
    assert told[0] == told[1] != told[2]


@pytest.mark.slow
@needs_trl
def test_a_failing_reward_stops_it_or_leaves_the_step_without_reward(tmp_path: Path) -> None:
    def picky(completions: list[str], **columns: Any) -> list[float]:
        if len(completions) == 12:
            raise ValueError("boom")
        return [text.count("e") / max(1, len(text)) for text in completions]

    for failure in ("stop", "skip-step"):
        given = config({"on_failure": failure})
        bench = Workbench.open(given, from_callable(picky))
        if failure == "stop":
            with pytest.raises(method.Failure, match="boom"):
                execute(given, tmp_path / failure, bench=bench, show=False)
            continue
        folder = execute(given, tmp_path / failure, bench=bench, show=False)
        assert "2 of 2 steps had no reward" in (folder / NOTES).read_text()
        assert set(results(folder)["best_step"]) == {0}
