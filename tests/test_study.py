"""Studies: what is planned, what is chosen, what is made again, and what the tables say; and real ones, small."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from zo_objectives import crew
from zo_objectives.cli import main
from zo_objectives.config import RunConfig, make_config
from zo_objectives.config_files import dump
from zo_objectives.crew import Outcome, together
from zo_objectives.errors import InputError, RunError, Unfit
from zo_objectives.report import write_report
from zo_objectives.results import ResultRow, to_csv
from zo_objectives.run import execute
from zo_objectives.study_file import Study, read_study
from zo_objectives.study_plan import Earlier, Job, Places, StudyPlan, Trial, jobs, plan_study
from zo_objectives.study_runs import FAILED, choose, gather
from zo_objectives.workbench import Workbench

EXAMPLE = Path(__file__).parent.parent / "examples" / "study.yaml"
SMALL: dict[str, Any] = {
    "seeds": [13, 21],
    "tuning_seeds": [0],
    "baseline": "mezo-ce",
    "settings": {"n_train": 24, "n_validation": 12, "n_test": 12, "batch": 8, "directions": 1, "evaluations": 1},
    "grids": {"zo": {"scale": [0.3, 1.0]}},
    "cells": [
        {"task": "reviews", "metric": "accuracy", "methods": ["mezo-ce", "zo"], "budget": 4},
        {"task": "sums", "metric": "exact_match", "methods": ["zero-shot", "zo"], "budget": 2, "settings": {"tune": "head"}},
    ],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


HERE = Places()


def planned(output: Path = Path("s"), places: Places = HERE, only: tuple[str, ...] = (), **changes: Any) -> StudyPlan:
    return plan_study(Study.model_validate({**SMALL, **changes}), places, output, only)


def cell(*methods: Any, **given: Any) -> list[dict[str, Any]]:
    return [{"task": "reviews", "metric": "accuracy", "methods": list(methods), **given}]


# The file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seds": [1]}, "field 'seds': Unknown field 'seds'. Did you mean 'seeds'"),
        ({"seeds": [1, 1]}, "field 'seeds': give each seed once"),
        ({"seeds": []}, "field 'seeds': .*at least 1"),
        ({"cells": []}, "field 'cells'"),
        ({"cells": cell("zo", bugdet=4)}, "field 'cells.0.bugdet': .*Did you mean 'budget'"),
        ({"cells": [{"task": "reviews", "methods": ["zo"]}]}, "field 'cells.0.metric' is missing"),
        ({"cells": cell("zo", "mezo")}, r"field 'cells.0.methods.1.method': Unknown method 'mezo'"),
        ({"cells": cell({"method": "zo", "nam": "x"})}, "field 'cells.0.methods.0.nam': .*Did you mean 'name'"),
        ({"cells": cell("zo", "zo")}, "'zo' stands here twice: give each a `name`"),
        ({"cells": cell("zo", "mezo-ce") * 2}, "two cells 'reviews, reviews-1m': give each a `name`"),
        ({"baseline": "ft"}, "Unknown method in baseline 'ft'"),
        ({"pairs": [["zo", "mezoce"]]}, "Unknown method in pairs 'mezoce'. Did you mean 'mezo-ce'"),
        ({"pairs": [["zo", "zo"]]}, "compares a method with itself"),
        ({"pairs": [["zero-shot", "mezo-ce"]]}, "no cell has both methods"),
        ({"pairs": [["zo"]]}, "field 'pairs.0.1' is missing"),
        ({"tuning_seeds": [21]}, "seed 21 is in tuning_seeds and in seeds"),
        ({"grids": {"ft": {}}}, "Unknown method in grids 'ft'"),
        ({"grids": {"zo": {"scale": 0.3}}}, "field 'grids.zo.scale': .*list"),
        ({"settings": {"objective": "f1"}}, "field 'settings': objective is no setting here: it is a field of a cell"),
        ({"cells": cell({"method": "zo", "settings": {"seed": 1}})}, "methods.0.settings': seed is no setting here"),
        ({"cells": cell({"method": "zo", "settings": {"methods": {}}})}, "methods is of the study's settings"),
    ],
)
def test_a_wrong_file_is_refused_by_field_and_with_a_cure(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_study(written(tmp_path, **changes))


def test_what_is_wrong_in_a_cell_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unknown method 'mezo'") as told:
        read_study(written(tmp_path, cells=cell("mezo")))
    assert "at least 1" not in str(told.value)


def test_a_grid_of_what_a_survey_decides_is_refused() -> None:
    probed = {"method": "zo", "name": "probed", "settings": {"settle": "probe"}}
    with pytest.raises(InputError, match="probed: a grid of scale has no meaning with settle=probe"):
        planned(cells=cell("mezo-ce", probed), grids={"probed": {"scale": [0.3, 1.0]}})
    planned(cells=cell("mezo-ce", probed), grids={"probed": {"tune": ["features:8", "features:24"]}})


def test_a_metric_of_another_kind_of_task_is_refused_before_anything_is_run() -> None:
    with pytest.raises(InputError, match=r"Cell .*: Objective 'f1_macro' needs a multiple-choice task"):
        planned(cells=[{"task": "tidy", "metric": "f1_macro", "methods": ["mezo-ce"], "budget": 4}], grids={})


def test_a_missing_file_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The study .*nothing.yaml cannot be read"):
        read_study(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(InputError, match="must hold a mapping"):
        read_study(tmp_path / "list.yaml")


def test_what_is_compared_with_what() -> None:
    cells = cell("mezo-ce", "zo", "ft", "ft+zo")
    study = Study.model_validate({**SMALL, "cells": cells, "pairs": [["ft+zo", "ft"], ["zo", "mezo-ce"]]})
    assert study.compared() == (("zo", "mezo-ce"), ("ft", "mezo-ce"), ("ft+zo", "mezo-ce"), ("ft+zo", "ft"))
    assert Study.model_validate({**SMALL, "baseline": None, "pairs": [["zo", "mezo-ce"]]}).compared() == (("zo", "mezo-ce"),)


# The plan


def trial(plan: StudyPlan, name: str) -> Trial:
    return next(t for t in plan.cells[0].trials if t.name == name)


def one(plan: StudyPlan, name: str, spot: int = 0, seed: int = 13) -> RunConfig:
    return trial(plan, name).spots[spot].jobs[seed].config


def test_what_wins_over_what() -> None:
    """A grid's point over the entry's settings, those over a method's, those over the cell's, those over the study's."""
    plan = planned(
        settings={
            "batch": 1,
            "steps": 1,
            "tasks": {"reviews": {"batch": 2, "clip": 5.0}},
            "methods": {"zo": {"scale": 9.0}},
        },
        cells=cell("mezo-ce", {"method": "zo", "settings": {"clip": 7.0, "scale": 8.0}}, settings={"batch": 3}),
    )
    loss, metric = one(plan, "mezo-ce"), one(plan, "zo", 1)
    assert (loss.batch, loss.steps, loss.clip) == (3, 1, 5.0)
    assert (metric.batch, metric.clip, metric.scale) == (3, 7.0, 1.0)


