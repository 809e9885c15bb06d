"""A survey around real weights: what it costs, what it leaves alone, that its numbers are the objective's, and its word."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from zo_objectives import cli
from zo_objectives.building import Search
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError
from zo_objectives.outcomes import Means, Wholes
from zo_objectives.search.estimators import Part, Probe
from zo_objectives.search.keys import direction_keys, fold_in, root_key
from zo_objectives.survey import BATCHES, STREAM, Survey, prepared, survey
from zo_objectives.survey import _Look as Look
from zo_objectives.workbench import Workbench

SHARED = Path(__file__).parents[1] / ".." / "shared"
FEW: dict[str, Any] = {"scales": (0.1, 1.0), "pairs": 3, "examples": 64}
SMALL = {"n_train": 80, "n_validation": 16, "n_test": 16}


def config(task: str = "reviews", **given: Any) -> RunConfig:
    base = {"task": task, **SMALL, "tune": "norms" if task == "sums" else "head"}
    return make_config({**base, **given})


def opened(task: str = "reviews", **given: Any) -> tuple[Workbench, Search]:
    return prepared(config(task, **given))


@pytest.fixture(scope="module")
def reviews() -> Iterator[tuple[Workbench, Search]]:
    yield opened()


def around(search: Search, indices: np.ndarray[Any, Any], scale: float = 0.3, pairs: int = 2) -> tuple[Any, list[Probe]]:
    keys = direction_keys(fold_in(root_key(0), STREAM), pairs)
    look = Look(search, indices, keys)
    return look.around(scale, look.said([Probe(0, 0.0)])), [Probe(0, 0.0)] + [
        Probe(k, s * scale) for k in keys for s in (1, -1)
    ]


def test_a_survey_charges_its_forwards_and_leaves_the_weights_alone(reviews: tuple[Workbench, Search]) -> None:
    bench, search = reviews
    before, cost = search.weights.fingerprint(), search.evaluation.scorer.pool.cost
    spent = cost.forwards
    found = survey(search, bench.train, 0, **FEW)
    assert found.forwards == cost.forwards - spent == 1 + 2 * 3 * 2
    assert search.weights.fingerprint() == before
    assert {row.scale for row in found.rows} == {0.1, 1.0}
    assert [row.batch for row in found.rows[: len(found.rows) // 2]] == [16, 32, 64, 80]
    seen = found.frame.set_index("batch")["ties_seen"]
    assert seen[32].notna().all() and seen[64].isna().all()  # more than half of the examples
    assert found.examples == 64


def test_a_survey_follows_from_its_seed(reviews: tuple[Workbench, Search]) -> None:
    bench, search = reviews
    first, again, other = (survey(search, bench.train, seed, **FEW) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert (first.recommended, first.told) == (again.recommended, again.told)
    assert not first.frame.equals(other.frame)


@pytest.mark.parametrize(
    ("task", "given", "kind"),
    [
        ("reviews", {"objective": "accuracy"}, Means),
        ("reviews", {"objective": "margin"}, Means),
        ("reviews", {"objective": "f1_macro"}, Wholes),
        ("reviews", {"objective": "mcc"}, Wholes),
        ("reviews", {"method": "mezo-ce"}, Wholes),
        ("reviews", {"objective": "accuracy", "temperature": 1.0, "samples": 4}, Means),
        ("reviews", {"objective": "accuracy", "temperature": 1.0, "samples": 4, "pass_at": 2}, Means),
        ("sums", {}, Means),
        ("sums", {"method": "mezo-ce"}, Wholes),
        ("tidy", {}, Means),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else getattr(value, "__name__", value),
)
def test_scores_of_parts_are_the_objectives_own(task: str, given: dict[str, Any], kind: type) -> None:
    """What is read off kept outputs is what the evaluation says of the same probes on the same examples."""
    bench, search = opened(task, **given)
    indices = bench.train[:24] if task == "reviews" else bench.train[:16]
    outcomes, probes = around(search, indices)
    assert isinstance(outcomes, kind)
    said, scores = outcomes.said(), search.evaluation.scores(probes, indices)
    assert [said.rest, *said.whole.ravel()] == pytest.approx([float(s) for s in scores], abs=1e-6)
    half = np.arange(len(indices) // 2)
    own = [float(s) for s in search.evaluation.scores(probes, indices[half])]
    parts = outcomes.values[:, half].mean(1) if isinstance(outcomes, Means) else outcomes.score(half)
    assert parts == pytest.approx(own, abs=1e-4)  # padding differs, and so do the last digits


@pytest.fixture(scope="module")
def apart() -> Iterator[tuple[Workbench, Search]]:
    yield opened(tune="features:24", n_train=None, objective="accuracy")


def test_directions_are_taken_apart_where_the_run_does_so(apart: tuple[Workbench, Search]) -> None:
    """For the same forwards, a pair a label row; a direction ties where all of its pairs do."""
    bench, search = apart
    parts, cost = search.estimator.parts, search.evaluation.scorer.pool.cost
    assert parts == 2 and search.weights.count == 2 * 25
    spent = cost.forwards
    found = survey(search, bench.train, 0, **FEW)
    assert found.forwards == cost.forwards - spent == 1 + 2 * 3 * 2
    assert {row.numbers for row in found.rows} == {25}

    indices = bench.train[:200]
    outcomes, (rest, *ends) = around(search, indices, scale=0.1, pairs=8)
    probes = [rest, *(e._replace(part=Part(i, 2)) for plus in ends[::2] for i in range(2) for e in (plus, _minus(plus)))]
    scores = [float(s) for s in search.evaluation.scores(probes, indices)]
    assert outcomes.said().whole.ravel() == pytest.approx(scores[1:], abs=1e-6)
    drawn = [np.random.default_rng(i).choice(np.arange(100, 200), 16, replace=False) for i in range(100)]
    tied = [_directions_tied(search.evaluation.scores(probes, indices[d])[1:]) for d in drawn]
    seen, predicted = outcomes.ties(16, np.random.default_rng(0))
    assert 0.02 < seen == pytest.approx(float(np.mean(tied)), abs=0.05) and predicted == pytest.approx(seen, abs=0.1)


def _minus(probe: Probe) -> Probe:
    return probe._replace(scale=-probe.scale)


def _directions_tied(scores: Sequence[float]) -> float:
    """The share of directions whose pairs, two a direction, all tie."""
    pairs = np.asarray(scores, dtype=np.float64).reshape(-1, 2, 2)
    return float((pairs[..., 0] == pairs[..., 1]).all(1).mean())


def test_an_estimate_from_directions_apart_is_nearer_to_the_gradient() -> None:
    cosines = []
    for rows in ("apart", "together"):
        bench, search = opened(tune="features:24", n_train=None, rows=rows)
        found = survey(search, bench.train, 0, scales=(1.0,), pairs=16, batches=())
        cosines.append(found.rows[-1].squared_cosine(4))
    assert cosines[0] > 1.5 * cosines[1] > 0


def test_rewards_that_do_not_apply_are_left_out() -> None:
    values = np.array([[1.0, 0, np.nan, 1], [1, np.nan, 0, 0], [0, 0, 0, np.nan]])
    said = Means(values).said()
    assert said.rest == pytest.approx(2 / 3) and said.whole == pytest.approx(np.array([[1 / 3, 0]]))
    assert said.plus[0] == pytest.approx([1, 1 / 3, 0, 0])
    assert 0 <= Means(values).ties(2, np.random.default_rng(0)).seen <= 1


def test_ties_of_a_mean_are_those_of_the_batches_themselves() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((1 + 2 * 40, 600)) < 0.5).astype(np.float64)
    values[2::2] = np.where(rng.random((40, 600)) < 0.9, values[1::2], values[2::2])
    found = Means(values).ties(32, rng)
    second = values[1:, 300:]
    chosen = [rng.choice(300, 32, replace=False) for _ in range(300)]
    own = np.mean([second[::2, c].sum(1) == second[1::2, c].sum(1) for c in chosen])
    assert found.seen == pytest.approx(own, abs=0.03) and found.predicted == pytest.approx(own, abs=0.06)
    other = Means(values / 3 + 0.25).ties(32, rng)  # not 0 or 1: predicted from batches, too
    assert other.seen == pytest.approx(own, abs=0.03) and other.predicted == pytest.approx(own, abs=0.06)
    assert Means(rng.standard_normal(values.shape)).ties(32, rng) == (0, 0)


def error(found: Survey) -> tuple[float, float]:
    """Mean absolute errors of predicted tie rates on held-out examples: ours, and the closed form's."""
    frame = found.frame.dropna(subset=["ties_seen", "ties_formula"])
    seen = frame["ties_seen"]
    return float((seen - frame["ties_predicted"]).abs().mean()), float((seen - frame["ties_formula"]).abs().mean())


