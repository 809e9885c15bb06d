"""Adapters put into a model to be tuned, by peft: LoRA, a prefix of keys and values, a soft prompt.

    lora[:RANK[:MODULES]]   low-rank additions (alpha = 2 RANK) to all linear layers, or to MODULES such as q_proj,v_proj
    prefix[:TOKENS]         keys and values of virtual tokens in every layer (Li & Liang 2021)
    prompt[:TOKENS]         embeddings of virtual tokens before the text (Lester et al. 2021)

Prefixes and prompts begin as what the model makes of random real tokens, which matters much for prefixes (MeZO, appendix
E.5 and Table 17).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zo_objectives.errors import InputError
from zo_objectives.language.hf import Form, LanguageModel

RANK, TOKENS = 8, 5
VIRTUAL = ("prefix", "prompt")
ADAPTERS = ("lora", *VIRTUAL)


def forms(tune: str) -> list[tuple[str, str]]:
    """The parts of a `tune` text, each its form and what it says of it: `lora:8+norms` is [("lora", "8"), ("norms", "")]."""
    parts = (part.strip().partition(":") for part in tune.split("+"))
    return [(form, spec) for form, _, spec in parts]


def virtual_in(tune: str) -> int:
    """How many virtual tokens a `tune` text puts before every prompt. Raises InputError."""
    found = [(form, spec) for form, spec in forms(tune) if form in VIRTUAL]
    return sum(_number(form, spec, TOKENS, "a number of virtual tokens") for form, spec in found)


def adapted(lm: LanguageModel, tune: str) -> LanguageModel:
    """The model with the adapters that `tune` names put in; the model itself where it names none. Raises InputError."""
    found = [(form, spec) for form, spec in forms(tune) if form in ADAPTERS]
    if len([form for form, _ in found if form in VIRTUAL]) > 1:
        raise InputError(f"tune={tune}: give one prefix or one prompt.")
    for form, spec in found:
        model = _with_lora(lm, spec) if form == "lora" else _with_virtual(lm, form, spec)
        lm = replace(lm, model=model.eval().requires_grad_(False))
    return lm


def _number(form: str, text: str, default: int, what: str) -> int:
    if text and not (text.isdigit() and int(text)):
        raise InputError(f"tune={form}:{text}: give {what}, as in {form}:{default}.")
    return int(text or default)


@contextmanager
def _peft() -> Iterator[Any]:
    """The library, quiet and with random numbers of its own."""
    try:
        import peft
    except ImportError as error:
        raise InputError("Adapters need peft. Install it with: pip install 'zo-objectives[peft]'.") from error
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its notes on deprecated names and on GPT-2's transposed layers
        torch.manual_seed(0)
        yield peft


def _with_lora(lm: LanguageModel, spec: str) -> Any:
    rank, _, modules = spec.partition(":")
    r = _number("lora", rank, RANK, "a rank")
    targets: Any = [m.strip() for m in modules.split(",")] if modules else "all-linear"
    names = {n.rpartition(".")[2] for n, _ in lm.model.named_modules()}
    if modules and (strange := [m for m in targets if m not in names]):
        raise InputError(f"tune=lora:{spec}: {lm.name} has no modules called {strange[0]!r}.")
    with _peft() as peft:
        kind = None if lm.bidirectional else "CAUSAL_LM"
        config = peft.LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, target_modules=targets, task_type=kind)
        within = lm.model.encoder if lm.form is Form.ENCODER else lm.model  # its head is none that peft would leave alone
        peft.get_peft_model(within, config)  # changes the model's layers in place
    return lm.model


def _with_virtual(lm: LanguageModel, form: str, spec: str) -> Any:
    if lm.form is Form.ENCODER:
        raise InputError(f"tune={form}: {lm.name} {lm.form.value}, and would pool virtual tokens with the text. Use lora.")
    count = _number(form, spec, TOKENS, "a number of virtual tokens")
    if count >= lm.context:
        raise InputError(f"tune={form}:{count}: {lm.name} takes {lm.context} tokens in all.")
    tokens = torch.randint(len(lm.tokenizer), (1, count), generator=torch.Generator().manual_seed(0)).to(lm.device)
    kind = "FEATURE_EXTRACTION" if lm.bidirectional else "CAUSAL_LM"
    with _peft() as peft, torch.no_grad():
        if form == "prefix":
            start = _keys_and_values(lm, tokens)
            config = peft.PrefixTuningConfig(task_type=kind, num_virtual_tokens=count)
        else:
            start = lm.model.get_input_embeddings()(tokens)[0]
            config = peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=count)
        model = peft.get_peft_model(lm.model, config)
        weight: Tensor = model.prompt_encoder["default"].embedding.weight
        if weight.shape != start.shape:
            raise InputError(f"tune={form}: peft's {form} does not fit {type(lm.model).__name__}. Use tune=lora.")
        weight.copy_(start)
    return model


def _keys_and_values(lm: LanguageModel, tokens: Tensor) -> Tensor:
    """[tokens, layers * 2 * heads * width]: the model's own keys and values of real tokens, as peft lays them out."""
    from transformers import DynamicCache

    cache = DynamicCache()
    lm.model(input_ids=tokens, past_key_values=cache)
    parts = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
    return torch.cat(parts, dim=1)


def merged(lm: LanguageModel) -> list[str]:
    """Adds LoRA's products to the layers they belong to and takes the adapters out; the names of the weights that changed.

    Raises InputError for a weight that another module shares, which the products were not meant for.
    """
    changed = []
    for name, module in list(lm.model.named_modules()):
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            layer = module.get_base_layer()
            if sum(m._parameters.get("weight") is layer.weight for m in lm.model.modules()) > 1:
                raise InputError(f"LoRA in {name}, whose weight is tied to another's, cannot be merged. Name other modules.")
            before = layer.weight.clone()
            module.merge()
            changed += [] if torch.equal(layer.weight, before) else [f"{name}.weight"]
            parent, _, attribute = name.rpartition(".")
            setattr(lm.model.get_submodule(parent), attribute, layer)
    return changed
