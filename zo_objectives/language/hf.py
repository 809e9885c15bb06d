"""Language models of transformers, causal or masked: loading and tokenising."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zo_objectives.errors import InputError
from zo_objectives.language.sheet import Ids

EMBEDDED = "reviews-1m"
OFFSET = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
)  # positions begin behind the padding id
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LanguageModel:
    """A model in evaluation mode with its tokenizer; a masked one fills in a mask, a causal one says what comes next."""

    model: Any
    tokenizer: Any
    name: str
    masked: bool = False

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def head(self) -> Any:
        """The module that turns states into logits."""
        return self.model.get_output_embeddings()

    @property
    def uncached(self) -> dict[str, bool]:
        """How a forward pass is told to keep no keys and values."""
        return {} if self.masked or virtual_tokens(self.model) else {"use_cache": False}

    @property
    def mask(self) -> str | None:
        """The text of a masked model's mask."""
        return str(self.tokenizer.mask_token) if self.masked else None

    @cached_property
    def context(self) -> int:
        """The longest sequence in tokens; without a limit of its own, a million."""
        config = self.model.config.get_text_config()
        positions = int(getattr(config, "max_position_embeddings", None) or 1_000_000)
        first = config.pad_token_id + 1 if config.model_type in OFFSET else 0
        return positions - first - virtual_tokens(self.model)

    @property
    def padding(self) -> int:
        """A token id to fill up with; it is never attended to."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0):
            if token is not None:
                return int(token)
        raise AssertionError


def is_masked(config: Any) -> bool:
    """Whether a model's configuration says that it fills in masks."""
    named = " ".join(getattr(config, "architectures", None) or ())
    return "MaskedLM" in named or "BertForPreTraining" in named


def is_masked_folder(name: str) -> bool:
    """Whether a model, by its name or folder, fills in masks; its weights are not loaded. Raises InputError."""
    from transformers import AutoConfig

    path = model_path(name)
    try:
        return is_masked(AutoConfig.from_pretrained(path, local_files_only=Path(path).is_dir()))
    except Exception as error:
        raise InputError(f"Cannot read the configuration of model {name!r}: {type(error).__name__}.") from error


def virtual_tokens(model: Any) -> int:
    """How many positions a prefix or a soft prompt takes (see adapters)."""
    found = getattr(model, "peft_config", {}).get("default")
    return int(getattr(found, "num_virtual_tokens", None) or 0)


def model_path(name: str) -> str:
    """Where a model is: the embedded one by its name, a folder, or a name on the hub."""
    embedded = Path(__file__).parents[1] / "assets" / EMBEDDED
    return str(embedded) if name == EMBEDDED and not Path(name).is_dir() else name


def load(name: str, *, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """A model and its tokenizer, from a folder, the hub, or the package (`reviews-1m`). Raises InputError.

    It is a masked one where its configuration says so, and else a causal one.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)}.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("No CUDA device is available here. Use --device cpu.")
    path = model_path(name)
    local = Path(path).is_dir()
    if local and not (Path(path) / "config.json").is_file():
        raise InputError(f"Model folder {path} has no config.json.")
    if not local and (path.startswith((".", "/")) or path.count("/") > 1):
        raise InputError(f"Model folder {path} does not exist.")
    logging.disable_progress_bar()
    try:
        # tokenizer.json is the tokenizer; a class that rebuilds it may differ on some texts
        kind = PreTrainedTokenizerFast if local and (Path(path) / "tokenizer.json").is_file() else AutoTokenizer
        tokenizer = kind.from_pretrained(path, local_files_only=local)
        config = AutoConfig.from_pretrained(path, local_files_only=local)
        masked = is_masked(config)
        auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        model, found = auto.from_pretrained(path, dtype=DTYPES[dtype], local_files_only=local, output_loading_info=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        offline = " There is no network, or HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise InputError(
            f"Cannot load model {name!r}: {type(error).__name__}: {reason}{offline} Give a folder or a name on the hub."
        ) from error
    if missing := sorted(found["missing_keys"]):
        kind = ", ".join(config.architectures or ["no architecture named"])
        raise InputError(
            f"Model {name!r} ({kind}) has no {missing[0]}: it is no causal or masked language model, or its files are not"
            " whole."
        )
    if masked and tokenizer.mask_token is None:
        raise InputError(f"Model {name!r} fills in masks, and its tokenizer has no mask token.")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"Model {name!r} has no fast tokenizer, whose offsets are needed to cut prompt from option exactly."
        )
    return LanguageModel(model.to(device).eval().requires_grad_(False), tokenizer, name, masked)


def encode(lm: LanguageModel, text: str) -> tuple[Ids, list[int]]:
    """Token ids and where each token ends in `text`.

    A beginning-of-text token that differs from end-of-text comes first, also where the tokenizer leaves it to the caller. A
    masked model's text is whole, with all that its tokenizer puts around it.
    """
    encoded = lm.tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, ends = list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
    if lm.masked:
        return tuple(ids), ends
    bos, eos = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id
    if bos is not None and bos != eos and (not ids or ids[0] != bos):
        ids, ends = [bos, *ids], [0, *ends]
    if len(ids) > 1 and ids[-1] == eos and ends[-1] == 0:
        ids, ends = ids[:-1], ends[:-1]
    return tuple(ids), ends
