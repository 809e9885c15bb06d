"""Label rows along features: the directions, the head that has them, and runs that tune them, from end to end."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import FIXED
from torch import Tensor

from zo_objectives import readout, subsets
from zo_objectives.active_run import Run
from zo_objectives.batched import BatchedScorer
from zo_objectives.cli import main
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError
from zo_objectives.features import BASIS, basis_in, leading, put_features, states_of
from zo_objectives.language import data
from zo_objectives.language.hf import LanguageModel, encode
from zo_objectives.language.outputs import Choices, Example, Generations, Likelihoods, Outputs
from zo_objectives.language.tasks import TaskSpec, load_task
from zo_objectives.methods import method_settings, stages
from zo_objectives.replay import export, restore, verify
from zo_objectives.results import read_history
from zo_objectives.run import execute
from zo_objectives.scoring import REST, ForwardScorer, Kind, Pool, TailScorer, scorer_for
from zo_objectives.search.estimators import Part, Probe
from zo_objectives.search.geometry import LowRank, Scaled
from zo_objectives.search.rules import sgd
from zo_objectives.search.schedules import constant
from zo_objectives.search.weights import Weights
from zo_objectives.settings import merge, task_settings
from zo_objectives.starts import BEST
from zo_objectives.subsets import COUNT, LabelRows, wanted
from zo_objectives.workbench import Workbench

BOUND = 1e-4
PROMPTS = ("the film is", "a good book, a bad book, a great", "Question: is it good? Answer:", "a", "1 + 2 =", "the plot is")
TARGETS = ("good", "film", "yes", "b", "3", "no")
PROBES = (Probe(11, 0.5), Probe(11, -0.5), REST, Probe(12, 0.5))
CHOICE = TaskSpec.model_validate(
    {
        "task": "t", "dataset_path": "x", "output_type": "multiple_choice", "doc_to_text": "text", "doc_to_target": 0,
        "doc_to_choice": ["bad", "good"], "zo": {"mask": "{{text}} It is{{mask}}."},
    }
)  # fmt: skip
TEXT = TaskSpec.model_validate(
    {
        "task": "t", "dataset_path": "x", "doc_to_text": "text", "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
    }
)  # fmt: skip
FREE = TEXT.model_copy(update={"doc_to_target": None})
SMALL: dict[str, Any] = {
    "task": "reviews", "steps": 3, "batch": 16, "directions": 2, "n_train": 80, "n_validation": 20, "n_test": 20,
    "evaluations": 3, "scale": 0.5, "ft": {"steps": 4, "batch": 8, "learning_rates": [3e-2]},
}  # fmt: skip
IDS = torch.tensor([[5, 9, 11, 30, 7]])


# The directions


@st.composite
def clouds(draw: st.DrawFn) -> np.ndarray:
    """States about a mean that is far from zero, of unequal spreads."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    count, width = draw(st.integers(30, 120)), draw(st.integers(16, 40))
    spreads = np.exp(rng.normal(size=width) * draw(st.floats(0, 1.5)))
    return rng.normal(size=(count, width)) * spreads + draw(st.floats(3, 100)) * rng.normal(size=width)


def signs(basis: Tensor, draws: int = 200) -> np.ndarray:
    return np.random.default_rng(1).choice([-1.0, 1.0], size=(draws, len(basis)))


@FIXED
@given(clouds(), st.integers(1, 12))
def test_rows_of_signs_move_a_logit_by_one_nat_and_the_means_by_the_offsets_sign(states: np.ndarray, count: int) -> None:
    basis = leading(states, count)
    assert basis.shape == (count + 1, states.shape[1])
    drawn = signs(basis)
    logits = states @ (drawn @ basis.double().numpy()).T
    np.testing.assert_allclose(logits.mean(axis=0), drawn[:, -1], atol=1e-4)
    assert np.sqrt(np.mean(logits.var(axis=0))) == pytest.approx(1, abs=0.15)


