"""Tiny random models, causal of five families and masked of two, with tokenizers made of a few lines: offline, at once."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from zo_objectives.language.encoder import SentenceEncoder
from zo_objectives.language.hf import Form, LanguageModel
from zo_objectives.language.outputs import Example
from zo_objectives.search.geometry import Dense, Scaled
from zo_objectives.search.rules import make_rule
from zo_objectives.search.weights import Weights
from zo_objectives.subsets import Subset

CONTEXT = 64
DEPTH = 3
FAMILIES = ("llama", "opt", "gpt2", "qwen2", "mistral")
MASKED = ("roberta", "bert")
UNPLAIN = ("granite", "gemma2")  # logits are scaled, or capped, behind the output head
MIXED = ("lfm2",)  # convolutions between the layers of attention, and a final norm with a name of its own
TIED = ("opt", "gpt2", "qwen2")
LINES = (
    "the film is good and the plot is bad",
    "a good book, a bad book, a great film",
    "Question: is it good? Answer: yes\nQuestion: is it bad? Answer: no",
    "1 + 2 = 3\n4 + 5 = 9\n12 + 30 = 42",
) * 4


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`bos`: begins every text with <s> by itself, as LLaMA's; `eos`: begins with nothing, and bos is eos, as in GPT-2.

    `left out`: leaves <s> to the caller; `both ends`: puts in <s> and </s>.
    """
    specials = ["<|endoftext|>"] if kind == "eos" else ["<s>", "</s>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=bytes_, show_progress=False)
    )
    if template := {"bos": "<s> $A", "both ends": "<s> $A </s>"}.get(kind):
        bpe.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=specials[0], eos_token=specials[-1])


@cache
def masked_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """As RoBERTa's, whose mask takes the space before it, or as BERT's: lower-cased words in pieces."""
    if family == "roberta":
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        words = Tokenizer(models.BPE())
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        words.train_from_iterator(LINES, trainer)
        names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
        mask: Any = AddedToken("<mask>", lstrip=True)
    else:
        specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        text = "".join(LINES).lower()
        letters, whole = sorted({*text} - {" ", "\n"}), sorted(set(re.findall(r"\w{2,}", text)))
        pieces = [*specials, *whole, *letters, *(f"##{letter}" for letter in letters)]
        words = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        words.normalizer = normalizers.BertNormalizer()
        words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        words.decoder = decoders.WordPiece()
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
        mask = "[MASK]"
    first, last = names["cls_token"], names["sep_token"]
    ends = [(t, words.token_to_id(t)) for t in (first, last)]
    words.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=words, mask_token=mask, **names)


def make_masked(family: str = "roberta", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A masked model in which every tensor is random."""
    words = masked_tokenizer(family)
    kind = {"roberta": RobertaConfig, "bert": BertConfig}[family]
    config = kind(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=DEPTH, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=CONTEXT, pad_token_id=words.pad_token_id, type_vocab_size=2,
    )  # fmt: skip
    model: Any = AutoModelForMaskedLM.from_config(config, dtype=dtype)
    randomise(model)
    return LanguageModel(model.eval().requires_grad_(False), words, f"tiny-{family}", form=Form.MASKED)


def make_encoder(family: str = "bert", pooling: str = "mean") -> LanguageModel:
    """An encoder of sentences in which every tensor is random; it has learnt no options."""
    whole = make_masked(family)
    model = SentenceEncoder(whole.model.base_model, pooling).eval().requires_grad_(False)
    return LanguageModel(model, whole.tokenizer, f"tiny-{family}-encoder", form=Form.ENCODER)


def randomise(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() or re.search(r"\bln_\w+\.weight", name) else 0.0
            parameter.copy_(centre + 0.25 * torch.randn(parameter.shape, generator=generator))


def _config(family: str, vocabulary: int) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
    common = {"vocab_size": vocabulary, "max_position_embeddings": CONTEXT, "tie_word_embeddings": family in TIED}
    common |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    grouped = {"intermediate_size": 48, "num_key_value_heads": 2}
    match family:
        case "llama":
            return LlamaConfig(**sizes, **common, **grouped)
        case "mistral":
            return MistralConfig(**sizes, **common, **grouped, sliding_window=6)
        case "qwen2":
            window = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
            return Qwen2Config(**sizes, **common, **grouped, **window)
        case "opt":
            return OPTConfig(**sizes, **common, ffn_dim=48, word_embed_proj_dim=32)
        case "lfm2":
            return Lfm2Config(**sizes, **common, **grouped, layer_types=["conv", "full_attention", "conv"])
        case "granite":
            return GraniteConfig(**sizes, **common, **grouped, logits_scaling=4.0)
        case "gemma2":
            return Gemma2Config(**sizes, **common, **grouped, head_dim=8, final_logit_softcapping=2.0)
        case "gpt2":
            return GPT2Config(n_embd=32, n_layer=DEPTH, n_head=4, n_positions=CONTEXT, **common)
    raise AssertionError(family)


def make(family: str = "llama", dtype: torch.dtype = torch.float32, kind: str = "bos") -> LanguageModel:
    """A model in which every tensor is random, norms and biases too, so that nothing cancels by chance."""
    words = tokenizer(kind)
    model: Any = AutoModelForCausalLM.from_config(_config(family, len(words)), dtype=dtype)
    randomise(model)
    return LanguageModel(model.eval().requires_grad_(False), words, f"tiny-{family}")


def choice(index: int, prompt: str, options: Sequence[str], label: int = 0) -> Example:
    return Example(index, prompt, {"text": prompt}, tuple(options), label)


def weights(lm: LanguageModel, subset: Subset, store: str = "inference") -> Weights:
    rule = make_rule("sgd", learning_rate=0.1, schedule="constant", steps=10, weight_decay=0.0)
    return Weights(lm.model, subset.names, geometry=Scaled(Dense(), subset.gains), rule=rule, store=store)
