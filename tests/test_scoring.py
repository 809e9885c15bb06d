"""What a model says: against plain one-at-a-time code, for every family, from the trunk's store, the tail, and in batches.

Bound of laws 5 and 6 in float32: 1e-4 nats a log-likelihood, on models whose logits have a standard deviation above 1.
"""

from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PLBartConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from zo_objectives import adapters, readout, scoring, subsets
from zo_objectives import tail as tail_module
from zo_objectives.errors import InputError
from zo_objectives.language import data, generation, hf, passes
from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.objectives import BUILTIN, Needs, Objective
from zo_objectives.language.outputs import Choices, Example, Generations, Likelihoods, Outputs
from zo_objectives.language.tasks import TaskSpec, find_task, read_task
from zo_objectives.readout import Decoder
from zo_objectives.scoring import REST, Evaluation, ForwardScorer, Indices, Kind, Pool, TailScorer, kind_for, scorer_for
from zo_objectives.search.estimators import Probe
from zo_objectives.subsets import LabelRows
from zo_objectives.tail import Sites, Tail
from zo_objectives.trunk import Trunk

BOUND = 1e-4
SHARED = Path(__file__).parents[1] / ".." / "shared"
PROMPTS = (
    "the film is",
    "a good book, a bad book, a great",
    "Question: is it good? Answer:",
    "a",
    "1 + 2 =",
    "the plot is bad and",
)
ONE_TOKEN = (" good", " bad")
SEVERAL = (" good", " bad and the plot is good", " a great film")
PROBES = (Probe(11, 0.5), Probe(11, -0.5), REST, Probe(12, 0.5))
TEXT = TaskSpec(
    task="t",
    dataset_path="x",
    doc_to_text="text",
    doc_to_target="answer",
    generation_kwargs={"until": ["\n"], "max_gen_toks": 7},  # type: ignore[arg-type]
)
OPTIONS = TaskSpec(
    task="t", dataset_path="x", output_type="multiple_choice", doc_to_text="text", doc_to_choice="options", doc_to_target=0
)
KINDS = {Kind.CHOICE: OPTIONS, Kind.LIKELIHOOD: TEXT, Kind.TEXT: TEXT}


def choices_of(options: Sequence[str]) -> list[Example]:
    return [tiny.choice(i, prompt, options) for i, prompt in enumerate(PROMPTS)]


def texts() -> list[Example]:
    return [
        Example(i, p, {}, targets=(t,))
        for i, (p, t) in enumerate(zip(PROMPTS, ("good", "film", "yes", "b", "3", "no"), strict=True))
    ]


def pool_for(lm: LanguageModel, kind: Kind, options: Sequence[str] = SEVERAL) -> Pool:
    return Pool(lm, KINDS[kind], tuple(choices_of(options) if kind is Kind.CHOICE else texts()))


def everything(pool: Pool) -> Indices:
    return np.arange(len(pool.examples))


def token_ids(lm: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(lm.tokenizer(text)["input_ids"])


def log_probability(lm: LanguageModel, ids: Sequence[int], start: int) -> float:
    """The plain way: the whole sequence alone, without padding."""
    logp = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logp[i - 1, ids[i]] for i in range(start, len(ids))))


def reference(lm: LanguageModel, example: Example) -> list[float]:
    """Log-likelihoods of the options' whole texts, given the tokens all of them begin with."""
    full = [token_ids(lm, example.prompt + o) for o in example.options]
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*full, strict=False))))
    start = min(shared, min(map(len, full)) - 1)
    return [log_probability(lm, ids, start) for ids in full]


def plain(
    pool: Pool, indices: Indices | None = None, probes: Sequence[Probe] = (REST,), kind: Kind = Kind.CHOICE
) -> Outputs:
    return ForwardScorer(pool, None, None).outputs(kind, probes, everything(pool) if indices is None else indices)[0]


def numbers(outputs: Outputs) -> np.ndarray:
    assert isinstance(outputs, Choices | Likelihoods)
    return outputs.loglikelihoods


def relative(values: np.ndarray | Sequence[float]) -> np.ndarray:
    """Log-probabilities among the options: what is left where the common normaliser is not known."""
    return torch.tensor(np.asarray(values, dtype=np.float64)).log_softmax(-1).numpy()


def assert_same(found: Sequence[Outputs], expected: Sequence[Outputs]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, Generations) and isinstance(b, Generations):
            assert list(a.texts) == list(b.texts)
        else:
            np.testing.assert_allclose(numbers(a), numbers(b), atol=BOUND)


# Choices against the plain reference


