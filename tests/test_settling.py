"""A run with settings from a survey: within its forwards, the same when taken up again, and no step where none helps."""

import json
from pathlib import Path

import pandas as pd
import pytest

from zo_objectives import climbing
from zo_objectives.building import search_seed
from zo_objectives.compare import plan_runs
from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError
from zo_objectives.language.outputs import Example, Outputs
from zo_objectives.replay import verify
from zo_objectives.results import read_history
from zo_objectives.run import NOTES, execute
from zo_objectives.settling import SETTLED, SURVEY
from zo_objectives.workbench import Workbench

FEW = {"n_train": 300, "n_validation": 60, "n_test": 60, "evaluations": 3, "settle": "probe"}


def config(method: str = "zo", **settings: object) -> RunConfig:
    plan = plan_runs(["reviews"], [method], [3], {**FEW, **settings}, budget=None, demo=False)
    return plan.configs[0]


def constant(outputs: Outputs, examples: list[Example]) -> float:
    return 0.5


def test_settings_follow_from_a_survey_and_stay_when_a_run_is_taken_up_again(tmp_path: Path) -> None:
    wanted = config(steps=40, tune="features")
    folder = execute(wanted, tmp_path / "run", show=False)
    found = json.loads((folder / SETTLED).read_text())
    assert found["verdict"] in ("signal", "weak") and found["scale"] in (0.03, 0.1, 0.3, 1.0, 3.0)
    assert len(pd.read_csv(folder / SURVEY)) > 5
    history = read_history(folder / "history.csv")
    assert history[-1].step == found["steps"] > 0
    assert history[-1].forwards <= wanted.forwards(40) + 1  # one pass for the features
    assert "Settled by a survey" in (folder / NOTES).read_text()
    assert "bit for bit" in verify(folder)
    (folder / "results.csv").unlink()  # as if it had been killed at the end
    before = (folder / "journal.zoj").read_bytes()
    execute(wanted, folder, show=False)
    assert (folder / "journal.zoj").read_bytes() == before
    assert json.loads((folder / SETTLED).read_text()) == found


def test_no_step_is_taken_where_nothing_helps(tmp_path: Path) -> None:
    wanted = config(steps=20, tune="features")
    folder = execute(wanted, tmp_path / "flat", bench=Workbench.open(wanted, _flat()), show=False)
    assert json.loads((folder / SETTLED).read_text())["verdict"] == "none"
    assert [row.step for row in read_history(folder / "history.csv")] == [0]
    results = pd.read_csv(folder / "results.csv")
    assert set(results["best_step"]) == {0}


def _flat() -> object:
    from zo_objectives.language.objectives import from_callable

    return from_callable(constant, "constant")


@pytest.mark.parametrize("given", [{"estimator": "es"}, {"shaping": "raw"}, {"growth": "linear"}])
def test_a_survey_settles_only_what_it_knows(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(InputError, match="settle=probe is for"):
        execute(config(steps=20, tune="features", **given), tmp_path / "run", show=False)


@pytest.mark.parametrize("steps", [0, 5])
def test_a_survey_that_takes_all_forwards_is_refused_before_it_is_made(tmp_path: Path, steps: int) -> None:
    with pytest.raises(InputError, match=f"takes 161 forward passes for its survey, and this run has {32 * steps}"):
        execute(config(steps=steps, tune="features"), tmp_path / "run", show=False)
    assert not (tmp_path / "run" / SETTLED).exists()


def test_a_survey_is_charged_once_wherever_the_run_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(steps=24, tune="head")
    whole = read_history(execute(wanted, tmp_path / "whole", show=False) / "history.csv")
    with monkeypatch.context() as broken:
        broken.setattr(climbing, "_climbed", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(wanted, tmp_path / "left", show=False)
    assert (tmp_path / "left" / SETTLED).exists() and not (tmp_path / "left" / "history.csv").exists()
    again = execute(wanted, tmp_path / "left", show=False)
    assert [r.forwards for r in read_history(again / "history.csv")] == [r.forwards for r in whole]
    (again / "results.csv").unlink()
    execute(wanted, again, show=False)
    assert [r.tokens for r in read_history(again / "history.csv")] == [r.tokens for r in whole]


def _interrupted(*given: object) -> None:
    raise KeyboardInterrupt


def test_stages_of_a_chain_are_settled_apart(tmp_path: Path) -> None:
    chain = config("mezo-ce+zo", steps=20, tune="features")
    assert search_seed(chain) != search_seed(chain.before or chain)
    folder = execute(chain, tmp_path / "chain", show=False)
    assert (folder / SETTLED).exists() and (folder / "before" / SETTLED).exists()


def test_a_run_that_everything_ties_in_stops_and_says_so_and_stays_stopped(tmp_path: Path) -> None:
    """Sixteen steps out to the farthest scale, and thirty in a row without a word; a batch is all of train already."""
    wanted = config(steps=120, tune="head", settle="given", pace="ties", batch=512, directions=1)
    bench = Workbench.open(wanted, _flat())
    folder = execute(wanted, tmp_path / "flat", bench=bench, show=False)
    assert read_history(folder / "history.csv")[-1].step == 16 + 30
    told = (folder / NOTES).read_text()
    assert "stopped at step 46 of 120: all pairs tied for 30 steps, though probes went 16 times as far" in told
    assert "bit for bit" in verify(folder)
    (folder / "results.csv").unlink()
    execute(wanted, folder, bench=bench, show=False)
    assert read_history(folder / "history.csv")[-1].step == 46