def test_the_metric_counts_for_every_method_and_is_climbed_unless_said_otherwise() -> None:
    variant = {"method": "zo", "name": "zo on F1", "settings": {"objective": "f1_macro"}}
    plan = planned(cells=cell("zero-shot", "mezo-ce", "zo", variant))
    assert {(c.metric, c.objective) for c in (one(plan, m) for m in ("zero-shot", "mezo-ce", "zo"))} == {
        ("accuracy", "accuracy")
    }
    other = one(plan, "zo on F1")
    assert (other.metric, other.objective, other.called) == ("accuracy", "f1_macro", "zo on F1")
    plan = planned(cells=cell("mezo-ce", "zo", objective="f1_macro"))
    assert (one(plan, "zo").metric, one(plan, "zo").objective) == ("accuracy", "f1_macro")


def test_the_metric_chooses_while_another_objective_is_climbed() -> None:
    settings = {**SMALL["settings"], "task": "reviews", "metric": "accuracy", "objective": "f1_macro"}
    bench = Workbench.open(make_config(settings))
    assert [metric.name for metric in bench.metrics][:2] == ["accuracy", "f1_macro"]
    assert bench.objective(bench.config).name == "f1_macro"
    assert not bench.serves(make_config({**settings, "metric": "mcc"}))