@pytest.mark.parametrize("kind", ["bos", "eos"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_options_of_several_tokens_equal_the_reference(family: str, kind: str) -> None:
    lm = tiny.make(family, kind=kind)
    pool = pool_for(lm, Kind.CHOICE)
    assert not pool.choices.closed
    np.testing.assert_allclose(numbers(plain(pool)), [reference(lm, e) for e in pool.examples], atol=BOUND)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_options_of_one_token_equal_the_reference_up_to_their_normaliser(family: str) -> None:
    lm = tiny.make(family)
    pool = pool_for(lm, Kind.CHOICE, ONE_TOKEN)
    assert pool.choices.closed
    for found, example in zip(numbers(plain(pool)), pool.examples, strict=True):
        np.testing.assert_allclose(relative(found), relative(reference(lm, example)), atol=BOUND)


@pytest.mark.parametrize("kind", ["bos", "eos"])
def test_a_merge_across_the_boundary_is_scored_as_the_whole_text(kind: str) -> None:
    lm = tiny.make("llama", kind=kind)
    example = tiny.choice(0, "the fi", ("lm is good", "lm", "sh"))
    prompt = token_ids(lm, example.prompt)
    assert token_ids(lm, example.prompt + "lm")[: len(prompt)] != prompt, "the prompt's last token should merge"
    pool = Pool(lm, OPTIONS, (example,))
    np.testing.assert_allclose(numbers(plain(pool))[0], reference(lm, example), atol=BOUND)


def test_ragged_option_counts_are_padded_with_minus_infinity() -> None:
    lm = tiny.make()
    ragged = [tiny.choice(i, p, SEVERAL[: 2 + i % 2]) for i, p in enumerate(PROMPTS)]
    for row, example in zip(numbers(plain(Pool(lm, OPTIONS, tuple(ragged)))), ragged, strict=True):
        np.testing.assert_allclose(row[: len(example.options)], reference(lm, example), atol=BOUND)
        assert np.all(row[len(example.options) :] == -np.inf)


def test_a_target_is_scored_from_the_token_that_ends_behind_the_prompt() -> None:
    lm = tiny.make()
    pool = pool_for(lm, Kind.LIKELIHOOD)
    found = plain(pool, kind=Kind.LIKELIHOOD)
    assert isinstance(found, Likelihoods)
    for i, example in enumerate(pool.examples):
        ids, start = token_ids(lm, f"{example.prompt} {example.targets[0]}\n"), len(token_ids(lm, example.prompt))
        assert found.tokens[i] == len(ids) - start
        assert found.loglikelihoods[i] == pytest.approx(log_probability(lm, ids, start), abs=BOUND)


# Law 6: neighbours, order and batch size do not matter


@pytest.mark.parametrize("options", [ONE_TOKEN, SEVERAL], ids=["one token", "several"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_do_not_depend_on_the_batch(family: str, options: tuple[str, ...]) -> None:
    pool = pool_for(tiny.make(family), Kind.CHOICE, options)
    whole = numbers(plain(pool))
    for indices in ([3], [5, 0], [4, 3, 2, 1, 0, 5], [1, 1, 1]):
        np.testing.assert_allclose(numbers(plain(pool, np.array(indices))), whole[indices], atol=BOUND)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_do_not_depend_on_the_size_of_passes(family: str) -> None:
    lm = tiny.make(family)
    sheet = pool_for(lm, Kind.CHOICE).choices
    together, apart = passes.plan(lm, sheet), passes.plan(lm, sheet, tokens=1)
    assert (len(together), len(apart)) == (1, len(sheet.sequences))
    torch.testing.assert_close(
        passes.sheet_logits(lm, sheet, apart), passes.sheet_logits(lm, sheet, together), atol=BOUND, rtol=0
    )


def test_results_come_back_in_order_from_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.make()
    for kind in (Kind.CHOICE, Kind.LIKELIHOOD):
        pool = pool_for(lm, kind)
        forward, tail = head_of(lm, pool, kind)
        expected = forward.outputs(kind, PROBES, everything(pool))
        with monkeypatch.context() as patch:
            for module in (scoring, tail_module):
                patch.setattr(module, "plan", partial(passes.plan, tokens=20))
            assert len(scoring.plan(lm, pool.sheet(kind))) > 2
            assert_same(forward.outputs(kind, PROBES, everything(pool)), expected)
            assert_same(tail.outputs(kind, PROBES, everything(pool)), expected)


def test_passes_hold_no_more_padded_tokens_than_allowed() -> None:
    sequences = [(1,) * n for n in (3, 50, 4, 90, 5, 5, 30)]
    groups = passes.micro_batches(sequences, tokens=60)
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert all(len(g) == 1 or len(g) * max(len(sequences[i]) for i in g) <= 60 for g in groups)


def test_bfloat16_scores_stay_near_float32() -> None:
    exact, rough = (numbers(plain(pool_for(tiny.make(dtype=d), Kind.CHOICE))) for d in (torch.float32, torch.bfloat16))
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.5


# The trunk


CUTS = (*((Kind.CHOICE, cut) for cut in range(tiny.DEPTH + 1)), (Kind.LIKELIHOOD, 1))


@pytest.mark.parametrize(("kind", "cut"), CUTS)
@pytest.mark.parametrize("family", (*tiny.FAMILIES, *tiny.UNPLAIN, *tiny.MIXED))
def test_every_cut_scores_as_no_cut(family: str, kind: Kind, cut: int) -> None:
    """Law 6 from the embedding to the head; and the same bits in memory and spilled, the first time and from the store."""
    lm = tiny.make(family)
    pool = pool_for(lm, kind)
    tune = f"layers:{cut}-" if cut < tiny.DEPTH else "head"
    subset = subsets.select(lm, tune, pool.sheet(kind).columns.tolist())
    assert subset.cut == cut
    weights = tiny.weights(lm, subset)
    expected = ForwardScorer(pool, weights, None).outputs(kind, PROBES, everything(pool))
    scorers = [ForwardScorer(pool, weights, Trunk(lm, cut, limit)) for limit in (1 << 20, 0)]
    found = [scorer.outputs(kind, PROBES, everything(pool)) for scorer in (*scorers, *scorers[1:])]
    assert_same(found[0], expected)
    for other in found[1:]:
        assert all(np.array_equal(numbers(a), numbers(b)) for a, b in zip(found[0], other, strict=True))
    for part, whole in zip(scorers[1].outputs(kind, PROBES[:2], np.array([4, 1])), expected, strict=False):
        np.testing.assert_allclose(numbers(part), numbers(whole)[[4, 1]], atol=BOUND)


def test_a_layer_that_is_passed_over_still_answers_for_itself() -> None:
    """Some families ask each layer for its kind of attention and choose the mask by it."""
    lm = tiny.make()
    layers = lm.model.model.layers
    with Trunk(lm, 2).given(torch.zeros(1, 1, 32)):
        assert lm.model.model.layers[1].self_attn is layers[1].self_attn
        assert not list(lm.model.model.layers[1].parameters())
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = lm.model.model.layers[1].no_such_thing
    assert lm.model.model.layers is layers


def test_a_norm_that_is_called_on_embeddings_too_is_met_behind_the_layers() -> None:
    lm = tiny.make()
    inner = lm.model.model
    inner.embed_tokens.register_forward_hook(lambda module, inputs, output: inner.norm(output))
    pool = pool_for(lm, Kind.CHOICE)
    weights = tiny.weights(lm, subsets.select(lm, "head", pool.choices.columns.tolist()))
    expected = ForwardScorer(pool, None, None).outputs(Kind.CHOICE, [REST], everything(pool))
    found = ForwardScorer(pool, weights, Trunk(lm, tiny.DEPTH)).outputs(Kind.CHOICE, [REST], everything(pool))
    assert_same(found, expected)


def test_a_norm_before_the_layers_is_refused() -> None:
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    model: Any = AutoModelForCausalLM.from_config(PLBartConfig(vocab_size=300, **sizes))
    lm = LanguageModel(model.eval().requires_grad_(False), tiny.tokenizer("bos"), "tiny-plbart")
    with pytest.raises(InputError, match=r"'model.decoder.layernorm_embedding' is no norm behind its layers"):
        Trunk(lm, 2).run(passes.pad([(1, 2)], [0], 0, torch.device("cpu")))


def test_a_model_that_goes_through_its_layers_again_is_refused() -> None:
    lm, ids = tiny.make(), torch.tensor([[1, 2]])
    with Trunk(lm, 2).given(torch.zeros(1, 2, 32)):
        lm.model(input_ids=ids)
        with pytest.raises(InputError, match=r"LlamaForCausalLM goes through its layers more than once. Use tune=all"):
            lm.model(input_ids=ids)


def test_several_states_a_token_are_refused() -> None:
    lm = tiny.make()
    lm.model.model.layers[-1].register_forward_hook(lambda module, inputs, output: output[:, :, None].expand(-1, -1, 4, -1))
    with pytest.raises(
        InputError, match=r"LlamaForCausalLM: hidden states \(1, 2, 4, 32\) are not one a token. Use tune=all"
    ):
        Trunk(lm, tiny.DEPTH).run(passes.pad([(1, 2)], [0], 0, torch.device("cpu")))


@pytest.mark.parametrize("limit", [1 << 20, 3000, 0])
def test_a_sequence_is_run_below_the_cut_once(limit: int) -> None:
    """Whatever the limit: what does not fit in memory is spilled, not computed again."""
    lm = tiny.make()
    pool = pool_for(lm, Kind.CHOICE)
    trunk = Trunk(lm, 2, limit)
    scorer = ForwardScorer(pool, None, trunk)
    ran: list[int] = []
    lm.model.model.layers[0].register_forward_hook(lambda module, inputs, output: ran.append(len(inputs[0])))
    for indices in ([3], [0, 3, 3, 5], [5, 4, 3, 2, 1, 0], [1, 1]):
        scorer.outputs(Kind.CHOICE, [REST], np.array(indices))
    sequences = set(pool.choices.sequences)
    assert sum(ran) == len(sequences)
    assert len(trunk.kept) == sum(map(len, sequences))
    assert trunk.kept.memory <= limit
    assert (trunk.kept.spilled > 0) == (limit < 1 << 20)


def test_the_trunk_gives_the_layers_back_after_an_error() -> None:
    lm = tiny.make()
    pool = pool_for(lm, Kind.CHOICE)
    before = plain(pool)
    trunk = Trunk(lm, 2)
    state = trunk.states(passes.plan(lm, pool.choices)[0], pool.choices.sequences)
    with pytest.raises(RuntimeError, match="stop"), trunk.given(state):
        raise RuntimeError("stop")
    assert_same([plain(pool)], [before])


# The tail


class Squared(nn.Module):
    """A norm that is no gain and shift of anything."""

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(hidden * self.weight**2)


def head_of(lm: LanguageModel, pool: Pool, kind: Kind, store: str = "inference") -> tuple[ForwardScorer, TailScorer]:
    sheet = pool.choices if kind is Kind.CHOICE else pool.targets
    subsets.without_rows(lm)
    subset = subsets.select(lm, "head", sheet.columns.tolist())
    weights = tiny.weights(lm, subset, store)
    tail = scorer_for(pool, weights, subset)
    assert isinstance(tail, TailScorer)
    return ForwardScorer(pool, weights, None), tail


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_tail_says_what_forward_passes_say(family: str, kind: Kind) -> None:
    lm = tiny.make(family)
    pool = pool_for(lm, kind)
    forward, tail = head_of(lm, pool, kind)
    for indices in (everything(pool), np.array([4, 0])):
        assert_same(tail.outputs(kind, PROBES, indices), forward.outputs(kind, PROBES, indices))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("store", ["inference", "master"])
def test_the_tail_works_in_bfloat16(store: str, family: str) -> None:
    lm = tiny.make(family, torch.bfloat16)
    for kind in Kind:
        pool = pool_for(lm, kind)
        forward, tail = head_of(lm, pool, kind, store)
        found, expected = (s.outputs(kind, PROBES, everything(pool)) for s in (tail, forward))
        for a, b in zip(found, expected, strict=True):
            if isinstance(a, Generations):
                assert len(a) == len(b)
            else:
                np.testing.assert_allclose(numbers(a), numbers(b), atol=0.25)  # the forward pass also rounds logits


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_tail_reads_only_the_columns_of_one_token_options(family: str) -> None:
    lm = tiny.make(family)
    pool = pool_for(lm, Kind.CHOICE, ONE_TOKEN)
    forward, tail = head_of(lm, pool, Kind.CHOICE)
    found = tail.outputs(Kind.CHOICE, PROBES, everything(pool))
    assert_same(found, forward.outputs(Kind.CHOICE, PROBES, everything(pool)))
    assert np.abs(numbers(found[0]) - numbers(found[1])).max() > 0.1, "the probes should differ"


def test_the_tail_takes_rows_that_a_batch_does_not_read() -> None:
    lm = tiny.make()
    options = ((" good", " bad"), (" film", " a"), (" book", " is"))
    pool = Pool(lm, OPTIONS, tuple(tiny.choice(i, p, options[i % 3]) for i, p in enumerate(PROMPTS)))
    assert pool.choices.closed
    forward, tail = head_of(lm, pool, Kind.CHOICE)
    for indices in (np.array([1, 4]), np.array([2]), everything(pool)):
        assert_same(tail.outputs(Kind.CHOICE, PROBES, indices), forward.outputs(Kind.CHOICE, PROBES, indices))


def test_the_tail_gives_minus_infinity_where_an_example_has_fewer_options() -> None:
    lm = tiny.make()
    options = ((" good", " bad"), (" film", " a", " book"))
    pool = Pool(lm, OPTIONS, tuple(tiny.choice(i, p, options[i % 2]) for i, p in enumerate(PROMPTS)))
    assert pool.choices.closed
    forward, tail = head_of(lm, pool, Kind.CHOICE)
    found = tail.outputs(Kind.CHOICE, PROBES, everything(pool))
    assert_same(found, forward.outputs(Kind.CHOICE, PROBES, everything(pool)))
    assert np.isneginf(numbers(found[0])[::2, 2]).all()


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("norm", [GemmaRMSNorm, nn.RMSNorm, nn.LayerNorm, Squared], ids=lambda norm: norm.__name__)
def test_the_tail_takes_norms_as_they_are(norm: type[nn.Module], kind: Kind) -> None:
    """A weight kept as its difference from one, and one that no formula fits."""
    lm = tiny.make()
    lm.model.model.norm = norm(32)
    with torch.no_grad():
        lm.model.model.norm.weight.copy_(torch.linspace(-1, 2, 32))
    pool = pool_for(lm, kind)
    forward, tail = head_of(lm, pool, kind)
    assert_same(tail.outputs(kind, PROBES, everything(pool)), forward.outputs(kind, PROBES, everything(pool)))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("limit", [1000, 0])
def test_spilled_sites_say_the_same_to_the_bit(limit: int, kind: Kind) -> None:
    lm = tiny.make()
    pool = pool_for(lm, kind)
    _, tail = head_of(lm, pool, kind)
    spilled = TailScorer(pool, tail.weights, Trunk(lm, tiny.DEPTH, limit), [t.name for t in tail.weights.tuned])
    found, expected = (s.outputs(kind, PROBES, everything(pool)) for s in (spilled, tail))
    assert spilled.sites.kept.spilled > 0 and spilled.sites.kept.memory <= limit
    assert all(np.array_equal(a.predictions, b.predictions) for a, b in zip(found, expected, strict=True))
    if kind is not Kind.TEXT:
        assert all(np.array_equal(numbers(a), numbers(b)) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", list(Kind))
def test_members_in_groups_say_what_they_say_together(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.make()
    for options in (ONE_TOKEN, SEVERAL):
        pool = pool_for(lm, kind, options)
        _, tail = head_of(lm, pool, kind)
        together = tail.outputs(kind, PROBES, everything(pool))
        with monkeypatch.context() as patch:
            patch.setattr(readout, "CELLS", 1)
            assert_same(tail.outputs(kind, PROBES, everything(pool)), together)


def test_an_example_is_run_below_the_norm_once() -> None:
    lm = tiny.make()
    for kind in (Kind.CHOICE, Kind.LIKELIHOOD):
        pool = pool_for(lm, kind)
        _, tail = head_of(lm, pool, kind)
        ran: list[int] = []
        hook = lm.model.model.layers[0].register_forward_hook(lambda m, inputs, output, ran=ran: ran.append(len(inputs[0])))
        for indices in ([3], [0, 3, 3, 5], [5, 4, 3, 2, 1, 0], [1, 1]):
            tail.outputs(kind, PROBES, np.array(indices))
        hook.remove()
        assert sum(ran) == len(pool.sheet(kind).sequences)


def test_a_scorer_goes_on_with_the_sites_it_is_given() -> None:
    lm = tiny.make()
    pool = pool_for(lm, Kind.CHOICE)
    _, first = head_of(lm, pool, Kind.CHOICE)
    second = TailScorer(pool, first.weights, Trunk(lm, tiny.DEPTH), [t.name for t in first.weights.tuned], first.sites)
    assert second.sites is first.sites, "empty ones too"
    expected = first.outputs(Kind.CHOICE, PROBES, everything(pool))
    known = len(first.sites)
    assert_same(second.outputs(Kind.CHOICE, PROBES, everything(pool)), expected)
    assert len(first.sites) == known


@pytest.mark.parametrize("tune", ["norms", "head"])
def test_the_tail_serves_a_norm_alone(tune: str) -> None:
    lm = tiny.make()
    pool = pool_for(lm, Kind.CHOICE)
    subset = subsets.select(lm, "pattern:^model.norm" if tune == "norms" else "head", [3])
    weights = tiny.weights(lm, subset)
    tail = TailScorer(pool, weights, Trunk(lm, tiny.DEPTH), subset.names)
    expected = ForwardScorer(pool, weights, None).outputs(Kind.CHOICE, PROBES, everything(pool))
    assert_same(tail.outputs(Kind.CHOICE, PROBES, everything(pool)), expected)


def test_the_tail_refuses_what_lies_below() -> None:
    lm = tiny.make()
    with pytest.raises(InputError, match=r"model\.embed_tokens\.weight"):
        Tail(lm, Trunk(lm, tiny.DEPTH), ["model.embed_tokens.weight"])


@pytest.mark.parametrize("family", tiny.UNPLAIN)
def test_logits_that_are_scaled_or_capped_are_left_to_forward_passes(family: str) -> None:
    lm = tiny.make(family)
    pool = pool_for(lm, Kind.CHOICE)
    np.testing.assert_allclose(numbers(plain(pool)), [reference(lm, e) for e in pool.examples], atol=BOUND)
    subset = subsets.select(lm, "head", [3, 5])
    weights = tiny.weights(lm, subset)
    scorer = scorer_for(pool, weights, subset)
    assert isinstance(scorer, ForwardScorer) and scorer.trunk is not None and scorer.trunk.cut == tiny.DEPTH
    expected = ForwardScorer(pool, weights, None).outputs(Kind.CHOICE, PROBES, everything(pool))
    assert_same(scorer.outputs(Kind.CHOICE, PROBES, everything(pool)), expected)


def test_both_scorers_charge_the_same() -> None:
    lm = tiny.make()
    for kind in Kind:
        pool = pool_for(lm, kind)
        forward, tail = head_of(lm, pool, kind)
        forward.outputs(kind, PROBES, everything(pool))
        spent = (pool.cost.forwards, pool.cost.examples, pool.cost.tokens)
        if kind is not Kind.TEXT:
            assert spent[2] == 4 * sum(map(len, pool.sheet(kind).sequences))
        tail.outputs(kind, PROBES, everything(pool))
        assert (pool.cost.forwards, pool.cost.examples, pool.cost.tokens) == tuple(2 * n for n in spent)
        assert spent[:2] == (4, 24)


# Generation


def greedy(lm: LanguageModel, ids: Sequence[int], new_tokens: int, stops: Sequence[int]) -> list[int]:
    """The plain way: one prompt, no cache, the likeliest token each time."""
    said: list[int] = []
    while len(said) < new_tokens and not (said and said[-1] in stops):
        said.append(int(lm.model(torch.tensor([[*ids, *said]])).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("kind", ["bos", "eos"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_left_padded_generation_equals_one_prompt_at_a_time(family: str, kind: str) -> None:
    lm = tiny.make(family, kind=kind)
    prompts = [token_ids(lm, p) for p in PROMPTS]
    free = [greedy(lm, p, 8, []) for p in prompts]
    stops = [free[0][2], free[1][5]]
    assert generation.generate(lm, prompts, new_tokens=8, stops=stops) == [greedy(lm, p, 8, stops) for p in prompts]
    assert any(len(greedy(lm, p, 8, stops)) < 8 for p in prompts)


def test_a_models_own_generation_settings_do_not_leak_in() -> None:
    lm = tiny.make()
    prompts = [token_ids(lm, p) for p in PROMPTS]
    expected = [greedy(lm, p, 8, []) for p in prompts]
    own = lm.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.eos_token_id, own.min_new_tokens = 3.0, 1, expected[0][0], 2
    assert generation.generate(lm, prompts, new_tokens=8, stops=[]) == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_decode_equals_generate_token_by_token_for_members_that_diverge(family: str) -> None:
    lm = tiny.make(family)
    pool = pool_for(lm, Kind.TEXT)
    forward, tail = head_of(lm, pool, Kind.TEXT)
    assert forward.weights is not None
    probes = [Probe(k, s) for k in (1, 2, 3) for s in (0.3, -0.3)]
    prompts = list(pool.prompts)
    stops = [greedy(lm, prompts[0], 3, [])[-1]]
    decode = Decoder(tail.tail, tail.sites, 9, stops)
    found = decode(forward.weights.stacked(probes), prompts, range(len(prompts)))
    for probe, said in zip(probes, found, strict=True):
        with forward.weights.at(probe):
            assert said == generation.generate(lm, prompts, new_tokens=9, stops=stops)
    assert len({str(said) for said in found}) > 3, "members should diverge"
    assert {len(tokens) for said in found for tokens in said} > {9}, "some should stop early"


def test_decoding_again_computes_nothing_new() -> None:
    lm = tiny.make()
    pool = pool_for(lm, Kind.TEXT)
    _, tail = head_of(lm, pool, Kind.TEXT)
    first = tail.outputs(Kind.TEXT, PROBES, everything(pool))
    known = len(tail.sites)
    assert_same(tail.outputs(Kind.TEXT, PROBES, everything(pool)), first)
    assert len(tail.sites) == known


def test_stop_tokens_are_all_that_hold_a_stop_character() -> None:
    lm = tiny.make()
    stops = generation.stop_tokens(lm, ["\n", "bad and"])
    texts_ = lm.tokenizer.batch_decode([[i] for i in range(len(lm.tokenizer))])
    assert stops == sorted({i for i, t in enumerate(texts_) if "\n" in t} | {lm.tokenizer.eos_token_id})


def test_text_is_cut_at_the_first_stop_string() -> None:
    lm = tiny.make()
    tokens = token_ids(lm, "a good book\na bad film\n")
    assert generation.text_of(lm, tokens, ["\n", "book"]) == "a good "
    assert generation.text_of(lm, tokens, ["great"]) == "a good book\na bad film\n"


# Label rows


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_label_rows_leave_the_input_embedding_alone(family: str) -> None:
    lm = tiny.make(family)
    ids = torch.tensor([token_ids(lm, PROMPTS[1])])
    before, embedding = lm.model(ids).logits, lm.model.get_input_embeddings().weight.clone()
    subset = subsets.select(lm, "head", [5, 9])
    assert torch.equal(lm.model(ids).logits, before), "rows of zeros change nothing"
    weights = tiny.weights(lm, subset)
    head = lm.model.get_output_embeddings()
    weights.load(weights.state_dict() | {n: torch.full((2, 32), 0.1) for n in subset.names if n.endswith(".rows")})
    with torch.no_grad():
        states = lm.model.base_model(ids).last_hidden_state
    moved = lm.model(ids).logits - before
    torch.testing.assert_close(moved[..., [5, 9]], 0.1 * states.sum(-1, keepdim=True).expand(-1, -1, 2), atol=BOUND, rtol=0)
    moved[..., [5, 9]] = 0
    assert not moved.any()
    assert torch.equal(lm.model.get_input_embeddings().weight, embedding)
    assert isinstance(head, LabelRows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_merged_head_saves_and_loads_to_the_same_logits(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lm = tiny.make(family, dtype)
    ids = torch.tensor([token_ids(lm, PROMPTS[1])])
    weights = tiny.weights(lm, subsets.select(lm, "head", [5, 9]))
    rows = next(t for t in weights.tuned if t.name.endswith(".rows"))
    weights.load(weights.state_dict() | {rows.name: torch.linspace(-1, 1, 64, dtype=dtype).view(2, 32)})
    embedding, tuned = lm.model.get_input_embeddings().weight.clone(), lm.model(ids).logits
    subsets.merged_head(lm)
    assert not isinstance(lm.model.get_output_embeddings(), LabelRows)
    lm.model.save_pretrained(tmp_path)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(again(ids).logits, lm.model(ids).logits)
    assert torch.equal(again.get_input_embeddings().weight, embedding)
    bound = BOUND if dtype == torch.float32 else 0.15  # the sum of two bfloat16 products rounds once more
    torch.testing.assert_close(again(ids).logits, tuned, atol=bound, rtol=0)


def test_merging_without_label_rows_changes_nothing() -> None:
    lm = tiny.make("gpt2")
    head = lm.model.get_output_embeddings()
    subsets.merged_head(lm)
    assert lm.model.get_output_embeddings() is head
    assert lm.model.config.tie_word_embeddings


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_merged_adapters_give_plain_layers_with_the_same_logits(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lm = adapters.adapted(tiny.make(family), "lora:2")
    ids = torch.tensor([token_ids(lm, PROMPTS[1])])
    weights = tiny.weights(lm, subsets.select(lm, "lora:2", []))
    weights.load({n: torch.full_like(t, 0.05) for n, t in weights.state_dict().items()})
    before, tuned = tiny.make(family).model(ids).logits, lm.model(ids).logits
    assert float((tuned - before).detach().abs().max()) > 0.01
    adapters.merged(lm)
    lm.model.save_pretrained(tmp_path)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, tuned, atol=BOUND, rtol=0)


# Subsets and anatomy


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_subsets_name_what_they_say(family: str) -> None:
    lm = tiny.make(family)
    names = [n for n, _ in lm.model.named_parameters()]
    assert list(subsets.select(lm, "all", []).names) == names
    layer = subsets.select(lm, "layers:1", [])
    assert layer.cut == 1
    assert layer.names and all(".1." in n for n in layer.names)
    norms = subsets.select(lm, "norms", [])
    assert norms.cut == 0
    assert all("norm" in n or "ln_" in n for n in norms.names)
    both = subsets.select(lm, "layers:2+head", [4])
    assert both.cut == 2
    assert set(both.names) > set(subsets.select(lm, "layers:2", []).names)
    assert all(gain > 0 for gain in both.gains.values())


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("haed", "Did you mean 'head'"),
        ("layers:3", "0 <= A <= B <= 2"),
        ("layers:2-1", "0 <= A <= B <= 2"),
        ("layers:x", "0 <= A <= B <= 2"),
        ("pattern:(", "not a regular expression"),
        ("pattern:nothing_like_it", "selects no parameter"),
        ("lora:many", "give a rank"),
    ],
)
def test_a_wrong_subset_is_refused_with_the_cure(tune: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        subsets.select(adapters.adapted(tiny.make(), tune), tune, [])


# Law 8, and the evaluation around it


@pytest.mark.parametrize("kind", list(Kind))
def test_every_probe_meets_the_same_batch_in_the_same_order(kind: Kind) -> None:
    lm = tiny.make()
    seen: list[tuple[Any, Any]] = []
    met: list[list[int]] = []

    def look(module: Any, inputs: Any, named: dict[str, Any]) -> None:
        if named["input_ids"].shape[1] > 1:  # later tokens of a generation may differ, what is read may not
            seen.append((named["input_ids"].tolist(), named["attention_mask"].tolist()))

    def score(outputs: Outputs, examples: Sequence[Example]) -> float:
        met.append([e.id for e in examples])
        return 0.0

    lm.model.register_forward_pre_hook(look, with_kwargs=True)
    weights = tiny.weights(lm, subsets.select(lm, "layers:0", []))
    objective = Objective("o", score, Needs.LIKELIHOOD if kind is Kind.LIKELIHOOD else Needs.PREDICTION)
    evaluation = Evaluation(ForwardScorer(pool_for(lm, kind), weights, None), objective)
    assert evaluation.kind is kind
    assert evaluation.scores(PROBES, np.array([4, 0, 2])) == [0.0] * 4
    assert met == [[4, 0, 2]] * 4
    assert seen == seen[:1] * 4


def test_watching_is_not_charged_and_does_not_depend_on_chunks() -> None:
    lm = tiny.make()
    pool = pool_for(lm, Kind.CHOICE)
    whole, pieces = (
        Evaluation(ForwardScorer(pool, None, None), BUILTIN["accuracy"], chunk).at_rest(everything(pool))
        for chunk in (512, 4)
    )
    assert_same([pieces], [whole])
    assert pool.cost.forwards == 0


def test_what_an_objective_needs_decides_what_is_asked() -> None:
    assert kind_for(OPTIONS, BUILTIN["accuracy"]) is Kind.CHOICE
    assert kind_for(TEXT, BUILTIN["exact_match"]) is Kind.TEXT
    assert kind_for(TEXT, BUILTIN["cross_entropy"]) is Kind.LIKELIHOOD
    with pytest.raises(InputError, match="needs doc_to_target"):
        kind_for(TEXT.model_copy(update={"doc_to_target": None}), BUILTIN["cross_entropy"])


# Input that cannot work


def test_options_with_the_same_tokens_are_refused() -> None:
    with pytest.raises(InputError, match=r"Example 7: options ' good' and ' good' are the same tokens"):
        _ = Pool(tiny.make(), OPTIONS, (tiny.choice(7, "a", (" good", " bad", " good")),)).choices


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    lm = tiny.make()
    with pytest.raises(InputError, match=r"Example 3 is \d+ tokens long.* takes 64.*long_prompts=drop"):
        _ = Pool(lm, OPTIONS, (tiny.choice(3, "the film " * 60, ONE_TOKEN),)).choices
    with pytest.raises(InputError, match=r"Example 3 .* with its 7 new tokens"):
        _ = Pool(lm, TEXT, (Example(3, "a " * 60, {}, targets=("b",)),)).prompts


def test_an_option_with_nothing_before_it_is_refused() -> None:
    with pytest.raises(InputError, match="nothing comes before the option"):
        _ = Pool(tiny.make(kind="eos"), OPTIONS, (tiny.choice(0, "", ("good", "bad")),)).choices


@pytest.mark.parametrize(
    ("name", "message"), [("./nowhere", "does not exist"), ("a/b/c", "does not exist"), ("EMPTY", "has no config.json")]
)
def test_a_model_that_is_not_there_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        hf.load(str(tmp_path) if name == "EMPTY" else name)


def test_the_beginning_of_text_comes_once_and_the_end_of_text_never() -> None:
    lm = tiny.make()
    ids, ends = hf.encode(lm, "a good book")
    assert ids[0] == 0 and 0 not in ids[1:] and lm.tokenizer.eos_token_id not in ids
    assert ends == [0, *(end for _, end in lm.tokenizer("a good book", return_offsets_mapping=True)["offset_mapping"][1:])]
    without = LanguageModel(lm.model, tiny.tokenizer("eos"), "gpt2-like")
    assert hf.encode(without, "a good book")[0][0] != 0
    for kind in ("left out", "both ends"):
        assert hf.encode(LanguageModel(lm.model, tiny.tokenizer(kind), kind), "a good book") == (ids, ends)


# A real model


@pytest.mark.skipif(not (SHARED / "models" / "TinyStories-656K").is_dir(), reason="../shared has no TinyStories-656K")
def test_tinystories_is_at_chance_on_sst2() -> None:
    lm = hf.load(str(SHARED / "models" / "TinyStories-656K"))
    spec = read_task(find_task("sst2"))
    examples = data.load(data.Form(spec), SHARED / "data", data.Sizes(1, 1)).test
    pool = Pool(lm, spec, examples)
    outputs = Evaluation(ForwardScorer(pool, None, None), BUILTIN["accuracy"]).at_rest(everything(pool))
    assert 0.49 <= BUILTIN["accuracy"](outputs, examples) <= 0.54
    assert outputs.predictions.min() == 0 and outputs.predictions.max() == 1


def test_sites_are_shared_between_equal_prefixes() -> None:
    lm = tiny.make()
    sites = Sites(lm, Trunk(lm, tiny.DEPTH))
    numbers_ = sites.of_prefixes([(1, 2, 3), (1, 2), (1, 2, 3)])
    assert numbers_[0] == numbers_[2] != numbers_[1]
    first = sites.at(numbers_)
    assert sites.of_prefixes([(1, 2, 3, 4), (1, 2), (1, 2, 3)]).tolist() == [2, numbers_[1], numbers_[0]]
    assert len(sites) == 3
    assert torch.equal(sites.at(numbers_), first)
