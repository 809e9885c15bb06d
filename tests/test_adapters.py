"""Adapters: a prefix and a prompt begin as real tokens do, score and generate whatever the batch, and replay."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from zo_objectives import subsets
from zo_objectives.adapters import adapted, forms
from zo_objectives.errors import InputError
from zo_objectives.language import data, generation
from zo_objectives.language.hf import LanguageModel, encode, virtual_tokens
from zo_objectives.language.outputs import Choices
from zo_objectives.language.tasks import TaskSpec
from zo_objectives.scoring import REST, ForwardScorer, Kind, Pool
from zo_objectives.search.estimators import Probe

pytest.importorskip("peft")
BOUND = 1e-4
PROMPTS = ("the film is", "a good book, a bad book, a great", "a", "the plot is bad and")
TASK: dict[str, Any] = {
    "task": "t", "dataset_path": "x", "output_type": "multiple_choice", "doc_to_text": "text", "doc_to_target": 0,
    "doc_to_choice": ["bad", "good film"], "zo": {"mask": "{{text}} It is{{mask}}.", "words": ["bad", "good"]},
}  # fmt: skip


def pool_of(lm: LanguageModel) -> Pool:
    spec = TaskSpec.model_validate(TASK)
    form = data.Form(spec, lm.mask)
    return Pool(lm, spec, tuple(form.render({"text": p}, i, "here") for i, p in enumerate(PROMPTS)))


def first_tokens(lm: LanguageModel, count: int) -> torch.Tensor:
    """The random tokens that a prefix or a prompt begins as."""
    return torch.randint(len(lm.tokenizer), (1, count), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["prefix:4", "prompt:4"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_virtual_tokens_begin_as_real_ones(family: str, form: str, dtype: torch.dtype) -> None:
    """Keys and values of real activations (MeZO, appendix E.5) are exactly tokens that stand before the text."""
    lm = tiny.make(family, dtype)
    ids = torch.tensor([[5, 9, 11, 30, 7], [8, 8, 40, 41, 3]])
    expected = lm.model(torch.cat([first_tokens(lm, 4).expand(2, -1), ids], 1)).logits[:, -5:]
    other = adapted(lm, form)
    found = other.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -5:]
    torch.testing.assert_close(found, expected, atol=1e-5 if dtype is torch.float32 else 0.1, rtol=0)
    assert virtual_tokens(other.model) == 4 and other.context == lm.context - 4


@pytest.mark.parametrize("form", ["prefix:3", "prompt:3", "lora:2"])
@pytest.mark.parametrize("family", (*tiny.FAMILIES, *tiny.MASKED))
def test_an_adapted_model_scores_whatever_the_batch(family: str, form: str) -> None:
    lm = adapted(tiny.make_masked(family) if family in tiny.MASKED else tiny.make(family), form)
    pool, everything, probes = pool_of(lm), np.arange(len(PROMPTS)), [REST, Probe(4, 0.3), Probe(4, -0.3)]
    weights = tiny.weights(lm, subsets.select(lm, form, []))
    scorer = ForwardScorer(pool, weights, None)
    together = scorer.outputs(Kind.CHOICE, probes, everything)
    for i in everything:
        for whole, alone in zip(together, scorer.outputs(Kind.CHOICE, probes, np.array([i])), strict=True):
            assert isinstance(whole, Choices) and isinstance(alone, Choices)
            np.testing.assert_allclose(np.ptp(whole.loglikelihoods[i] - alone.loglikelihoods[0]), 0, atol=BOUND)
    spread = [np.ptp(o.loglikelihoods, axis=1) for o in together if isinstance(o, Choices)]
    assert not np.allclose(spread[0], spread[1], atol=1e-6)  # the probe is felt


@pytest.mark.parametrize("form", ["prefix:3", "prompt:3"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_said_behind_virtual_tokens_is_said_whatever_the_batch(family: str, form: str) -> None:
    lm = adapted(tiny.make(family), form)
    prompts = [encode(lm, p)[0] for p in PROMPTS]
    said = generation.generate(lm, prompts, new_tokens=6, stops=[])
    assert said == [generation.generate(lm, [p], new_tokens=6, stops=[])[0] for p in prompts]
    before = [torch.cat([first_tokens(lm, 3), torch.tensor([p])], 1)[0].tolist() for p in prompts]
    assert said == generation.generate(tiny.make(family), [tuple(ids) for ids in before], new_tokens=6, stops=[])


def test_a_prefix_alone_is_tuned_and_nothing_else_moves() -> None:
    lm = adapted(tiny.make(), "prefix:3")
    subset = subsets.select(lm, "prefix:3", [])
    assert subset.names == ("prompt_encoder.default.embedding.weight",) and subset.cut == 0
    weights = tiny.weights(lm, subset)
    assert weights.count == 3 * tiny.DEPTH * 2 * 2 * 8  # tokens, layers, keys and values, heads, width
    rest = {n: p.clone() for n, p in lm.model.named_parameters() if n not in subset.names}
    weights.load({n: t + 1 for n, t in weights.state_dict().items()})
    assert all(torch.equal(p, rest[n]) for n, p in lm.model.named_parameters() if n in rest)


def test_lora_goes_where_it_is_told() -> None:
    lm = adapted(tiny.make(), "lora:3:q_proj,v_proj")
    names = subsets.select(lm, "lora:3:q_proj,v_proj", []).names
    assert names and all("q_proj" in n or "v_proj" in n for n in names)
    assert len(names) == tiny.DEPTH * 2 * 2
    everywhere = subsets.select(adapted(tiny.make(), "lora:3"), "lora:3", []).names
    assert len(everywhere) == tiny.DEPTH * 7 * 2


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("prefix:x", "give a number of virtual tokens, as in prefix:5"),
        ("prompt:0", "give a number of virtual tokens"),
        ("prefix+prompt", "give one prefix or one prompt"),
        ("prompt:64", "takes 64 tokens in all"),
        ("lora:2:nothing", "no modules called 'nothing'"),
    ],
)
def test_a_wrong_adapter_is_refused_with_the_cure(tune: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapted(tiny.make(), tune)


def test_a_tune_text_is_its_forms() -> None:
    assert forms("lora:8:q_proj,v_proj+norms") == [("lora", "8:q_proj,v_proj"), ("norms", "")]
    lm = tiny.make()
    assert adapted(lm, "head+norms") is lm
