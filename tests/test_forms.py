"""Output forms: options by sum, mean and calibrated; label words at a mask; text that is drawn; prompts that are cut."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from zo_objectives import subsets
from zo_objectives.batched import BatchedScorer
from zo_objectives.errors import InputError
from zo_objectives.language import data, generation, hf
from zo_objectives.language.generation import Sampler
from zo_objectives.language.hf import LanguageModel, encode
from zo_objectives.language.outputs import Choices, Example, Generations
from zo_objectives.language.sheets import Reader, Scoring, shortened
from zo_objectives.language.tasks import TaskSpec
from zo_objectives.scoring import REST, ForwardScorer, Kind, Pool, TailScorer, scorer_for
from zo_objectives.search.estimators import Probe
from zo_objectives.search.geometry import LowRank, Scaled
from zo_objectives.search.rules import sgd
from zo_objectives.search.schedules import constant
from zo_objectives.search.weights import Weights
from zo_objectives.trunk import Trunk

BOUND = 1e-4
PROMPTS = (
    "the film is",
    "a good book, a bad book, a great",
    "Question: is it good? Answer:",
    "1 + 2 =",
    "the plot is bad and",
)
OPTIONS = (" good", " bad and the plot is good", " a great film")
BLANK = "Answer:"
CHOICE = TaskSpec(
    task="t", dataset_path="x", output_type="multiple_choice", doc_to_text="text", doc_to_choice="options", doc_to_target=0
)


def causal_pool(lm: LanguageModel, scoring: Scoring, options: Sequence[str] = OPTIONS, **given: Any) -> Pool:
    examples = tuple(Example(i, p, {"text": p}, tuple(options), 0, blank=BLANK) for i, p in enumerate(PROMPTS))
    return Pool(lm, CHOICE, examples, scoring=scoring, **given)


def whole(pool: Pool) -> np.ndarray:
    (found,) = ForwardScorer(pool, None, None).outputs(Kind.CHOICE, [REST], np.arange(len(pool.examples)))
    assert isinstance(found, Choices)
    return found.loglikelihoods


def naive(lm: LanguageModel, prompt: str, option: str) -> list[float]:
    """Log-probabilities of the option's tokens, the plain way: the sequence alone, without padding."""
    ids, ends = encode(lm, prompt + option)
    start = next(i for i, end in enumerate(ends) if end > len(prompt))
    logp = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(logp[i - 1, ids[i]]) for i in range(start, len(ids))]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_means_and_calibrated_scores_are_the_naive_ones(family: str) -> None:
    lm = tiny.make(family)
    mean, calibrated = whole(causal_pool(lm, "mean")), whole(causal_pool(lm, "calibrated"))
    for row, prompt in enumerate(PROMPTS):
        for column, option in enumerate(OPTIONS):
            own = naive(lm, prompt, option)
            assert mean[row, column] == pytest.approx(np.mean(own), abs=BOUND)
            assert calibrated[row, column] == pytest.approx(sum(own) - sum(naive(lm, BLANK, option)), abs=BOUND)


def test_exact_scores_are_log_likelihoods_of_whole_options() -> None:
    """Not up to a constant, nor without what all options begin with."""
    lm, options = tiny.make(), (" good", " bad")
    closed, exact = causal_pool(lm, "sum", options), causal_pool(lm, "sum", options, exact=True)
    assert closed.choices.closed and not exact.choices.closed
    found = whole(exact)
    for row, prompt in enumerate(PROMPTS):
        assert found[row] == pytest.approx([sum(naive(lm, prompt, option)) for option in options], abs=BOUND)
    assert np.ptp(found - whole(closed), axis=1) == pytest.approx(np.zeros(len(PROMPTS)), abs=BOUND)