@FIXED
@given(clouds())
def test_the_offset_tells_examples_apart_as_little_as_may_be(states: np.ndarray) -> None:
    """Of all directions in which the mean has one nat, up to the ridge."""
    offset, mean = leading(states, 3)[-1].double().numpy(), states.mean(axis=0)
    assume(len(states) > 2 * states.shape[1])
    assert offset @ mean == pytest.approx(1, abs=1e-4)
    others = mean + np.random.default_rng(2).normal(size=(50, len(mean))) * np.abs(mean).max()
    others = np.vstack([mean, others])
    others /= (others @ mean)[:, None]
    assert np.var(states @ offset) <= (states @ others.T).var(axis=0).min() * (1 + 1e-6)


@FIXED
@given(clouds(), st.integers(0, 1000))
def test_directions_turn_with_the_states_and_shrink_as_they_grow(states: np.ndarray, seed: int) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(states.shape[1], states.shape[1])))
    basis, turned = leading(states, 4).double().numpy(), leading(3 * states @ turn, 4).double().numpy()
    expected = basis @ turn / 3
    expected *= np.sign((expected * turned).sum(axis=1))[:, None]  # a direction is one up to its sign
    assert expected[-1] @ turned[-1] > 0
    np.testing.assert_allclose(turned, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_there_are_no_more_directions_than_the_states_have(rank: int) -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=16) + rng.normal(size=(50, rank)) @ rng.normal(size=(rank, 16))
    basis = leading(states, 24)
    assert basis.shape == (rank + 1, 16) and bool(basis.isfinite().all())
    logits = states @ (signs(basis) @ basis.double().numpy()).T
    np.testing.assert_allclose(np.abs(logits.mean(axis=0)), 1, atol=1e-4)
    few = leading(states[: rank + 1] if rank else states[:1], 24)
    assert few.shape == (rank + 1, 16) and bool(few.isfinite().all())


@pytest.mark.parametrize(
    ("tune", "count"), [("head", 0), ("all", 0), ("features", COUNT), ("features:3", 3), ("norms+features:7", 7)]
)
def test_a_text_says_how_many(tune: str, count: int) -> None:
    assert wanted(tune) == count
    assert subsets.moves_rows(tune) == (tune != "all")


WRONG = {
    "features+head": "head and features both move the label rows",
    "norms+head+features:3": "head and features both move the label rows",
    "features:0": "a number of directions, as in features:48",
    "features:x": "a number of directions",
    "features:-1": "a number of directions",
    "features:3:q_proj": "a number of directions",
    "features:3+features:4": "a number of directions",
    "feature": "Did you mean 'features:K'",
}


@pytest.mark.parametrize("tune", [t for t in WRONG if t != "feature"])
def test_a_text_that_cannot_be_is_refused(tune: str) -> None:
    with pytest.raises(InputError, match=WRONG[tune]):
        wanted(tune)


# What they are made of


def pool_of(lm: LanguageModel, kind: Kind, options: Sequence[Sequence[str]] = ((" good", " bad and the plot"),)) -> Pool:
    if lm.masked:
        form = data.Form(CHOICE, lm.mask)
        return Pool(lm, CHOICE, tuple(form.render({"text": p}, i, "here") for i, p in enumerate(PROMPTS)))
    if kind is Kind.CHOICE:
        return Pool(lm, CHOICE, tuple(tiny.choice(i, p, options[i % len(options)]) for i, p in enumerate(PROMPTS)))
    return Pool(
        lm, TEXT, tuple(Example(i, p, {}, targets=(t,)) for i, (p, t) in enumerate(zip(PROMPTS, TARGETS, strict=True)))
    )


def everything(pool: Pool) -> np.ndarray:
    return np.arange(len(pool.examples))


def sorted_rows(states: np.ndarray) -> np.ndarray:
    return states[np.lexsort(np.round(states, 2).T)]