def test_forwards_are_equal_by_budget() -> None:
    plan = planned(
        grids={"zo": {"directions": [1, 2, 4]}, "mezo-ce": {"scale": [0.1]}}, cells=cell("mezo-ce", "zo", budget=16)
    )
    configs = [job.config for job in jobs(plan.cells)]
    assert {c.forwards(c.steps) for c in configs} == {16}
    with pytest.raises(InputError, match="Cell 'reviews, reviews-1m': --budget 1 is less than one step"):
        planned(cells=cell("mezo-ce", "zo", budget=1))


def test_variants_share_their_methods_grid_unless_they_have_their_own() -> None:
    variant = {"method": "zo", "name": "zo, drawn", "settings": {"temperature": 1.0, "samples": 2}}
    plan = planned(cells=cell("mezo-ce", "zo", variant))
    assert [s.name for s in trial(plan, "zo, drawn").spots] == ["scale=0.3", "scale=1"]
    plan = planned(cells=cell("mezo-ce", "zo", variant, grids={"zo, drawn": {"clip": [1.0]}}))
    assert [s.name for s in trial(plan, "zo, drawn").spots] == ["clip=1"]
    assert len(trial(plan, "zo").spots) == 2


def test_a_point_twice_is_refused() -> None:
    with pytest.raises(InputError, match="has a value twice"):
        planned(grids={"zo": {"scale": [0.3, 0.3]}})


def folders(plan: StudyPlan) -> set[str]:
    return {job.folder.as_posix() for job in jobs(plan.cells)}


def test_folders_follow_from_settings_so_that_a_changed_study_runs_what_is_new() -> None:
    before = folders(planned())
    assert len(before) == len(list(jobs(planned().cells))) == 2 * 3 * 3
    assert folders(planned(grids={"zo": {"scale": [0.3, 1.0, 3.0]}})) > before
    assert folders(planned(seeds=[13, 21, 42])) > before
    assert folders(planned(places=Places(device="cpu", models="elsewhere"))) == before
    assert not folders(planned(settings={**SMALL["settings"], "batch": 9})) & before
    assert folders(planned(about="x", baseline=None)) == before


