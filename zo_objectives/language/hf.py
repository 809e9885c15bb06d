"""Models of transformers, causal, masked or encoders: loading and tokenising."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zo_objectives.errors import InputError
from zo_objectives.language import encoder
from zo_objectives.language.encoder import Rows
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


class Form(Enum):
    """What a model does with a text."""

    CAUSAL = "says what comes next"
    MASKED = "fills in masks"
    ENCODER = "encodes sentences"


@dataclass(frozen=True)
class LanguageModel:
    """A model in evaluation mode with its tokenizer."""

    model: Any
    tokenizer: Any
    name: str
    form: Form = Form.CAUSAL

    @property
    def masked(self) -> bool:
        """Whether it fills in a mask."""
        return self.form is Form.MASKED

    @property
    def bidirectional(self) -> bool:
        """Whether every position sees the whole text, so that nothing can be continued."""
        return self.form is not Form.CAUSAL

    def check_causal(self, what: str) -> None:
        """Raises InputError that `what` cannot be done, for a model that continues nothing."""
        if self.bidirectional:
            raise InputError(f"{self.name} {self.form.value}: it cannot {what}. Take a causal model.")

    @property
    def labels(self) -> Rows:
        """An encoder's rows for the texts of options, as they were learnt; none in other models, whose heads have tokens."""
        return dict(self.model.learnt) if self.form is Form.ENCODER else {}

    def learn(self, options: Iterable[str]) -> None:
        """Gives an encoder's head rows for options, by their texts in alphabetical order; other models need none."""
        if self.form is Form.ENCODER:
            self.model.learn(sorted({label_of(option) for option in options}), self._option)

    def _option(self, text: str) -> Ids:
        """An option's tokens, for an encoder. Raises InputError where it does not fit."""
        ids, _ = encode(self, text)
        if len(ids) > self.context:
            raise InputError(f"The option {text[:60]!r}... is {len(ids)} tokens long, and {self.name} takes {self.context}.")
        return ids

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
        return {} if self.bidirectional or virtual_tokens(self.model) else {"use_cache": False}

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
        whole = positions - first - virtual_tokens(self.model)
        return whole if self.form is not Form.ENCODER else min(whole, self.model.longest or whole)

    @property
    def padding(self) -> int:
        """A token id to fill up with; it is never attended to."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0):
            if token is not None:
                return int(token)
        raise AssertionError


def label_of(option: str) -> str:
    """The text that an encoder knows an option by."""
    return option.strip()


def form_of(config: Any, path: str) -> Form:
    """What a model does, by its configuration and, for encoders, the files in its folder."""
    if encoder.is_encoder(config, path):
        return Form.ENCODER
    named = " ".join(getattr(config, "architectures", None) or ())
    return Form.MASKED if "MaskedLM" in named or "BertForPreTraining" in named else Form.CAUSAL


def form_at(name: str) -> Form:
    """What a model does, by its name or folder; its weights are not loaded. Raises InputError."""
    from transformers import AutoConfig

    path = model_path(name)
    try:
        return form_of(AutoConfig.from_pretrained(path, local_files_only=Path(path).is_dir()), path)
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


def load(name: str, *, dtype: str = "float32", device: str = "cpu", labels: Rows | None = None) -> LanguageModel:
    """A model and its tokenizer, from a folder, the hub, or the package (`reviews-1m`). Raises InputError.

    It is a masked one or an encoder where its configuration says so, and else a causal one; an encoder takes `labels`.
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
        form, how = form_of(config, path), {"dtype": DTYPES[dtype], "local_files_only": local}
        if form is Form.ENCODER:
            model, found = encoder.load(path, **how)
        else:
            auto = AutoModelForMaskedLM if form is Form.MASKED else AutoModelForCausalLM
            model, found = auto.from_pretrained(path, output_loading_info=True, **how)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        offline = " There is no network, or HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise InputError(
            f"Cannot load model {name!r}: {type(error).__name__}: {reason}{offline} Give a folder or a name on the hub."
        ) from error
    if missing := sorted(found["missing_keys"]):
        kind = ", ".join(config.architectures or ["no architecture named"])
        raise InputError(
            f"Model {name!r} ({kind}) has no {missing[0]}: it is no causal or masked language model and no encoder, or its"
            " files are not whole."
        )
    if form is Form.MASKED and tokenizer.mask_token is None:
        raise InputError(f"Model {name!r} fills in masks, and its tokenizer has no mask token.")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"Model {name!r} has no fast tokenizer, whose offsets are needed to cut prompt from option exactly."
        )
    lm = LanguageModel(model.to(device).eval().requires_grad_(False), tokenizer, name, form)
    if labels:
        lm.model.take(labels)
    return lm


def encode(lm: LanguageModel, text: str) -> tuple[Ids, list[int]]:
    """Token ids and where each token ends in `text`.

    A beginning-of-text token that differs from end-of-text comes first, also where the tokenizer leaves it to the caller.
    The text of a masked model or an encoder is whole, with all that its tokenizer puts around it.
    """
    encoded = lm.tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, ends = list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
    if lm.bidirectional:
        return tuple(ids), ends
    bos, eos = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id
    if bos is not None and bos != eos and (not ids or ids[0] != bos):
        ids, ends = [bos, *ids], [0, *ends]
    if len(ids) > 1 and ids[-1] == eos and ends[-1] == 0:
        ids, ends = ids[:-1], ends[:-1]
    return tuple(ids), ends
