"""The benchmark: what it compares is what it says, on small things; its figures are for `make bench`."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from zo_objectives import bench_language, bench_search
from zo_objectives.bench import measure, write
from zo_objectives.cli import app
from zo_objectives.errors import InputError
from zo_objectives.search.kernels import Kernels
from zo_objectives.timing import Row, Setting, Times, check, in_turns

SMALL = Setting(shape="tiny", repeat=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernels, "warm", lambda self: False)
    monkeypatch.setattr(bench_search, "ELEMENTS", 1 << 12)
    monkeypatch.setattr(bench_search, "BATCH", 2)
    monkeypatch.setattr(bench_search, "LENGTH", 4)
    monkeypatch.setattr(bench_language, "POPULATIONS", (2, 4))
    monkeypatch.setattr(bench_language, "JUDGED", 4)
    monkeypatch.setattr(bench_language, "NEW_TOKENS", 2)
    monkeypatch.setattr(bench_language, "TEXTS", 2)
    monkeypatch.setattr(bench_language, "PROMPTS", 2)


@pytest.mark.parametrize("part", ["noise", "step", "journal", "members", "text"])
def test_a_part_measures_and_says_so(part: str) -> None:
    told: list[Row] = []
    rows = measure(SMALL, [part], told.append)
    assert rows == told and {row.part for row in rows} == {part}
    assert all(math.isfinite(row.value) and row.value > 0 for row in rows)
    assert any(row.goal for row in rows) and all((row.met is None) == (not row.goal) for row in rows)


def test_the_reference_step_is_mezos_algorithm_1() -> None:
    """In float64, on a quadratic, against the published lines written out with stored noise."""
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)
    parameters = [nn.Parameter(start[:4].clone()), nn.Parameter(start[4:].clone())]

    def loss_at(theta: torch.Tensor) -> float:
        return float((theta**2 * torch.arange(1, 7)).sum())

    eps, rate, seed = 1e-3, 1e-2, 3
    torch.manual_seed(seed)
    z = torch.cat([torch.normal(0, 1, (4,), dtype=torch.float64), torch.normal(0, 1, (2,), dtype=torch.float64)])
    projected = (loss_at(start + eps * z) - loss_at(start - eps * z)) / (2 * eps)
    with torch.no_grad():
        bench_search.reference_step(parameters, lambda: loss_at(torch.cat([*parameters])), seed, eps, rate)
    torch.testing.assert_close(torch.cat([*parameters]).detach(), start - rate * projected * z, atol=1e-9, rtol=0)


def test_a_step_of_the_bench_is_a_step_of_climb() -> None:
    bed = bench_search.Bed(SMALL, batch=2)
    before = bed.weights.fingerprint()
    bed.step()
    assert bed.weights.fingerprint() != before and bed.steps == 1


def test_goals_are_about_the_ratio_or_else_the_value() -> None:
    assert Row("p", "w", 5.0, "s", "other", 1.05, "<= 1.08").met is True
    assert Row("p", "w", 5.0, "s", "other", 1.09, "<= 1.08").met is False
    assert Row("p", "w", 5.0, "s", goal=">= 5").met is True
    assert Row("p", "w", 5.0, "s").met is None
    assert "(goal <= 1.08: NOT met)" in Row("p", "w", 5.0, "s", "other", 1.09, "<= 1.08").told


def test_ratios_are_medians_of_neighbours() -> None:
    times = Times({"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]})
    assert times.ratio("a", "b") == 2.0 and times.median("a") == 3.0
    calls: list[str] = []
    in_turns({n: lambda n=n: calls.append(n) for n in "ab"}, Setting(repeat=2))  # type: ignore[misc]
    assert calls == ["a", "b"] * 3


def test_what_is_written(tmp_path: Path) -> None:
    rows = measure(SMALL, ["members", "journal"], lambda row: None)
    path = write(rows, SMALL, tmp_path / "out", "zo-objectives bench")
    frame = pd.read_csv(path)
    assert len(frame) == len(rows) and set(frame["part"]) == {"members", "journal"}
    about = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert about["command"] == "zo-objectives bench" and "OPT-tiny" in about["what"]
    picture = (tmp_path / "out" / "members.svg").read_text()
    assert picture.startswith("<svg xmlns=") and picture.count("<polyline") == 3
    write([row for row in rows if row.part == "journal"], SMALL, tmp_path / "less", "")
    assert not (tmp_path / "less" / "members.svg").exists()


def test_wrong_settings_are_named() -> None:
    for wrong, message in ((Setting(shape="125"), "Did you mean '125m'"), (Setting(dtype="fp8"), "Unknown dtype")):
        with pytest.raises(InputError, match=message):
            check(wrong)
    with pytest.raises(InputError, match=r"Unknown part 'nois'\. Did you mean 'noise'"):
        measure(SMALL, ["nois"], lambda row: None)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="No CUDA device"):
            check(Setting(device="cuda"))


def test_the_command(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "journal", "--shape", "tiny", "--repeat", "1", "--output", str(tmp_path)])
    assert done.exit_code == 0 and "same bits" in done.output and (tmp_path / "bench.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["memory", "trunk", "start"])
def test_a_slow_part_measures_too(part: str) -> None:
    rows = measure(SMALL, [part], lambda row: None)
    assert {row.part for row in rows} == {part} and all(math.isfinite(row.value) and row.value > 0 for row in rows)