def test_a_calibrating_prompt_is_run_once_for_all_examples_and_charged_once() -> None:
    pool = causal_pool(tiny.make(), "calibrated")
    everything = np.arange(len(PROMPTS))
    blanks = {ids for ids in pool.choices.sequences if pool.choices.sequences.count(ids) > 1}
    assert blanks
    ran: list[int] = []
    handle = pool.lm.model.register_forward_pre_hook(
        lambda m, a, k: ran.append(int(k["attention_mask"].sum())), with_kwargs=True
    )
    ForwardScorer(pool, None, None).outputs(Kind.CHOICE, [REST], everything)
    handle.remove()
    assert sum(ran) == pool.tokens(Kind.CHOICE, everything) == sum(map(len, set(pool.choices.sequences)))
    assert pool.tokens(Kind.CHOICE, everything) < pool.choices.tokens


@pytest.mark.parametrize("scoring", ["mean", "calibrated"])
def test_members_score_the_same_together_and_apart(scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an option is read in several passes."""
    from zo_objectives.language import passes

    lm = tiny.make()
    pool, probes = causal_pool(lm, scoring), [Probe(1, 0.1), Probe(1, -0.1), Probe(2, 0.1)]
    names = subsets.select(lm, "layers:1-", []).names
    weights = Weights(lm.model, names, geometry=Scaled(LowRank(1), dict.fromkeys(names, 1.0)), rule=sgd(constant(0.1)))
    everything = np.arange(len(PROMPTS))
    expected = ForwardScorer(pool, weights, None).outputs(Kind.CHOICE, probes, everything)
    for tokens in (passes.MICRO_TOKENS, 20):
        monkeypatch.setattr(passes, "MICRO_TOKENS", tokens)
        found = BatchedScorer(pool, weights).outputs(Kind.CHOICE, probes, everything)
        for a, b in zip(found, expected, strict=True):
            assert isinstance(a, Choices) and isinstance(b, Choices)
            np.testing.assert_allclose(a.loglikelihoods, b.loglikelihoods, atol=BOUND)


# Masked models


def masked_task(family: str) -> tuple[LanguageModel, Pool]:
    lm = tiny.make_masked(family)
    return lm, masked_pool(lm)


def masked_pool(lm: LanguageModel, scoring: Scoring = "sum") -> Pool:
    spec = TaskSpec.model_validate(
        {
            "task": "t", "dataset_path": "x", "output_type": "multiple_choice", "doc_to_text": "text", "doc_to_target": 0,
            "doc_to_choice": ["bad", "good"], "zo": {"mask": "{{text}} It is{{mask}}."},
        }
    )  # fmt: skip
    form = data.Form(spec, lm.mask, blank=scoring == "calibrated")
    return Pool(lm, spec, tuple(form.render({"text": p}, i, "here") for i, p in enumerate(PROMPTS)), scoring=scoring)


def at_mask(lm: LanguageModel, prompt: str, word: str) -> float:
    """The log-probability of a label word, the plain way."""
    ids = lm.tokenizer(prompt)["input_ids"]
    (token,) = lm.tokenizer(" " + word, add_special_tokens=False)["input_ids"]
    logits = lm.model(torch.tensor([ids])).logits[0, ids.index(lm.tokenizer.mask_token_id)].double()
    return float(logits.log_softmax(-1)[token])


@pytest.mark.parametrize("family", tiny.MASKED)
def test_label_words_at_the_mask_are_the_naive_ones(family: str) -> None:
    lm, pool = masked_task(family)
    assert pool.choices.closed and all(e.prompt.count(str(lm.mask)) == 1 for e in pool.examples)
    found = whole(pool)
    for row, example in zip(found, pool.examples, strict=True):
        bad, good = (at_mask(lm, example.prompt, word) for word in ("bad", "good"))
        assert row[1] - row[0] == pytest.approx(good - bad, abs=BOUND)


@pytest.mark.parametrize("family", tiny.MASKED)
def test_masked_scores_calibrate_by_the_prompt_without_its_text(family: str) -> None:
    lm = tiny.make_masked(family)
    pool = masked_pool(lm, "calibrated")
    found, blank = whole(pool), f" It is{lm.mask}."
    assert pool.examples[0].blank == blank
    for row, example in zip(found, pool.examples, strict=True):
        expected = [at_mask(lm, example.prompt, w) - at_mask(lm, blank, w) for w in ("bad", "good")]
        assert row[1] - row[0] == pytest.approx(expected[1] - expected[0], abs=BOUND)


@pytest.mark.parametrize("tune", ["all", "head", "norms", "layers:1-", "layers:2+head"])
@pytest.mark.parametrize("family", tiny.MASKED)
def test_whatever_is_tuned_in_a_masked_model_the_cheapest_scorer_is_exact(family: str, tune: str) -> None:
    """And it does not matter what else is in the batch, in which a prefix of one text may begin another."""
    lm, pool = masked_task(family)
    weights, probes = (subset := subsets.select(lm, tune, [int(t) for t in pool.choices.columns])), (REST, Probe(3, 0.2))
    tuned = tiny.weights(lm, subset)
    everything = np.arange(len(PROMPTS))
    expected = ForwardScorer(pool, tuned, None).outputs(Kind.CHOICE, probes, everything)
    scorer = scorer_for(pool, tuned, weights)
    assert isinstance(scorer, TailScorer) == (tune == "head")
    for indices in (everything, np.array([3, 1]), np.array([2])):
        for a, b in zip(scorer.outputs(Kind.CHOICE, probes, indices), expected, strict=True):
            assert isinstance(a, Choices) and isinstance(b, Choices)
            shift = a.loglikelihoods - b.loglikelihoods[indices]
            np.testing.assert_allclose(shift - shift[:, :1], 0, atol=BOUND)
    assert len(weights.names) and subset.cut == {"all": 0, "head": 3, "norms": 0, "layers:1-": 1, "layers:2+head": 2}[tune]


@pytest.mark.parametrize("family", tiny.MASKED)
def test_masked_models_work_in_bfloat16(family: str) -> None:
    exact = whole(masked_pool(tiny.make_masked(family)))
    rough = whole(masked_pool(tiny.make_masked(family, torch.bfloat16)))
    difference = (exact[:, 1] - exact[:, 0]) - (rough[:, 1] - rough[:, 0])
    assert 0 < np.abs(difference).max() < 0.5


@pytest.mark.parametrize("family", tiny.MASKED)
def test_label_rows_of_a_masked_model_are_merged_into_its_head_and_saved(family: str, tmp_path: Path) -> None:
    lm, pool = masked_task(family)
    tuned = tiny.weights(lm, subsets.select(lm, "head", [int(t) for t in pool.choices.columns]))
    tuned.load({n: t + 0.1 for n, t in tuned.state_dict().items()})
    before = whole(pool)
    subsets.merged_head(lm)
    np.testing.assert_allclose(whole(pool), before, atol=BOUND)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    np.testing.assert_allclose(whole(masked_pool(hf.load(str(tmp_path)))), before, atol=BOUND)


def refused(example: Example, lm: LanguageModel) -> str:
    with pytest.raises(InputError) as caught:
        Reader(lm).choices([example])
    return str(caught.value)


def test_what_a_masked_model_cannot_read_is_said() -> None:
    lm = tiny.make_masked("roberta")
    prompt = f"It is {lm.mask}."
    assert "label word 'unbelievable' is" in refused(Example(4, prompt, {}, (" good", " unbelievable"), 0), lm)
    assert "zo.words" in refused(Example(4, prompt, {}, (" good", " unbelievable"), 0), lm)
    assert "has 0 masks" in refused(Example(4, "It is.", {}, (" good", " bad"), 0), lm)
    assert "has 2 masks" in refused(Example(4, prompt + prompt, {}, (" good", " bad"), 0), lm)
    with pytest.raises(InputError, match="cannot generate"):
        Reader(lm).prompt(Example(0, "a", {}), 3)
    with pytest.raises(InputError, match="Take a causal model"):
        Reader(lm).targets([Example(0, "a", {}, targets=("b",))], " ", "")
    plain = TaskSpec.model_validate({**CHOICE.model_dump(exclude={"metric_list"}), "doc_to_choice": ["a", "b"]})
    with pytest.raises(InputError, match=r"no form for masked models: give it zo\.mask"):
        data.Form(plain, "<mask>").render({"text": "a"}, 0, "here")


@pytest.mark.parametrize("family", tiny.MASKED)
def test_a_masked_model_is_known_by_its_folder(family: str, tmp_path: Path) -> None:
    lm = tiny.make_masked(family)
    lm.model.save_pretrained(tmp_path / "whole")
    lm.tokenizer.save_pretrained(tmp_path / "whole")
    found = hf.load(str(tmp_path / "whole"))
    assert found.masked and found.mask == lm.mask and hf.form_at(str(tmp_path / "whole")) is hf.Form.MASKED
    np.testing.assert_allclose(whole(masked_pool(found)), whole(masked_pool(lm)), atol=BOUND)


def test_a_causal_model_without_a_head_is_refused(tmp_path: Path) -> None:
    lm = tiny.make()
    lm.model.base_model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="it is no causal or masked language model and no encoder"):
        hf.load(str(tmp_path))


# Prompts that are too long


def test_cut_prompts_lose_their_beginning_and_keep_what_is_asked() -> None:
    lm = tiny.make()
    long = Example(0, "the film is good and " * 30 + "the plot is", {}, OPTIONS, 0)
    with pytest.raises(InputError, match="long_prompts=cut"):
        Reader(lm).choices([long])
    sheet = Reader(lm, cut=True).choices([long])
    full = [encode(lm, long.prompt + option)[0] for option in OPTIONS]
    assert max(map(len, sheet.sequences)) + 1 == lm.context
    assert all(ids[0] == full[0][0] for ids in sheet.sequences)
    longest = max(full, key=len)
    assert max(sheet.sequences, key=len)[1:] == longest[-lm.context + 1 : -1]
    fitting = Example(0, "the plot is", {}, OPTIONS, 0)
    assert Reader(lm, cut=True).choices([fitting]).sequences == Reader(lm).choices([fitting]).sequences
    assert len(Reader(lm, cut=True).prompt(long, 5)) == lm.context - 5


@pytest.mark.parametrize(("ids", "expected"), [((1, 2, 3, 4, 9, 5), (1, 4, 9, 5)), ((1, 9, 2, 3, 4, 5), (1, 9, 2, 5))])
def test_what_is_cut_is_never_the_mask(ids: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert shortened(ids, 2, mask=9) == expected


def test_positions_of_roberta_begin_behind_the_padding_id() -> None:
    assert tiny.make_masked("roberta").context == tiny.CONTEXT - 2
    assert tiny.make_masked("bert").context == tiny.CONTEXT
    lm = tiny.make_masked("roberta")
    lm.model(torch.full((1, lm.context), 7))
    with pytest.raises((IndexError, RuntimeError)):
        lm.model(torch.full((1, lm.context + 1), 7))


# Sampling


def sampled(lm: LanguageModel, temperature: float = 1.0, **kwargs: Any) -> Pool:
    spec = TaskSpec.model_validate(
        {
            "task": "t", "dataset_path": "x", "doc_to_text": "text",
            "generation_kwargs": {"do_sample": True, "temperature": temperature, "max_gen_toks": 6, "until": [], **kwargs},
        }
    )  # fmt: skip
    return Pool(lm, spec, tuple(Example(i, p, {}) for i, p in enumerate(PROMPTS)), seed=5)


def drawn(pool: Pool, indices: Sequence[int], draw: int = 1) -> list[str]:
    (found,) = ForwardScorer(pool, None, None).outputs(Kind.TEXT, [REST], np.array(indices), draw)
    assert isinstance(found, Generations)
    return list(found.texts)


def test_what_is_drawn_depends_on_draw_seed_and_example_and_on_nothing_else() -> None:
    pool = sampled(tiny.make())
    together = drawn(pool, range(len(PROMPTS)))
    assert [drawn(pool, [i])[0] for i in range(len(PROMPTS))] == together
    assert drawn(pool, [3, 0, 3]) == [together[3], together[0], together[3]]
    assert drawn(pool, range(len(PROMPTS))) == together
    assert drawn(pool, range(len(PROMPTS)), draw=2) != together
    other = Pool(pool.lm, pool.spec, pool.examples, seed=6)
    assert drawn(other, range(len(PROMPTS))) != together


def test_the_first_token_alone_is_greedy_and_so_is_almost_no_temperature() -> None:
    lm = tiny.make()
    pool = sampled(lm, top_k=1)
    prompts = list(pool.prompts)
    texts = [pool.text(tokens) for tokens in generation.generate(lm, prompts, new_tokens=6, stops=pool.stops)]
    assert drawn(pool, range(len(PROMPTS))) == texts
    assert drawn(sampled(lm, temperature=1e-6), range(len(PROMPTS))) == texts


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    for temperature, expected in ((1.0, logits.softmax(-1)[0]), (2.0, (logits / 2).softmax(-1)[0])):
        picks = [int(Sampler(temperature, None, None, (0, d)).perturbed(logits, [7], 3).argmax()) for d in range(4000)]
        shares = np.bincount(picks, minlength=4) / len(picks)
        np.testing.assert_allclose(shares, expected.numpy(), atol=0.03)
    narrow = {int(Sampler(1.0, None, 0.7, (0, d)).perturbed(logits, [7], 3).argmax()) for d in range(200)}
    assert narrow == {1, 2}


def test_noise_of_two_examples_and_of_two_positions_is_independent() -> None:
    zeros = torch.zeros(2, 20_000)
    sampler = Sampler(1.0, None, None, (1, 1))
    first, later = sampler.perturbed(zeros, [0, 1], 0), sampler.perturbed(zeros, [0, 1], 1)
    rows = torch.cat([first, later]).double().numpy()
    correlations = np.corrcoef(rows)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.03
    assert rows.mean() == pytest.approx(0.5772, abs=0.02)  # Gumbel's mean is Euler's constant


def test_every_scorer_draws_the_same() -> None:
    lm = tiny.make()
    pool, everything, probes = sampled(lm), np.arange(len(PROMPTS)), [Probe(1, 0.1), Probe(1, -0.1), Probe(2, 0.1)]
    subset = subsets.select(lm, "head", [5, 9])
    names = subset.names
    weights = Weights(lm.model, names, geometry=Scaled(LowRank(1), dict.fromkeys(names, 1.0)), rule=sgd(constant(0.1)))
    expected = ForwardScorer(pool, weights, None).outputs(Kind.TEXT, probes, everything, 4)
    tail = TailScorer(pool, weights, Trunk(lm, tiny.DEPTH), names).outputs(Kind.TEXT, probes, everything, 4)
    batched = BatchedScorer(pool, weights).outputs(Kind.TEXT, probes, everything, 4)
    for found in (tail, batched):
        assert [list(a.predictions) for a in found] == [list(b.predictions) for b in expected]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_scores_and_says_nearly_the_same_in_bfloat16(family: str) -> None:
    exact, rough = (whole(causal_pool(tiny.make(family, dtype), "mean")) for dtype in (torch.float32, torch.bfloat16))
    assert 0 < np.abs(exact - rough).max() < 0.5
    half = tiny.make(family, torch.bfloat16)
    prompts = [encode(half, p)[0] for p in PROMPTS]
    alone = [generation.generate(half, [p], new_tokens=4, stops=[])[0] for p in prompts]
    together = generation.generate(half, prompts, new_tokens=4, stops=[])
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= len(PROMPTS) - 1  # ties are near in bfloat16
