"""Directions taken apart by rows: what is scored, what it costs, and that estimates are of less noise and none is biased."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_features import CHOICE, PROMPTS, SMALL, featured
from torch import nn

from zo_objectives.building import PARTS, Search, build_search
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError
from zo_objectives.language.outputs import Choices, Example
from zo_objectives.language.tasks import load_task
from zo_objectives.methods import method_settings
from zo_objectives.replay import verify
from zo_objectives.results import read_history
from zo_objectives.run import execute
from zo_objectives.scoring import REST, Kind, Pool, TailScorer, scorer_for
from zo_objectives.search import journal
from zo_objectives.search.estimators import Part, Probe, Spsa, passes, tie_rate
from zo_objectives.search.geometry import Dense
from zo_objectives.search.members import members
from zo_objectives.search.pace import Paced, State
from zo_objectives.search.rules import sgd
from zo_objectives.search.schedules import constant
from zo_objectives.search.shaping import SHAPINGS, raw, unit
from zo_objectives.search.stores import STORES
from zo_objectives.search.weights import Weights
from zo_objectives.settings import merge, task_settings
from zo_objectives.workbench import Workbench

EXACT = [name for name in STORES if name != "in_place"]


def rows_of(model: nn.Module, store: str = "inference") -> Weights:
    return Weights(model, ["weight", "bias"], geometry=Dense(), rule=sgd(constant(1.0)), store=store)


# Search


@pytest.mark.parametrize("store", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_probe_of_a_part_moves_its_rows_and_nothing_else(store: str, dtype: torch.dtype) -> None:
    model = nn.Linear(4, 5, dtype=dtype)
    weights, before = rows_of(model, store), {n: p.detach().clone() for n, p in model.named_parameters()}
    x = torch.randn(3, 4).to(dtype)
    with weights.at(Probe(7, 0.5)):
        whole = model(x)
    probes = [Probe(7, 0.5, part=Part(i, 2)) for i in range(2)] + [Probe(7, 0.5)]
    stacked = weights.stacked(probes)
    for i, probe in enumerate(probes[:2]):
        with weights.at(probe):
            said = model(x)
        assert torch.equal(said[:, i::2], whole[:, i::2])  # to the bit what the whole direction says there
        assert torch.equal(said[:, 1 - i :: 2], model(x)[:, 1 - i :: 2])
        assert torch.equal(said, nn.functional.linear(x, stacked["weight"][i].to(dtype), stacked["bias"][i].to(dtype)))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from(sorted(SHAPINGS)), st.integers(0, 99))
def test_parts_are_told_apart_and_weighed_as_whole_directions_are(parts: int, n: int, shaping: str, seed: int) -> None:
    """A row's share of the estimate is, but for what is shaped together, what it would be if the other rows were not there:
    in units of slopes with raw shaping; with unit shaping the step's root mean square is 1 whatever the parts."""
    rng = np.random.default_rng(seed)
    apart = Spsa(0.5, n, SHAPINGS[shaping], parts)
    scores = rng.normal(size=2 * n * parts)
    probes, found = apart.probes(3), apart.gradient(3, scores)
    assert len(probes) == len(scores) and passes(probes) == 2 * n
    assert found.parts == parts and len(found.keys) == n and len(found.coefficients) == n * parts
    assert apart.counts == ((0, n * parts),)
    for one, other in pairwise(probes[:2]):
        assert one.key == other.key and one.part == other.part and one.scale == -other.scale
    if shaping == "raw":
        for i in range(parts):
            own = [s for s, p in zip(scores, probes, strict=True) if p.part == Part(i, parts)]
            alone = Spsa(0.5, n, raw).gradient(3, own)
            np.testing.assert_allclose(found.coefficients.reshape(n, parts)[:, i], alone.coefficients, rtol=1e-5)
    if shaping == "unit":
        assert np.sum(found.coefficients.astype(float) ** 2) / parts == pytest.approx(1, rel=1e-5)