def test_model_names_are_looked_up_in_a_folder_first(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    cells = [*cell("mezo-ce", "zo", model="small"), *cell("zo", model="org/other")]
    plan = planned(places=Places(models=str(tmp_path)), cells=cells)
    assert one(plan, "zo").model == str(tmp_path / "small")
    assert plan.cells[1].trials[0].spots[0].jobs[13].config.model == "org/other"


def test_a_chain_begins_with_the_cells_own_run_where_there_is_one() -> None:
    plan = planned(cells=cell("ft", "ft+zo", "mezo-ce", "mezo-ce+zo", budget=8), grids={"ft+zo": {"scale": [0.1, 0.2]}})
    before, chain = (trial(plan, name).spots[0].jobs[13] for name in ("ft", "ft+zo"))
    assert chain.config.before == before.config
    for spot in trial(plan, "ft+zo").spots:
        assert spot.jobs[13].earlier(spot.jobs[13].config.stages[0], Path()) == before.folder
    half = trial(plan, "mezo-ce+zo").spots[0].jobs[21]  # each stage has half of the budget
    where = half.earlier(half.config.stages[0], Path())
    assert where.parent == trial(plan, "mezo-ce").spots[0].jobs[21].folder.parent
    assert where != trial(plan, "mezo-ce").spots[0].jobs[21].folder


def test_only_names_tasks_and_their_data_is_looked_for(tmp_path: Path) -> None:
    cells = [*cell("mezo-ce", "zo"), {"task": "sst2", "metric": "accuracy", "methods": ["zo"]}]
    assert [c.task for c in planned(cells=cells, only=("reviews",), places=Places(str(tmp_path))).asked] == ["reviews"]
    with pytest.raises(InputError, match=r"'sst2, reviews-1m': .*train.jsonl does not exist"):
        planned(cells=cells, places=Places(str(tmp_path)))
    with pytest.raises(InputError, match=r"Unknown task in --only 'review'. Did you mean 'reviews'"):
        planned(only=("review",))


# Scheduling, with runs that cost nothing


class Runs:
    """Runs that only write their rows; `fails` by method and seed, `stop` after so many."""

    def __init__(self) -> None:
        self.made: list[Path] = []
        self.fails: dict[tuple[str, int], Exception] = {}
        self.stop = 10**9

    def __call__(self, config: RunConfig, output: Path, **given: Any) -> Path:
        if (output / "results.csv").exists():
            return output
        if error := self.fails.get((config.called, config.seed)):
            raise error
        if len(self.made) == self.stop:
            raise KeyboardInterrupt
        value = (0.1 if config.method == "mezo-ce" else config.scale / 2) + config.seed / 1000
        row = dict(task=config.task, model="m", method=config.called, objective="o", tune="", seed=config.seed, n=12)
        row |= dict(forwards=8, examples=64, tokens=640, seconds=1.0, peak_memory_mb=1.0, parameters=1, best_step=1)
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(dump(config))
        split = [ResultRow(**row, split=s, metric=str(config.metric), value=value) for s in ("validation", "test")]
        (output / "results.csv").write_text(to_csv(split, ResultRow))
        self.made.append(output)
        return output


class Bench:
    open = classmethod(lambda cls, config: cls())

    def fitted(self, config: RunConfig) -> "Bench":
        return self


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(crew, "execute", found)
    monkeypatch.setattr(crew, "Workbench", Bench)
    monkeypatch.setattr("zo_objectives.study.execute", found)
    return found


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command, on a study with changes; exit code, output and errors."""

    def call(*options: str, **changes: Any) -> tuple[int, str, str]:
        arguments = ["study", str(written(tmp_path, **changes)), "--output", str(tmp_path / "s"), "--quiet", *options]
        monkeypatch.setattr(sys, "argv", ["zo-objectives", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return code if isinstance(code, int) else 1, *capsys.readouterr()

    return call


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(folder / "s" / f"{name}.csv") for name in ("results", "tuning", "table", "differences")}


def test_points_are_chosen_on_tuning_seeds_and_reported_on_others(study: Call, runs: Runs, tmp_path: Path) -> None:
    assert study()[0] == 0
    assert len(runs.made) == 2 * (2 + 4)  # of each cell: zo at two points, and two methods on two seeds
    found = tables(tmp_path)
    assert set(found["tuning"]["seed"]) == {0} and set(found["results"]["seed"]) == {13, 21}
    assert found["tuning"].set_index("point")["chosen"].to_dict() == {"scale=0.3": False, "scale=1": True}
    assert set(found["results"].query("method == 'zo'")["point"]) == {"scale=1"}
    table = found["table"].set_index(["task", "method"])
    assert table.loc[("reviews", "zo"), ["points", "tuning_runs", "tuning_forwards"]].tolist() == [2, 2, 16]
    assert table.loc[("reviews", "zo"), "difference"] == pytest.approx(0.5 - 0.1)
    assert table.loc[("reviews", "zo"), "verdict"] == "win"
    assert table.loc[("sums", "zo"), "against"] != "mezo-ce"  # it is not there
    about = json.loads((tmp_path / "s" / "study.json").read_text())
    assert about["command"].startswith("zo-objectives study") and about["study"]["baseline"] == "mezo-ce"
    told = json.loads((tmp_path / "s" / "verdict.json").read_text())
    assert told["pairs"][0] | {"method": "zo", "win": ["reviews, reviews-1m"], "loss": []} == told["pairs"][0]
    assert "wins on reviews, reviews-1m" in (tmp_path / "s" / "verdict.md").read_text()
    assert "| reviews, reviews-1m | accuracy |" in (tmp_path / "s" / "table.md").read_text()


def test_the_first_of_equal_points_is_chosen(runs: Runs, tmp_path: Path) -> None:
    plan = planned(tmp_path, grids={"zo": {"clip": [1.0, 2.0]}})
    zo = trial(plan, "zo")
    assert choose(zo, (0,)) is None  # open
    for spot in zo.spots:
        runs(spot.jobs[0].config, spot.jobs[0].folder)
    assert choose(zo, (0,)) is zo.spots[0]
    assert choose(trial(plan, "mezo-ce"), (0,)) is trial(plan, "mezo-ce").spots[0]


def test_repeated_it_makes_nothing_and_changed_only_what_is_new(study: Call, runs: Runs, tmp_path: Path) -> None:
    study()
    before, made = tables(tmp_path), len(runs.made)
    code, said, _ = study()
    assert code == 0 and f"{made} runs were there" in said and len(runs.made) == made
    for name, table in tables(tmp_path).items():
        pd.testing.assert_frame_equal(table, before[name])
    study(grids={"zo": {"scale": [0.3, 1.0, 2.0]}})
    new = [path.name.partition("-")[0] for path in runs.made[made:]]
    assert new.count("scale=2") == len(new) == 2 * (1 + 2)  # tried on one seed, chosen, reported on two
    made = len(runs.made)
    study(grids={"zo": {"scale": [0.3, 1.0, 2.0]}}, seeds=[13, 21, 42])
    assert all("seed42" in path.name for path in runs.made[made:]) and len(runs.made) == made + 4


def test_interrupted_it_goes_on(study: Call, runs: Runs, tmp_path: Path) -> None:
    runs.stop = 7
    code, _, said = study()
    assert code == 130 and "Give the same command to go on" in said and len(runs.made) == 7
    assert set(tables(tmp_path)["results"]["task"]) == {"reviews"}  # the first cell is told already
    runs.stop = 10**9
    assert study()[0] == 0
    assert len(runs.made) == len(set(runs.made)) == 12


def test_only_some_tasks(study: Call, runs: Runs, tmp_path: Path) -> None:
    assert study("--only", "sums")[0] == 0
    assert set(tables(tmp_path)["results"]["task"]) == {"sums"} and len(runs.made) == 6
    assert "reviews, reviews-1m: nothing was run." in (tmp_path / "s" / "table.md").read_text()
    assert study("--only", "reviews")[0] == 0
    assert set(tables(tmp_path)["results"]["task"]) == {"reviews", "sums"} and len(runs.made) == 12
    assert "lacks" not in (tmp_path / "s" / "table.md").read_text()


def test_what_fails_becomes_a_note_and_is_tried_again(study: Call, runs: Runs, tmp_path: Path) -> None:
    runs.fails = {
        ("mezo-ce", 13): RunError("It diverged."),
        ("zero-shot", 13): Unfit("No."),
        ("zero-shot", 21): Unfit("No."),
    }
    code, said, errors = study()
    assert code == 1 and "3 of the study's runs could not be made" in errors
    assert "mezo-ce, seed 13: left out. It diverged." in said
    found = tables(tmp_path)["table"].set_index(["task", "method"])
    assert found.loc[("reviews", "mezo-ce"), "n_seeds"] == 1 and found.loc[("reviews", "zo"), "verdict"] == "unknown"
    assert ("sums", "zero-shot") not in found.index
    notes = json.loads((tmp_path / "s" / "study.json").read_text())["notes"]
    assert (
        "sums, reviews-1m: zero-shot, seeds 13, 21: No." in notes
        and "reviews, reviews-1m: mezo-ce, seed 13: It diverged." in notes
    )
    runs.fails, made = {}, len(runs.made)
    assert study()[0] == 0 and len(runs.made) == made + 3
    assert not list((tmp_path / "s").rglob(FAILED))


def test_a_point_that_fails_is_not_chosen(runs: Runs, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    good, bad = (spot.jobs[0] for spot in trial(plan, "zo").spots)
    runs(good.config, good.folder)
    bad.folder.mkdir(parents=True)
    (bad.folder / FAILED).write_text("It diverged.\n")
    assert choose(trial(plan, "zo"), (0,)) is trial(plan, "zo").spots[0]
    assert gather(plan).failures == 1


def test_a_method_that_fits_no_such_task_is_told(study: Call, runs: Runs) -> None:
    cells = [*SMALL["cells"][:1], {"task": "sums", "metric": "exact_match", "methods": ["lp", "zero-shot"]}]
    code, said, errors = study(cells=cells)
    assert code == 1 and "1 of the study's runs could not be made" in errors
    assert "sums, reviews-1m: lp left out. sums: no lp, since the task has no options." in " ".join(said.split())


def test_where_nothing_can_be_made_the_first_reason_is_given(study: Call, runs: Runs) -> None:
    runs.fails = {(m, seed): RunError("No disk.") for m in ("zo", "mezo-ce", "zero-shot") for seed in (0, 13, 21)}
    code, _, errors = study()
    assert code == 1 and "No run could be made" in errors and "No disk." in errors


def test_a_folder_of_another_run_is_refused(
    study: Call, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settings with data from another place would be another run in the same folder."""
    assert study()[0] == 0
    monkeypatch.setattr("zo_objectives.study.execute", execute)
    assert study()[0] == 0
    code, _, errors = study("--data-dir", str(tmp_path))
    assert code == 2 and "holds another run: data_dir" in " ".join(errors.split())


# Real ones


def test_the_example_is_a_study_and_a_small_one_runs(tmp_path: Path, study: Call) -> None:
    plan_study(read_study(EXAMPLE), Places(), tmp_path)
    code, said, errors = study()
    assert code == 0, errors
    assert said.count("on validation") == 12
    found = tables(tmp_path)
    assert found["table"].set_index(["task", "method"])["forwards"].to_dict() == {
        ("reviews", "mezo-ce"): 4, ("reviews", "zo"): 4, ("sums", "zero-shot"): 0, ("sums", "zo"): 2,
    }  # fmt: skip
    assert (found["results"].groupby(["task"])["metric"].first() == ["accuracy", "exact_match"]).all()
    assert all((tmp_path / "s" / run / "results.csv").exists() for run in found["results"]["run"])
    assert write_report([tmp_path / "s"], tmp_path / "r.html").stat().st_size > 5_000
    check_page((tmp_path / "s" / "study.html").read_text(encoding="utf-8"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "runs").rglob("*") if p.is_file()}
    assert study()[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "runs").rglob("*") if p.is_file()}