def test_predicted_ties_beat_the_closed_form_on_the_embedded_model() -> None:
    bench, search = opened(objective="accuracy", n_train=None, n_validation=None, n_test=None)
    everything = np.arange(len(bench.pool.examples))
    found = survey(search, everything, 0, examples=len(everything), batches=BATCHES[:-1])
    ours, published = error(found)
    assert ours < 0.07 < 0.1 < published
    assert found.verdict == "signal"


@pytest.mark.parametrize("task", ["sst2_good_bad"])
def test_predicted_ties_beat_the_closed_form_on_another_model(task: str) -> None:
    model, data = SHARED / "models" / "TinyStories-656K", SHARED / "data"
    if not (model.is_dir() and data.is_dir()):
        pytest.skip("TinyStories-656K and SST-2 are not in ../shared")
    few = {"n_train": 2048, "n_validation": 16, "n_test": 16}
    bench, search = opened(task, objective="accuracy", model=str(model), data_dir=str(data), **few)
    ours, published = error(survey(search, bench.train, 0, examples=2048))
    assert ours < 0.05 < 0.1 < published


def test_a_flat_objective_is_said_to_be_flat(reviews: tuple[Workbench, Search]) -> None:
    bench, search = reviews
    found = survey(search, bench.train, 0, scales=(1e-9,), pairs=2, examples=64)
    assert found.verdict == "none" and found.recommended is None
    assert "no pair scored differently" in found.told and "--tune" in found.told
    assert (found.frame["ties_seen"].dropna() == 1).all() and (found.frame["p"] == 1).all()