def test_what_is_added_is_each_rows_share_of_each_direction() -> None:
    model = nn.Linear(4, 5)
    weights = rows_of(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = Spsa(0.5, 3, raw, parts=2).gradient(3, np.random.default_rng(0).normal(size=12))
    cpu = torch.device("cpu")
    leaves = [t.leaf for t in weights.tuned]
    z = {leaf.name: weights.geometry.directions(found.keys, leaf, range(math.prod(leaf.shape)), cpu) for leaf in leaves}
    weights.ascend(0, found)
    shares = torch.from_numpy(found.coefficients).view(3, 2)
    for name, parameter in model.named_parameters():
        own = z[name].view(3, *parameter.shape)
        expected = sum(own[k] * shares[k][torch.arange(5) % 2].view(5, *[1] * (parameter.dim() - 1)) for k in range(3))
        torch.testing.assert_close(parameter.detach() - before[name], expected)


def test_a_single_share_moves_its_rows_only() -> None:
    """One coefficient that is not 0 must not take the way of whole directions."""
    model = nn.Linear(4, 5)
    weights, before = rows_of(model), model.weight.detach().clone()
    weights.ascend(0, Spsa(0.5, 1, unit, parts=5).gradient(3, [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))
    assert (model.weight != before).any(1).tolist() == [False, True, False, False, False]


def test_apart_an_estimate_has_less_noise_by_the_number_of_parts() -> None:
    """For a linear score of d numbers in p parts, E |g - E g|^2 of one pair is (d - 1) |grad|^2 whole, (d / p - 1) apart."""
    slope = torch.linspace(-1, 1, 60).view(6, 10)
    model = nn.Linear(10, 6, bias=False)
    weights = Weights(model, ["weight"], geometry=Dense(), rule=sgd(constant(1.0)))

    def noise(parts: int) -> float:
        estimator, errors = Spsa(0.1, 1, raw, parts), []
        for key in range(300):
            stacked = weights.stacked(estimator.probes(key))["weight"].double()
            found = estimator.gradient(key, (stacked * slope).sum((1, 2)).tolist())
            before = model.weight.detach().clone()
            weights.ascend(0, found)
            errors.append(float((model.weight.detach() - before - slope).square().sum()))
            model.weight.data.copy_(before)
        return float(np.mean(errors)) / float(slope.square().sum())

    assert noise(0) == pytest.approx(59, rel=0.1)
    assert noise(6) == pytest.approx(9, rel=0.1)


def test_members_in_one_pass_are_of_whole_directions() -> None:
    weights = rows_of(nn.Linear(4, 5))
    with pytest.raises(InputError, match="rows apart"), members(weights, [Probe(7, 0.5, part=Part(0, 2))], rows=1):
        pass


def test_passes_are_those_of_whole_directions() -> None:
    ends = [Probe(7, s, part=Part(i, 3)) for i in range(3) for s in (0.5, -0.5)]
    assert passes(ends) == 2
    assert passes([*ends, Probe(8, 0.5), Probe(8, -0.5), REST]) == 5
    assert passes([]) == 0


# Heads


def test_two_passes_tell_every_part() -> None:
    """The claim that the cost rests on: logits at all parts follow from those at the ends of the direction."""
    lm = tiny.make()
    examples = tuple(Example(i, p, {}, (" good", " bad", " film"), 0) for i, p in enumerate(PROMPTS[:3]))
    pool = Pool(lm, CHOICE, examples)
    subset = featured(pool, Kind.CHOICE)
    tail = scorer_for(pool, tiny.weights(lm, subset), subset)
    assert isinstance(tail, TailScorer)
    plus, minus, *apart = (
        o.loglikelihoods
        for o in tail.outputs(
            Kind.CHOICE,
            [Probe(9, 0.5), Probe(9, -0.5), *(Probe(9, s, part=Part(i, 3)) for i in range(3) for s in (0.5, -0.5))],
            np.arange(3),
        )
        if isinstance(o, Choices)
    )
    columns = pool.choices.columns.tolist()
    option_of_row = [columns.index(t) for t in (pool.choices.read_token[:3])]
    for i in range(3):
        for end, said in zip((plus, minus), apart[2 * i : 2 * i + 2], strict=True):
            expected = (plus + minus) / 2
            mine = [option for option, row in enumerate(option_of_row) if row == i]
            expected[:, mine] = end[:, mine]
            np.testing.assert_allclose(said, expected, atol=1e-5)
    assert pool.cost.forwards - 1 == 2 + 2  # the whole ones and the ones apart; and the pass that made the features


# Runs


def made(method: str = "zo", **settings: Any) -> RunConfig:
    spec, _ = load_task(settings.get("task", "reviews"))
    given = {**SMALL, "tune": "features:4", "rows": "apart", **settings}
    return make_config(method_settings(merge(task_settings(spec), given), method))


def search(config: RunConfig) -> Search:
    bench = Workbench.open(config)
    return build_search(bench, bench.fresh(config.tune), config)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, 2),
        ({"rows": "together"}, 0),
        ({"tune": "head"}, 0),
        ({"tune": "features:4+norms"}, 0),
        ({"estimator": "one_sided"}, 0),
        ({"task": "sums", "n_train": 16}, 0),
    ],
)
def test_rows_are_apart_where_that_costs_no_pass(settings: dict[str, Any], parts: int) -> None:
    assert search(made(**settings)).estimator.parts == parts