class Tags(HTMLParser):
    """Every tag is closed, nothing comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag == "meta" else [tag]
        assert tag not in ("script", "link", "img")
        assert all(name not in ("src", "href") or str(value).startswith("#cell-") for name, value in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert not tags.open and page.count('class="whisker') == 5  # four methods, one difference
    assert "NaN" not in page and ">nan" not in page and "reviews, reviews-1m" in page


def test_memory_that_runs_out_is_a_note(runs: Runs, tmp_path: Path) -> None:
    runs.fails = {("zero-shot", 0): torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")}
    first, second = crew.work([[zero_shot(tmp_path, 0), zero_shot(tmp_path, 1)]], show=False)
    assert "Memory ran out (CUDA out of memory)" in first.error and not second.error


def zero_shot(folder: Path, seed: int) -> Job:
    config = RunConfig(task="sums", method="zero-shot", n_train=8, n_validation=4, n_test=4, seed=seed)
    return Job(config, folder / str(seed), "sums", "exact_match", Earlier({}))


def test_a_worker_makes_whole_groups_and_tells_what_failed(tmp_path: Path) -> None:
    missing = zero_shot(tmp_path, 9)._replace(config=RunConfig(task="sums", model="./nowhere"))
    groups, told = [[zero_shot(tmp_path, 0), missing, zero_shot(tmp_path, 1)], [zero_shot(tmp_path, 2)]], list[Outcome]()
    together(lambda: groups.pop() if groups else None, told.append, 1)
    assert {o.folder.name: o.error for o in told if not o.error} == dict.fromkeys("012", "")
    assert ["nowhere does not exist" in o.error for o in told if o.error] == [True]
    assert all((tmp_path / name / "results.csv").exists() for name in "012")


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path, seeds=[1, 2, 3, 4])
    command = [sys.executable, "-m", "zo_objectives", "study", str(path), "--output", str(tmp_path / "s"), "--jobs", "2"]
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, ours)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list((tmp_path / "s").rglob("results.csv"))) < 3:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does, to all of them
    _, said = running.communicate(timeout=60)  # ends when no worker holds the pipe any more
    assert (
        running.returncode == 130
        and "Give the same command to go on" in said
        and "Traceback" not in said
        and "leaked" not in said
    )
    there = {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "runs").rglob("results.csv")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "leaked" not in done.stderr, done.stderr
    assert all(p.stat().st_mtime_ns == when for p, when in there.items())
    assert pd.read_csv(tmp_path / "s" / "table.csv")["n_seeds"].eq(4).all()