def test_scores_by_chance_are_said_to_be_chance(reviews: tuple[Workbench, Search]) -> None:
    """A reward that looks at nothing but luck: pairs differ, and no batch will tell how to climb."""
    bench, search = reviews
    rng = np.random.default_rng(0)
    luck = replace(search.evaluation.objective, samples=lambda outputs, examples: rng.random(len(examples)).tolist())
    search.evaluation.objective, kept = luck, search.evaluation.objective
    try:
        found = survey(search, bench.train, 0, scales=(0.1, 0.3), pairs=8, examples=80)
    finally:
        search.evaluation.objective = kept
    assert found.verdict == "none" and "no more than chance" in found.told


def test_layer_sizes_are_measured_as_by_a_first_step_and_blocks_take_turns() -> None:
    given = {"layerwise": {"sizes": "zeroth-order", "directions": 1}, "tune": "norms", "n_train": 16}
    bench, search = opened(**given)
    assert search.weights.layers is not None
    found = survey(search, bench.train, 0, scales=(0.1,), pairs=2)
    assert found.forwards == 2 * search.weights.layers.count + 1 + 4
    assert (search.weights.sizes == 1).all()
    bench, search = opened(blocks="round-robin", tune="norms", n_train=16)
    assert survey(search, bench.train, 0, scales=(0.1,), pairs=2).forwards == 5


@pytest.mark.parametrize("given", [{"pairs": 1}, {"examples": 8}, {"scales": (0.0, 0.1)}])
def test_a_survey_that_cannot_work_is_refused(given: dict[str, Any], reviews: tuple[Workbench, Search]) -> None:
    bench, search = reviews
    with pytest.raises(InputError, match="2 or more pairs"):
        survey(search, bench.train, 0, **{**FEW, **given})


# The command


def probe(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["zo-objectives", "probe", "reviews", "--quiet", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


FLAGS = ("--pairs", "8", "--scales", "0.3,1", "--budget", "600")


def test_the_command_that_it_prints_runs_what_is_recommended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also where a file sets the same for the method, and --set says otherwise."""
    (tmp_path / "s.yaml").write_text("methods: {zo: {scale: 0.01}}\n")
    table = tmp_path / "t.csv"
    more = ("--config", str(tmp_path / "s.yaml"), "--set", "estimator=es", "--set", "batch=7")
    more += ("--set", "n_train=320", "--output", str(table))
    assert probe(monkeypatch, *FLAGS, *more) == 0
    said = capsys.readouterr().out
    (line,) = re.findall(r"^zo-objectives run .*$", said, re.MULTILINE)
    assert max(map(len, said.replace(line, "").splitlines())) <= 120
    frame = pd.read_csv(table)
    assert set(frame["scale"]) == {0.3, 1.0} and frame["batch"].is_unique is False
    ran = list[RunConfig]()
    monkeypatch.setattr("zo_objectives.run.execute", lambda config, folder, **given: ran.append(config) or 1 / 0)
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(ZeroDivisionError):
        cli.main()
    (config,) = ran
    assert config.scale in (0.3, 1.0) and config.estimator == "spsa" and config.batch >= 64
    assert config.forwards(config.steps) <= 600 and config.n_train == 320


def test_none_is_an_answer_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(monkeypatch, "--pairs", "2", "--scales", "1e-9") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Verdict: none." in said and "zo-objectives run" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scales", "0.1,x"], "--scales 0.1,x"),
        (["--scales", "0.1,-1"], "above 0"),
        (["--method", "icl"], "a survey is of zo, zo-ce or mezo-ce"),
        (["--set", "relative=false"], "relative=false"),
        (["--objective", "acuracy"], "Did you mean 'accuracy'?"),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(monkeypatch, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_failing_objective_is_wrong_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def bad(predictions, references):\n    raise KeyError('x')\n")
    assert probe(monkeypatch, *FLAGS, "--objective", f"{tmp_path}/mine.py:bad") == 2
    assert "Nothing was measured" in " ".join(capsys.readouterr().err.split())