@pytest.mark.parametrize("method", ["zo", "mezo-ce", "zo-ce"])
def test_a_run_with_rows_apart_takes_no_more_passes_and_replays(method: str, tmp_path: Path) -> None:
    for rows in ("apart", "together"):
        execute(made(method, rows=rows), tmp_path / rows, show=False)
    apart, together = (read_history(tmp_path / rows / "history.csv") for rows in ("apart", "together"))
    spent = [[(r.forwards, r.examples, r.tokens) for r in rows] for rows in (apart, together)]
    assert spent[0] == spent[1]
    assert [r.forwards for r in apart] == [r.forwards for r in together] == [1, 5, 9, 13]
    header, records = journal.read(tmp_path / "apart" / "journal.zoj")
    assert header["parts"] == 2 and all(len(r.coefficients) == 2 * 2 for r in records)
    assert "parts" not in journal.read(tmp_path / "together" / "journal.zoj")[0]
    verify(tmp_path / "apart")


def test_many_rows_share_parts(tmp_path: Path) -> None:
    """A step takes no more than so many times the scores, however many classes there are."""
    letters = [chr(ord("a") + i) for i in range(PARTS + 3)]
    task = tmp_path / "many.yaml"
    task.write_text(
        "task: many\ndataset_path: x\noutput_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_target: label\n"
        f"doc_to_choice: {letters}\ntest_split: test\ntraining_split: train\nvalidation_split: validation\n"
        "metric_list: [{metric: acc}]\n"
    )
    folder = tmp_path / "many"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        lines = [f'{{"text": "the {split} film {i}", "label": {i % len(letters)}}}' for i in range(40)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    config = made(task="reviews").model_copy(update={"task": str(task), "data_dir": str(tmp_path), "n_train": None})
    assert search(config).estimator.parts == PARTS


def test_a_direction_ties_when_all_of_its_parts_do() -> None:
    """What the pace goes by: a row that few answers depend on ties often, and says nothing of how far probes should go."""
    apart = Spsa(0.5, 2, unit, parts=3)
    one = apart.gradient(3, [1, 0, 0, 0, 0, 0, *[0.5] * 6])
    assert tie_rate(one) == 0.5
    assert tie_rate(apart.gradient(3, [0.5] * 12)) == 1.0
    memory = Paced(apart).remember([1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0], 0)
    assert State.of(memory) == State()