@pytest.mark.parametrize("kind", list(Kind))
def test_states_are_those_from_which_answers_are_read(kind: Kind) -> None:
    """The plain way: whole sequences, each alone, and what the head sees wherever a token of the answer is next."""
    lm = tiny.make()
    pool = pool_of(lm, Kind.CHOICE if kind is Kind.CHOICE else Kind.TEXT, [(" good", " bad")])
    if kind is Kind.TEXT:
        pool = Pool(lm, FREE, pool.examples)
    rows = []
    for example in pool.examples:
        prompt = encode(lm, example.prompt)[0]
        start, ids = len(prompt), prompt
        if kind is Kind.LIKELIHOOD:
            ids = encode(lm, f"{example.prompt} {example.targets[0]}\n")[0]
        if kind is Kind.TEXT:
            while len(ids) < start + pool.new_tokens and not (len(ids) > start and ids[-1] in pool.stops):
                ids = (*ids, int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
        last = start if kind is Kind.CHOICE else len(ids) - 1
        rows.append(lm.model.base_model(torch.tensor([ids])).last_hidden_state[0, start - 1 : last].detach().double())
    found = states_of(pool, everything(pool))
    np.testing.assert_allclose(sorted_rows(found), sorted_rows(torch.cat(rows).numpy()), atol=1e-4)
    assert (pool.cost.forwards, pool.cost.examples) == (1, len(PROMPTS)) and pool.cost.tokens > 0


def test_states_do_not_depend_on_how_the_head_adds_its_rows() -> None:
    lm = tiny.make()
    pool = pool_of(lm, Kind.CHOICE)
    before = states_of(pool, everything(pool))
    with_some(lm, [3, 5], base=True)
    np.testing.assert_array_equal(states_of(pool, everything(pool)), before)


# The head


def with_some(lm: LanguageModel, tokens: Sequence[int], *, basis: bool = True, base: bool = False) -> LabelRows:
    """Label rows of random numbers in the model's head."""
    generator = torch.Generator().manual_seed(4)
    width = lm.head.weight.shape[1]
    if base:
        subsets.with_rows(lm, tokens)
        lm.head.rows.data.copy_(0.3 * torch.randn(len(tokens), width, generator=generator))
    if basis:
        subsets.with_features(lm, tokens, 0.3 * torch.randn(5, width, generator=generator))
        lm.head.rows.data.copy_(torch.randn(len(tokens), 5, generator=generator))
    assert isinstance(lm.head, LabelRows)
    return lm.head


def make(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return tiny.make_masked(family, dtype) if family in tiny.MASKED else tiny.make(family, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("basis", "base"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.MASKED])
def test_a_head_with_rows_is_the_head_with_its_rows_moved(family: str, basis: bool, base: bool, dtype: torch.dtype) -> None:
    lm = make(family, dtype)
    tokens = [5, 9, 40]
    labels = with_some(lm, tokens, basis=basis, base=base)
    hidden = torch.randn(2, 3, labels.weight.shape[1], generator=torch.Generator().manual_seed(5)).to(dtype)
    added = labels.added(labels.rows.data)
    weight = labels.weight.float().index_add(0, labels.tokens, added.float())
    bias = None if labels.bias is None else labels.bias.float()
    expected = torch.nn.functional.linear(hidden.float(), weight, bias)
    bound = BOUND if dtype == torch.float32 else 0.1
    found = labels(hidden)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=bound, rtol=0.02 if dtype == torch.bfloat16 else 0)
    live = lm.model(input_ids=IDS).logits
    assert float((live - make(family, dtype).model(input_ids=IDS).logits).abs().max()) > 0.1
    subsets.merged_head(lm)
    torch.testing.assert_close(lm.model(input_ids=IDS).logits, live, atol=bound, rtol=0.02 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_features_change_no_bit_of_what_the_model_says(dtype: torch.dtype) -> None:
    lm = tiny.make(dtype=dtype)
    plain = lm.model(IDS).logits
    subsets.with_features(lm, [5, 9], torch.randn(4, 32, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(lm.model(IDS).logits, plain)
    with pytest.raises(InputError, match="must read the same data"):
        subsets.with_features(lm, [5, 8], torch.randn(4, 32))
    subsets.without_rows(lm)
    assert not isinstance(lm.head, LabelRows)


def test_features_are_laid_beside_what_the_rows_were_made_into() -> None:
    """Again and again: what a head adds becomes the base of the next."""
    lm = tiny.make()
    with_some(lm, [5, 9], base=True)
    said = lm.model(IDS).logits
    for seed in (1, 2):
        subsets.with_features(lm, [5, 9], torch.randn(3 + seed, 32, generator=torch.Generator().manual_seed(seed)))
        assert lm.head.rows.shape == (2, 3 + seed) and not lm.head.rows.any() and not isinstance(lm.head.head, LabelRows)
        torch.testing.assert_close(lm.model(IDS).logits, said, atol=BOUND, rtol=0)


# Scorers


def featured(pool: Pool, kind: Kind, tune: str = "features", *, base: bool = False) -> subsets.Subset:
    """Label rows along the features of a pool's own examples, some of them already moved."""
    sheet = pool.choices if kind is Kind.CHOICE else pool.targets
    tokens = sheet.columns.tolist()
    if base:
        with_some(pool.lm, tokens, basis=False, base=True)
    subsets.with_features(pool.lm, tokens, leading(states_of(pool, everything(pool)), 4))
    subset = subsets.select(pool.lm, tune, tokens)
    pool.lm.head.rows.data.copy_(0.3 * torch.randn(pool.lm.head.rows.shape, generator=torch.Generator().manual_seed(6)))
    return subset


def assert_same(found: Sequence[Outputs], expected: Sequence[Outputs], bound: float = BOUND) -> None:
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, Generations) and isinstance(b, Generations):
            assert list(a.texts) == list(b.texts)
        elif isinstance(a, Choices | Likelihoods) and isinstance(b, Choices | Likelihoods):
            shift = np.nan_to_num(a.loglikelihoods - b.loglikelihoods)  # -inf where an example has fewer options
            constant = shift[:, :1] if isinstance(a, Choices) else 0.0
            np.testing.assert_allclose(shift - constant, 0, atol=bound)
        else:
            raise AssertionError(type(a), type(b))


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")
@pytest.mark.parametrize(
    ("family", "kind", "base"),
    [
        *((family, kind, family in ("llama", "gpt2")) for family in tiny.FAMILIES for kind in Kind),
        *((family, Kind.CHOICE, base) for family in tiny.MASKED for base in (False, True)),
    ],
)
def test_the_tail_says_what_forward_passes_say(family: str, kind: Kind, base: bool) -> None:
    lm = make(family)
    for options in ([(" good", " bad")], [(" good", " bad and the plot")], [(" good", " bad"), (" film", " a", " book")]):
        pool = pool_of(lm, kind, options)
        subset = featured(pool, kind, base=base)
        assert subset.gains == dict.fromkeys(subset.names, 1.0) and len(subset.names) == 1
        weights = tiny.weights(lm, subset)
        tail = scorer_for(pool, weights, subset)
        assert isinstance(tail, TailScorer)
        forward = ForwardScorer(pool, weights, None)
        for indices in (everything(pool), np.array([4, 0])):
            assert_same(tail.outputs(kind, PROBES, indices), forward.outputs(kind, PROBES, indices))
        subsets.without_rows(lm)
        if kind is not Kind.CHOICE or lm.masked:
            return


@pytest.mark.parametrize("cells", [readout.CELLS, 900])  # all at once, and a few sites at a time
def test_logits_that_no_member_changes_are_computed_once_a_site(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where tokens are read that have no label row, and where a probe is of some of the rows."""
    parts = [Probe(11, sign * 0.5, part=Part(i, 2)) for i in range(2) for sign in (1, -1)]
    probes = (*PROBES[:2], *parts, REST, Probe(12, 0.5))
    monkeypatch.setattr(readout, "CELLS", cells)
    lm = tiny.make()
    pool = pool_of(lm, Kind.CHOICE, [(" good", " bad and the plot")])
    some = pool.choices.columns[1:].tolist()  # one token that is read has no row
    subsets.with_features(lm, some, leading(states_of(pool, everything(pool)), 4))
    subset = subsets.select(lm, "features", some)
    weights = tiny.weights(lm, subset)
    tail = scorer_for(pool, weights, subset)
    assert isinstance(tail, TailScorer) and tail.tail.narrow
    met: list[int] = []
    plain = tail.tail.other_logits
    monkeypatch.setattr(tail.tail, "other_logits", lambda hidden: met.append(len(hidden)) or plain(hidden))
    expected = ForwardScorer(pool, weights, None)
    for indices in (np.array([4, 0]), everything(pool), np.array([4, 0])):
        found = tail.outputs(Kind.CHOICE, probes, indices)
        assert_same(found, expected.outputs(Kind.CHOICE, probes, indices))
    assert sum(met) == len(tail.sites) and max(met) <= max(1, cells // len(lm.head.weight))


@pytest.mark.parametrize("store", ["inference", "master"])
@pytest.mark.parametrize("kind", [Kind.CHOICE, Kind.LIKELIHOOD])
def test_the_tail_works_in_bfloat16(kind: Kind, store: str) -> None:
    lm = tiny.make(dtype=torch.bfloat16)
    pool = pool_of(lm, kind)
    subset = featured(pool, kind, base=True)
    weights = tiny.weights(lm, subset, store)
    found, expected = (
        scorer.outputs(kind, PROBES, everything(pool))
        for scorer in (scorer_for(pool, weights, subset), ForwardScorer(pool, weights, None))
    )
    assert_same(found, expected, bound=0.3)  # the forward pass also rounds logits


@pytest.mark.parametrize(
    ("family", "tune"), [("granite", "features"), ("gemma2", "features"), ("llama", "layers:2+features")]
)
@pytest.mark.parametrize("kind", list(Kind))
def test_members_in_one_batch_say_what_they_say_one_after_another(family: str, tune: str, kind: Kind) -> None:
    lm = tiny.make(family)
    pool = pool_of(lm, kind)
    subset = featured(pool, kind, tune, base=True)
    weights = Weights(lm.model, subset.names, geometry=Scaled(LowRank(1), subset.gains), rule=sgd(constant(0.1)))
    scorer = scorer_for(pool, weights, subset)
    assert isinstance(scorer, ForwardScorer)
    probes = [Probe(1, 0.1), Probe(1, -0.1), Probe(2, 0.1)]
    batched = BatchedScorer(pool, weights, scorer.trunk)
    expected = ForwardScorer(pool, weights, None).outputs(kind, probes, everything(pool))
    assert_same(batched.outputs(kind, probes, everything(pool)), expected)
    assert_same(scorer.outputs(kind, probes, everything(pool)), expected)


# Runs


def test_most_of_the_states_is_their_mean() -> None:
    """Why features: of the embedded model's states the mean holds more than nine tenths of the square."""
    bench = Workbench.open(make_config({"task": "reviews", "n_train": 200, "n_validation": 20, "n_test": 20}))
    states = states_of(bench.fresh(), bench.train)
    share = float((states.mean(0) ** 2).sum() / (states**2).sum(1).mean())
    assert 0.9 < share < 1.0


def config(method: str = "zo:features", **given: Any) -> RunConfig:
    """A run as a comparison makes it."""
    task = load_task(given.get("task", "reviews"), Path(given["include_path"]) if "include_path" in given else None)[0]
    return make_config(method_settings(merge(task_settings(task), {**SMALL, **given}), method))


def results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv").drop(columns=["seconds", "peak_memory_mb", "run"])


def validation(folder: Path) -> float:
    rows = results(folder)
    return float(rows[rows["split"] == "validation"]["value"].iloc[0])


def said_by(folder: Path, step: int | None = None) -> Tensor:
    """Logits of a run's model, at its best step or another."""
    logits: Tensor = restore(folder, step).lm.model(input_ids=IDS).logits.detach()
    return logits


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench.open(config())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with a bench of its own."""
    yield execute(config(), tmp_path_factory.mktemp("features") / "run", show=False)


def test_a_run_keeps_its_basis_and_is_charged_for_it(done: Path) -> None:
    basis, best = basis_in(done, "features"), load_file(done / BEST)
    assert basis is not None and basis.shape == (COUNT + 1, 128)
    assert {name: tuple(values.shape) for name, values in best.items()} == {"lm_head.rows": (2, COUNT + 1)}
    assert results(done)["parameters"].eq(2 * (COUNT + 1)).all()
    assert [row.forwards for row in read_history(done / "history.csv")] == [1, 5, 9, 13]
    assert results(done)["forwards"].eq(13).all() and results(done)["examples"].eq(80 + 12 * 16).all()
    assert results(done)["tune"].eq("features").all()


def test_a_run_moves(done: Path) -> None:
    """So that the tests here are of something."""
    first, last = said_by(done, 0), said_by(done, 3)
    moved = (first - last).abs().amax(dim=(0, 1)) > 0.01
    assert int(moved.sum()) == 2


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_killed_run_goes_on_to_the_same_bits(
    done: Path, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Killed while test or validation is looked at: before anything is written, at the start, and after steps."""
    watch, calls = Run.watch, 0

    def dying(self: Run, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return watch(self, *arguments)

    monkeypatch.setattr(Run, "watch", dying)
    with pytest.raises(KeyboardInterrupt):
        execute(config(), tmp_path, bench=bench, show=False)
    monkeypatch.undo()
    execute(config(), tmp_path, bench=bench, show=False)
    for name in ("journal.zoj", BEST, BASIS, "predictions.jsonl"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes(), name
    pd.testing.assert_frame_equal(results(tmp_path), results(done))


def test_a_resumed_run_takes_the_basis_that_it_kept(done: Path, bench: Workbench, tmp_path: Path) -> None:
    """Not one that another machine would make of the same examples, a little different."""
    folder = shutil.copytree(done, tmp_path / "run")
    (folder / "results.csv").unlink()
    other = load_file(folder / BASIS)["basis"] * 1.5
    save_file({"basis": other}, folder / BASIS)
    execute(config(), folder, bench=bench, show=False)
    assert torch.equal(load_file(folder / BASIS)["basis"], other)
    assert results(folder)["forwards"].eq(13).all()
    torch.testing.assert_close(
        said_by(folder) - said_by(folder, 0), 1.5 * (said_by(done) - said_by(done, 0)), atol=BOUND, rtol=0
    )


def test_what_a_run_that_never_began_left_is_not_taken(done: Path, bench: Workbench, tmp_path: Path) -> None:
    """Killed before its first step, a folder may be given other settings."""
    for name, text in (("a", "zo:features"), ("b", "best-of-n:features"), ("c", "zo:head")):
        (tmp_path / name).mkdir()
        save_file({"basis": torch.ones(3, 128)}, tmp_path / name / BASIS)
        execute(config(text), tmp_path / name, bench=bench, show=False)
    assert (tmp_path / "a" / BASIS).read_bytes() == (tmp_path / "b" / BASIS).read_bytes() == (done / BASIS).read_bytes()
    assert (tmp_path / "a" / "journal.zoj").read_bytes() == (done / "journal.zoj").read_bytes()
    assert results(tmp_path / "a")["forwards"].eq(13).all()
    assert "bit for bit" in verify(tmp_path / "c")


def test_a_basis_that_is_gone_is_missed_by_name(done: Path, bench: Workbench, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "run")
    (folder / BASIS).unlink()
    for use in (verify, lambda run: export(run, tmp_path / "model")):
        with pytest.raises(InputError, match=f"lacks {BASIS}, the directions of its features"):
            use(folder)
    with pytest.raises(InputError, match=f"lacks {BASIS}"):
        execute(config("zo:features+zo"), tmp_path / "next", bench=bench, show=False, earlier=lambda before, output: folder)
    (folder / "results.csv").unlink()
    with pytest.raises(InputError, match=f"lacks {BASIS}"):
        execute(config(), folder, bench=bench, show=False)


def test_a_run_replays_and_its_model_says_the_same(done: Path, bench: Workbench, tmp_path: Path) -> None:
    assert "bit for bit" in verify(done)
    export(done, tmp_path / "model")
    untouched = execute(config("zero-shot", model=str(tmp_path / "model")), tmp_path / "zero", show=False)
    pd.testing.assert_series_equal(results(untouched)["value"], results(done)["value"])
    logits = restore_exported(tmp_path / "model")
    torch.testing.assert_close(logits, said_by(done), atol=BOUND, rtol=0)


def restore_exported(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    logits: Tensor = model(input_ids=IDS).logits.detach()
    return logits


FAST = ["lp+zo:features", "ft:features+zo:features:4", "mezo-ce:features:5+best-of-n:features", "zo:features+zo:head"]
SLOW = [
    "ft+zo:features",
    "mezo-ce:features+zo:features",
    "best-of-n:features+zo:norms",
    "zo:features+mezo-ce:features+zo:features:2",
    "lp+ft:features",
    "zo:norms+features:3+zo:features",
    "lora",
]


@pytest.mark.parametrize("text", [*FAST, *(pytest.param(text, marks=pytest.mark.slow) for text in SLOW)])
def test_a_chain_begins_with_what_the_model_said_before_it(bench: Workbench, text: str, tmp_path: Path) -> None:
    if text == "lora":
        pytest.importorskip("peft")
        text = "zo:lora:2+features:3+zo:features:4"
    folder = execute(config(text), tmp_path / "run", bench=bench, show=False)
    seen = [row.validation for row in read_history(folder / "history.csv") if row.validation is not None]
    assert seen[0] == pytest.approx(validation(folder / "before"), abs=1e-12)
    assert validation(folder) == max(seen)
    climbs = (folder / "journal.zoj").exists()
    if climbs and stages(text)[0] != "lp":
        torch.testing.assert_close(said_by(folder, 0), said_by(folder / "before"), atol=BOUND, rtol=0)
    if climbs:
        assert "bit for bit" in verify(folder)
        before = folder / "before"
        assert (before / "journal.zoj").exists() is False or "bit for bit" in verify(before)
    export(folder, tmp_path / "model")
    torch.testing.assert_close(restore_exported(tmp_path / "model"), said_by(folder), atol=BOUND, rtol=0)


def test_backprop_along_features_moves_them_and_nothing_else(bench: Workbench, tmp_path: Path) -> None:
    folder = execute(config("ft:features:6", metric="expected_accuracy"), tmp_path, bench=None, show=False)
    best = load_file(folder / BEST)
    assert {name: tuple(values.shape) for name, values in best.items()} == {"lm_head.rows": (2, 7)}
    assert bool(best["lm_head.rows"].any()) and results(folder)["parameters"].eq(14).all()
    assert results(folder)["forwards"].eq(3 * 4 + 1).all()
    with pytest.raises(InputError, match="no journal to verify"):
        verify(folder)


def test_runs_on_one_bench_do_not_touch_each_other(done: Path, tmp_path: Path) -> None:
    shared = Workbench.open(config())
    texts = ("zo:features", "mezo-ce:features:3", "zo:head", "zo:features", "zo:features+zo:features:3", "zo:features")
    folders = [execute(config(t), tmp_path / f"{n}", bench=shared, show=False) for n, t in enumerate(texts)]
    for folder, text in zip(folders, texts, strict=True):
        if text == "zo:features":
            for name in ("journal.zoj", BEST, BASIS):
                assert (folder / name).read_bytes() == (done / name).read_bytes(), name
    assert shared.sites is not None and not shared.stale
    head = execute(config("zo:head"), tmp_path / "alone", show=False)
    assert (head / "journal.zoj").read_bytes() == (folders[2] / "journal.zoj").read_bytes()
    shared.fresh()
    assert not isinstance(shared.lm.head, LabelRows)


@pytest.mark.parametrize("task", ["sums", "tidy"])
def test_tasks_of_text_have_features(task: str, tmp_path: Path) -> None:
    sizes = {"n_train": 40, "n_validation": 8, "n_test": 8, "batch": 8}
    folder = execute(config("zo:features:5", task=task, steps=2, **sizes), tmp_path / "run", show=False)
    assert "bit for bit" in verify(folder)
    assert load_file(folder / BEST)["lm_head.rows"].shape[1] == 6
    assert read_history(folder / "history.csv")[0].forwards == 1


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "store": "master"}, {"relative": False}])
def test_features_at_other_precisions(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = execute(config("zo:features+zo:features:3", **settings), tmp_path, show=False)
    assert "bit for bit" in verify(folder) and "bit for bit" in verify(folder / "before")
    bound = 0.3 if "dtype" in settings else BOUND
    torch.testing.assert_close(said_by(folder, 0), said_by(folder / "before"), atol=bound, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["prefix:3+features:4", "lora:2+features:4", "layers:3+features:4", "all+features:2"])
def test_features_beside_other_forms(form: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = execute(config(f"zo:{form}", steps=2, scale=0.05), tmp_path, show=False)
    assert "bit for bit" in verify(folder)
    assert load_file(folder / BASIS)["basis"].shape[0] == 1 + int(form[-1])


# What cannot be


def write_task(folder: Path, settings: str, rows: str, model: LanguageModel | None = None) -> dict[str, Any]:
    """Settings for a task of one's own, its model beside it."""
    (folder / "t").mkdir(parents=True)
    (folder / "t.yaml").write_text(f"task: t\ndataset_path: x\ndoc_to_text: text\n{settings}")
    for split in data.SPLITS:
        (folder / "t" / f"{split}.jsonl").write_text("".join(rows.replace("SPLIT", f"{split} {i}") for i in range(6)))
    given = {"task": "t", "include_path": str(folder), "data_dir": str(folder), "n_train": None, "batch": 4}
    if model is not None:
        model.model.save_pretrained(folder / "model")
        model.tokenizer.save_pretrained(folder / "model")
        given["model"] = str(folder / "model")
    return given


@pytest.mark.parametrize("family", tiny.MASKED)
def test_a_masked_model_has_features(family: str, tmp_path: Path) -> None:
    settings = "output_type: multiple_choice\ndoc_to_choice: ['bad', 'good']\ndoc_to_target: label\nzo: {mask: 'MASK'}\n"
    settings = settings.replace("MASK", "{{text}} It is{{mask}}.")
    rows = '{"text": "SPLIT the film", "label": 0}\n{"text": "SPLIT a good plot", "label": 1}\n'
    given = write_task(tmp_path, settings, rows, tiny.make_masked(family))
    folder = execute(config("zo:features:3+zo:features:2", **given), tmp_path / "run", show=False)
    assert "bit for bit" in verify(folder)
    torch.testing.assert_close(said_by(folder, 0), said_by(folder / "before"), atol=BOUND, rtol=0)
    said = said_by(folder)
    export(folder, tmp_path / "exported")
    again = execute(config("zero-shot", **{**given, "model": str(tmp_path / "exported")}), tmp_path / "zero", show=False)
    pd.testing.assert_series_equal(results(again)["value"], results(folder)["value"])
    assert said.shape[1] == IDS.shape[1]


def test_options_may_differ_from_example_to_example(tmp_path: Path) -> None:
    settings = "output_type: multiple_choice\ndoc_to_choice: options\ndoc_to_target: 0\n"
    rows = '{"text": "SPLIT the film is", "options": ["good", "bad and the plot"]}\n'
    rows += '{"text": "SPLIT a book is", "options": ["great", "a film", "no"]}\n'
    given = write_task(tmp_path, settings, rows, tiny.make())
    folder = execute(config("zo:features:3", **given), tmp_path / "run", show=False)
    assert "bit for bit" in verify(folder)


def test_a_task_of_rewards_needs_rows_named_and_makes_features_of_what_is_said(tmp_path: Path) -> None:
    settings = "zo: {objective: words, rows: ['good', 'film']}\ngeneration_kwargs: {max_gen_toks: 4, until: ['.']}\n"
    rows = '{"text": "SPLIT the film is"}\n{"text": "SPLIT a good book"}\n'
    given = write_task(tmp_path / "a", settings, rows, tiny.make())
    folder = execute(config("zo:features:3", **given), tmp_path / "run", show=False)
    assert "bit for bit" in verify(folder) and len(load_file(folder / BASIS)["basis"]) == 4
    assert read_history(folder / "history.csv")[0].tokens > 0
    given = write_task(tmp_path / "b", settings.replace(", rows: ['good', 'film']", ""), rows, tiny.make())
    with pytest.raises(InputError, match=r"list texts whose tokens may be tuned in zo\.rows"):
        execute(config("zo:features:3", **given), tmp_path / "other", show=False)
    assert not (tmp_path / "other" / BASIS).exists()


@pytest.mark.parametrize("tune", ["features:x", "features+head", "feature"])
def test_a_wrong_form_is_exit_code_2(
    tune: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "reviews", "--tune", tune, "--steps", "1", "--quiet", "--output", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["zo-objectives", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert WRONG[tune] in " ".join(capsys.readouterr().err.split())


def test_features_are_put_once(bench: Workbench) -> None:
    pool = bench.fresh()
    with torch.no_grad():
        put_features(bench, pool, "features:3")
    head, spent = pool.lm.head, pool.cost.forwards
    put_features(bench, pool, "features:3")
    assert pool.lm.head is head and pool.cost.forwards == spent == 1
    bench.fresh()
