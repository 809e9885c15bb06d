"""What a failing or odd objective does to a run: it stops and can go on, or steps are left out, noted and replayed."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch

from zo_objectives import failures
from zo_objectives.api import Tuned, tune
from zo_objectives.errors import InputError, RunError, SkipStep
from zo_objectives.language.objectives import resolve, weighted
from zo_objectives.replay import verify
from zo_objectives.results import read_history
from zo_objectives.search import journal
from zo_objectives.search.adaptive import Adaptive, parameter_norms, zeroth_order_norms
from zo_objectives.search.estimators import Estimator, OnePoint, Probe, Spsa
from zo_objectives.search.journal import Journal, header_for
from zo_objectives.search.layers import by_layer
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.rules import UpdateRule, momentum
from zo_objectives.search.schedules import constant
from zo_objectives.search.weights import Weights

SMALL: dict[str, Any] = {
    "tune": "norms", "steps": 6, "batch": 8, "directions": 1, "scale": 0.1, "evaluations": 2, "n_train": 32,
    "n_validation": 8, "n_test": 8,
}  # fmt: skip


# The loop


def weights_for(model: small.Tiny, rule: UpdateRule | None = None) -> Weights:
    names = small.tuned_names(model)
    rule = rule or small.adam()
    return Weights(model, names, geometry=small.Dense(), rule=rule, layers=by_layer(names))


def failing(evaluate: Callable[[Sequence[Probe], int], Sequence[float]], at: set[int]) -> Any:
    def maybe(probes: Sequence[Probe], t: int) -> Sequence[float]:
        if t in at:
            raise SkipStep(f"not in step {t}")
        return evaluate(probes, t)

    return maybe


@pytest.mark.parametrize("estimator", [Spsa(0.1, 2), OnePoint(0.1)], ids=["spsa", "one_point"])
@pytest.mark.parametrize("sizes", [None, parameter_norms, zeroth_order_norms(0.1, 1)], ids=["plain", "norms", "zeroth"])
@pytest.mark.parametrize("at", [{0}, {2, 3}, {7}, {0, 1, 4}])
def test_steps_that_are_left_out_replay_and_resume_to_the_same_bits(
    estimator: Estimator, sizes: Any, at: set[int], tmp_path: Path
) -> None:
    """Law 4 with failures: in the first step, in the last, where sizes are measured, with moments and with memory."""
    every = Adaptive(sizes, every=3) if sizes is not None else None

    def go(path: Path, steps: int) -> tuple[list[Any], str]:
        model = small.Tiny()
        weights = weights_for(model)
        evaluate = failing(sequential(weights, lambda t: small.score(model, t)), at)
        with Journal.open(path, header_for(weights, estimator, 3, every)) as log:
            taken = list(climb(weights, estimator, evaluate, steps=steps, seed=3, journal=log, adaptive=every))
        return taken, weights.fingerprint()

    taken, live = go(tmp_path / "a.zoj", 8)
    assert [s.t for s in taken if s.skipped] == sorted(at)
    assert all(s.scores == () and s.skipped == f"not in step {s.t}" for s in taken if s.skipped)
    header, records = journal.read(tmp_path / "a.zoj")
    assert [t for t, r in enumerate(records) if r.skipped] == sorted(at) and len(records) == 8
    again = weights_for(small.Tiny())
    journal.replay(header, records, again)
    assert again.fingerprint() == live
    go(tmp_path / "b.zoj", 4)
    assert go(tmp_path / "b.zoj", 8)[1] == live
    assert (tmp_path / "b.zoj").read_bytes() == (tmp_path / "a.zoj").read_bytes()


def test_a_step_that_is_left_out_moves_nothing_not_even_by_momentum() -> None:
    model = small.Tiny()
    weights = weights_for(model, momentum(constant(0.1)))
    evaluate = failing(sequential(weights, lambda t: small.score(model, t)), {2, 3})
    seen = []
    for _ in climb(weights, Spsa(0.1), evaluate, steps=5, seed=1):
        seen.append(weights.fingerprint())
    assert seen[1] == seen[2] == seen[3] and len(set(seen)) == 3


# Runs


class Scorer:
    """A reward that fails in some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = set(steps)

    def __call__(self, completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        if trainer_state.global_step in self.steps:
            raise OSError("no connection")
        return [float(len(text)) for text in completions]


def run(objective: Any, output: Path, **given: Any) -> Tuned:
    return tune("sums", objective=objective, output=output, show=False, **{**SMALL, **given})


def test_a_failure_stops_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="raised OSError: no connection"):
        run(flaky := Scorer(4), tmp_path / "a")
    assert len(journal.read(tmp_path / "a" / "journal.zoj")[1]) == 3
    flaky.steps.clear()
    run(flaky, tmp_path / "a")
    straight = run(Scorer(), tmp_path / "b")
    for name in ("journal.zoj", "best.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (straight.folder / name).read_bytes()


def test_failing_steps_are_left_out_counted_and_never_scored_zero(tmp_path: Path) -> None:
    done = run(Scorer(2, 3), tmp_path / "a", on_failure="skip-step")
    lines = [json.loads(line) for line in (done.folder / "skipped.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines] == [2, 3] and all("no connection" in row["reason"] for row in lines)
    assert "2 of 6 steps were left out: see skipped.jsonl." in done.notes
    history = {row.step: row.objective for row in read_history(done.folder / "history.csv")}
    assert [step for step in range(1, 7) if history[step] is None] == [2, 3]
    assert [t + 1 for t, r in enumerate(journal.read(done.folder / "journal.zoj")[1]) if r.skipped] == [2, 3]
    assert "bit for bit" in verify(done.folder)


def test_a_run_that_stopped_at_a_failure_may_go_on_with_steps_left_out(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        run(Scorer(4), tmp_path / "a")
    done = run(Scorer(4), tmp_path / "a", on_failure="skip-step", isolation={"timeout": 60.0})
    assert "1 of 6 steps were left out: see skipped.jsonl." in done.notes


def test_what_always_fails_is_not_skipped_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "IN_A_ROW", 3)
    with pytest.raises(RunError, match=r"3 steps in a row were left out, the last since: .*no connection"):
        run(Scorer(*range(2, 20)), tmp_path / "a", on_failure="skip-step", steps=20)


def test_a_run_whose_validation_always_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zo_objectives.active_run import Run

    monkeypatch.setattr(Run, "validation", lambda self, scorer, metric: None)
    with pytest.raises(RunError, match="failed whenever validation was looked at"):
        run(Scorer(), tmp_path / "a", on_failure="skip-step", steps=2)


def test_a_function_that_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    def slow(completions: list[str], **columns: Any) -> list[float]:
        time.sleep(0.6)
        return [0.0 for _ in completions]

    with pytest.raises(InputError, match=r"took more than 0\.2 s on a batch"):
        run(slow, tmp_path / "a", isolation={"timeout": 0.2})


def test_a_constant_is_noticed_and_said(tmp_path: Path) -> None:
    def constantly(completions: list[str], **columns: Any) -> list[float]:
        return [1.0 for _ in completions]

    assert any(
        "'constantly' gave 1" in note and "cannot be climbed" in note for note in run(constantly, tmp_path, steps=1).notes
    )


def test_what_an_objective_is_made_of_is_written_down_step_by_step(tmp_path: Path) -> None:
    def short(completions: list[str], **columns: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    done = run("exact_match + 0.1 * words", tmp_path / "a")
    found = pd.read_csv(done.folder / "components.csv")
    assert set(found["component"]) == {"exact_match", "words"} and set(found["step"]) == set(range(1, 7))
    history = {row.step: row.objective for row in read_history(done.folder / "history.csv")}
    for step, rows in found.groupby("step"):
        of = rows.set_index("component")["value"]
        assert history[int(str(step))] == pytest.approx(of["exact_match"] + 0.1 * of["words"])
    mixed = run(weighted((1.0, resolve("exact_match")), (2.0, resolve(short))), tmp_path / "b", steps=2)
    assert set(pd.read_csv(mixed.folder / "components.csv")["component"]) == {"exact_match", "short"}


def test_rewards_get_the_tokens_and_the_step_of_the_run(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def looking(completions: list[str], completion_ids: list[list[int]], trainer_state: Any, **columns: Any) -> list[float]:
        seen.append((trainer_state.global_step, trainer_state.max_steps))
        assert all(isinstance(i, int) for ids in completion_ids for i in ids)
        return [float(len(ids)) for ids in completion_ids]

    run(looking, tmp_path / "a")
    assert {step for step, _ in seen} >= set(range(1, 7)) and {total for _, total in seen} == {6}


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_score_as_the_run_itself_does(workers: int, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def size(completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    name = f"{tmp_path / 'mine.py'}:size"
    done = run(name, tmp_path / f"w{workers}", isolation={"workers": workers}, steps=2)
    plain = run(name, tmp_path / "plain", steps=2)
    assert (done.folder / "best.safetensors").read_bytes() == (plain.folder / "best.safetensors").read_bytes()
    np.testing.assert_array_equal(done.results["value"], plain.results["value"])


def test_the_three_ways_in_give_the_same_score(tmp_path: Path) -> None:
    """From Python, on the command line, and in a task's file."""
    from typer.testing import CliRunner

    from zo_objectives.cli import app
    from zo_objectives.language.tasks import find_task

    name = "0.5 * exact_match + numeric_match"
    text = find_task("sums").read_text() + "\n"
    task = tmp_path / "mine.yaml"
    task.write_text(
        text.replace("  source:", f'  objective: "{name}"\n  source:').replace("metric: exact_match", f'metric: "{name}"')
    )
    given = [f"--set={key}={value}" for key, value in SMALL.items() if key not in ("tune", "steps")]
    called = [
        "run",
        "sums",
        "--objective",
        name,
        "--tune",
        "norms",
        "--steps",
        "6",
        "--output",
        str(tmp_path / "cli"),
        "--quiet",
        *given,
    ]
    done = CliRunner().invoke(app, called)
    assert done.exit_code == 0, done.output
    python = run(name, tmp_path / "python").folder
    yaml = tune(str(task), output=tmp_path / "yaml", show=False, **SMALL).folder
    journals = {(folder / "best.safetensors").read_bytes() for folder in (tmp_path / "cli", python, yaml)}
    assert len(journals) == 1
    heads = [pd.read_csv(folder / "results.csv")["value"].iloc[0] for folder in (tmp_path / "cli", python, yaml)]
    assert heads[0] == heads[1] == heads[2]
    assert torch.get_num_threads() >= 1


def test_the_command_line_tells_what_is_odd(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from zo_objectives.cli import app

    (tmp_path / "mine.py").write_text("def same(completions, **columns):\n    return [1.0 for _ in completions]\n")
    given = [f"--set={key}={value}" for key, value in SMALL.items() if key not in ("tune", "steps")]
    called = ["run", "sums", "--objective", f"{tmp_path / 'mine.py'}:same", "--steps", "1", "--output", str(tmp_path / "a")]
    done = CliRunner().invoke(app, [*called, "--quiet", *given])
    assert done.exit_code == 0, done.output
    assert "Note: Objective 'same' gave 1" in done.output and "cannot be climbed" in done.output
