"""Every causal family of transformers that a few sizes make small: stored layers, at every cut, change no score.

Slow, and only as wide as the installed transformers; families that need more than sizes to be small are skipped by name.
"""

import inspect
from typing import Any

import pytest
import tiny
import torch
from test_scoring import PROBES, assert_same, everything, pool_for
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from zo_objectives import subsets
from zo_objectives.errors import InputError
from zo_objectives.language.anatomy import anatomy
from zo_objectives.language.hf import LanguageModel
from zo_objectives.scoring import ForwardScorer, Kind
from zo_objectives.trunk import Trunk

SIZES: dict[str, Any] = {
    "vocab_size": 300, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "decoder_ffn_dim": 48, "moe_intermediate_size": 16, "n_positions": 64,
    "num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "decoder_layers": 3, "first_k_dense_replace": 1,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "partial_rotary_factor": 0.5, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LARGEST = 30_000_000  # parameters: what sizes alone make no smaller
OWN_STATES = {"rwkv", "xlstm", "hy_v4"}  # layers that hand on more than hidden states: not served, and not told so
ENDLESS = {"falcon_h1", "falcon_mamba", "kimi_linear", "qwen3_5_text", "qwen3_5_moe_text"}  # minutes, without their kernels


def small(family: str) -> LanguageModel:
    """A small model of a family in which every tensor is random. Skips the test where sizes alone make none."""
    try:
        kind = type(AutoConfig.for_model(family))
        known = {*inspect.signature(kind).parameters, *getattr(kind, "attribute_map", {}), *kind.__annotations__}
        config = kind(**{name: value for name, value in SIZES.items() if name in known})
        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if count > LARGEST:
            pytest.skip(f"{family}: {count:,} parameters")
        model: Any = AutoModelForCausalLM.from_config(config)
        tiny.randomise(model)
        lm = LanguageModel(model.eval().requires_grad_(False), tiny.tokenizer("bos"), f"tiny-{family}")
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([[1, 2, 3]]), **lm.uncached)
    except pytest.skip.Exception:
        raise
    except Exception as error:
        pytest.skip(f"{family}: {type(error).__name__}: {str(error)[:100]}")
    return lm


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - ENDLESS - OWN_STATES))
def test_stored_layers_change_no_score(family: str) -> None:
    lm = small(family)
    try:
        depth = anatomy(lm.model).depth
    except InputError as refused:
        pytest.skip(str(refused))
    pool = pool_for(lm, Kind.CHOICE)
    for cut in range(1, depth + 1):
        tune = f"layers:{cut}-" if cut < depth else "head"
        subset = subsets.select(lm, tune, pool.choices.columns.tolist())
        weights = tiny.weights(lm, subset)
        expected = ForwardScorer(pool, weights, None).outputs(Kind.CHOICE, PROBES, everything(pool))
        try:
            found = ForwardScorer(pool, weights, Trunk(lm, subset.cut)).outputs(Kind.CHOICE, PROBES, everything(pool))
        except InputError as refused:
            assert "Use tune=all" in str(refused)
            continue
        assert_same(found, expected)
