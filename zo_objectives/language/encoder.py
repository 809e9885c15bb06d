"""Encoders of sentences, as classifiers: an option is said as far as its text lies near the prompt's.

A model such as all-MiniLM-L6-v2 has no head that says words. Its head here has a row for the text of every option, and

    logit of an option = SCALE * cos(pooled state of the prompt, pooled state of the option's text)

which is classification by the names of the classes (Reimers and Gurevych 2019, section 3: the cosine of pooled states; Yin
et al. 2019: classes by what they are called). To the rest it is a masked language model whose every position has the pooled
state of the whole text, so that trunk, tail, label rows and features are what they are elsewhere.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zo_objectives.errors import InputError

SCALE = 20.0  # nats for a cosine of 1: what sentence-transformers trains with (MultipleNegativesRankingLoss)
POOLING = "1_Pooling"  # as sentence-transformers calls the folder with the pooling's configuration
MODULES = "modules.json"
LIMITS = "sentence_bert_config.json"  # of what it was trained on
LABELS = "labels.safetensors"  # ours: the head's rows, and the texts they are of
Rows = Mapping[str, Tensor]  # an option's text -> its row [d]


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean [B, d] of states [B, T, d] over the tokens that are attended to, [B, T]."""
    weight = mask.to(states.dtype)[..., None]
    return (states * weight).sum(1) / weight.sum(1)


def first(states: Tensor, mask: Tensor) -> Tensor:
    """The state [B, d] of the first token."""
    return states[:, 0]


def last(states: Tensor, mask: Tensor) -> Tensor:
    """The state [B, d] of the last token that is attended to."""
    at = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return states[torch.arange(len(states), device=states.device), at]


def largest(states: Tensor, mask: Tensor) -> Tensor:
    """The largest of every feature, [B, d]."""
    return states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean, "cls": first, "max": largest, "lasttoken": last}
FLAGS = {  # sentence-transformers' names
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


class UnitNorm(nn.Module):
    """States at length 1; no parameters."""

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.normalize(states, dim=-1)


class SentenceEncoder(nn.Module):
    """An encoder of transformers with pooling, a norm, and a head with a row for each of `learnt`, which holds it as it was
    learnt. It reads `longest` tokens at most, where that is fewer than its positions."""

    def __init__(self, encoder: Any, pooling: str = "mean", longest: int | None = None) -> None:
        nn.Module.__init__(self)
        self.longest = longest
        if hasattr(encoder, "pooler"):
            encoder.pooler = None  # BERT's, which sentence embeddings do not pass
        self.encoder, self.pooling, self.learnt = encoder, pooling, dict[str, Tensor]()
        self._numbers = dict[str, int]()
        self.readout = nn.ModuleDict({"norm": UnitNorm(), "head": _linear(torch.zeros(0, encoder.config.hidden_size))})
        self.readout.to(encoder.device, encoder.dtype)

    @property
    def config(self) -> Any:
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        device: torch.device = self.encoder.device
        return device

    def get_output_embeddings(self) -> nn.Module:
        return self.readout["head"]

    def set_output_embeddings(self, head: nn.Module) -> None:
        self.readout["head"] = head

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.encoder.get_input_embeddings()
        return found

    def gradient_checkpointing_enable(self, **given: Any) -> None:
        self.encoder.gradient_checkpointing_enable(**given)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, d]."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return POOLINGS[self.pooling](states, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        """`logits` [B, T, labels], the same at every position."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        everywhere = self.pooled(input_ids, mask)[:, None].expand(-1, input_ids.shape[1], -1)
        return SimpleNamespace(logits=self.readout["head"](self.readout["norm"](everywhere)))

    @torch.no_grad()
    def learn(self, texts: Sequence[str], encode: Callable[[str], Sequence[int]]) -> None:
        """Rows for texts that have none yet, in their order; `encode` gives a text's tokens."""
        rows = {}
        for text in texts:
            if text not in self.learnt:
                ids = torch.tensor([list(encode(text))], device=self.device)
                rows[text] = SCALE * self.readout["norm"](self.pooled(ids, torch.ones_like(ids)))[0]
        self.take(rows)

    def take(self, rows: Rows) -> None:
        """Rows of texts that have none yet, as somebody learnt them."""
        weight: Tensor = self.get_output_embeddings().weight  # type: ignore[assignment]
        new = {text: row.to(weight) for text, row in rows.items() if text not in self.learnt}
        self.learnt |= new
        self._numbers |= {text: number for number, text in enumerate(new, len(self._numbers))}
        self.readout["head"] = _linear(torch.cat([weight, *(row[None] for row in new.values())]))

    def number(self, text: str) -> int:
        """The number of a text's row. Raises InputError for one that was not learnt."""
        if text not in self.learnt:
            raise InputError(f"The head has no row for the option {text!r}; it has rows for {len(self.learnt)} others.")
        return self._numbers[text]

    def save_pretrained(self, output: Path) -> None:
        """A folder that `load` reads, and sentence-transformers too, which has no use for the rows."""
        self.encoder.save_pretrained(output)
        pooling = {"word_embedding_dimension": self.config.hidden_size}
        pooling |= {flag: kind == self.pooling for kind, flag in FLAGS.items()}
        paths = {"": "Transformer", POOLING: "Pooling", "2_Normalize": "Normalize"}
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(paths.items())
        ]
        for path in paths:
            (output / path).mkdir(exist_ok=True)
        (output / POOLING / "config.json").write_text(json.dumps(pooling, indent=1) + "\n", encoding="utf-8")
        (output / MODULES).write_text(json.dumps(modules, indent=1) + "\n", encoding="utf-8")
        if self.longest is not None:
            (output / LIMITS).write_text(json.dumps({"max_seq_length": self.longest}) + "\n", encoding="utf-8")
        weight: Tensor = self.get_output_embeddings().weight  # type: ignore[assignment]
        write_rows(output / LABELS, dict(zip(self.learnt, weight.detach(), strict=True)))


def write_rows(path: Path, rows: Rows) -> None:
    """Rows and their texts as one safetensors file."""
    save_file({"rows": torch.stack(list(rows.values())).cpu()}, path, {"labels": json.dumps(list(rows))})


def read_rows(path: Path) -> dict[str, Tensor]:
    """What `write_rows` wrote."""
    with safe_open(path, "pt") as file:
        return dict(zip(json.loads(file.metadata()["labels"]), file.get_tensor("rows"), strict=True))


def _linear(weight: Tensor) -> nn.Linear:
    """A head with these rows."""
    head = nn.Linear(weight.shape[1], 1, bias=False, device="meta")
    head.weight, head.out_features = nn.Parameter(weight, requires_grad=False), len(weight)
    return head


def _file(path: str, name: str) -> Path | None:
    """A file of a model in a folder or on the hub; None where it has none of that name."""
    from transformers.utils import cached_file

    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def is_encoder(config: Any, path: str) -> bool:
    """Whether a model is an encoder of sentences: of a family that fills in masks, and its architecture a plain model, or
    with sentence-transformers' files, which say how to pool.

    Those name an architecture that was trained on, such as RobertaForMaskedLM, also where the head was left away.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    family = config.model_type
    if family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False):
        return False
    named = getattr(config, "architectures", None)
    if named == [MODEL_MAPPING_NAMES.get(family)]:
        return True
    modules = _file(path, MODULES)
    return modules is not None and (not named or "Pooling" in dict(_modules(modules)))


def load(path: str, **given: Any) -> tuple[SentenceEncoder, dict[str, Any]]:
    """The encoder in a folder or on the hub with its pooling (the mean where no file says), and what transformers tells of
    its loading. Raises InputError for a pooling or a further module that is not known here."""
    from transformers import AutoModel
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # a pooler that a folder lacks is not missed
    try:
        encoder, told = AutoModel.from_pretrained(path, output_loading_info=True, **given)
    finally:
        logging.set_verbosity(before)
    found = SentenceEncoder(encoder, pooling_of(path), longest_of(path))
    told["missing_keys"] = [name for name in told["missing_keys"] if not name.startswith("pooler.")]
    if (kept := _file(path, LABELS)) is not None:
        found.take(read_rows(kept))
    return found, told


def longest_of(path: str) -> int | None:
    """The longest text in tokens that a model's files allow; None where they say nothing."""
    limits = _file(path, LIMITS)
    said = json.loads(limits.read_text(encoding="utf-8")).get("max_seq_length") if limits is not None else None
    return None if said is None else int(said)


def _modules(file: Path) -> list[tuple[str, str]]:
    """The kinds of sentence-transformers' modules and their folders."""
    return [(m["type"].rpartition(".")[2], m["path"]) for m in json.loads(file.read_text(encoding="utf-8"))]


def pooling_of(path: str) -> str:
    """The pooling that a model's files name. Raises InputError for one that is not known here."""
    modules, folder = _file(path, MODULES), POOLING
    if modules is not None:
        said = _modules(modules)
        if strange := [kind for kind, _ in said if kind not in ("Transformer", "Pooling", "Normalize")]:
            raise InputError(f"{modules} names a module {strange[0]}. Known: Transformer, Pooling and Normalize.")
        if "Pooling" not in dict(said):
            raise InputError(f"{modules} names no Pooling, without which the states of a text are not one.")
        folder = str(dict(said)["Pooling"])
    config = _file(path, f"{folder}/config.json")
    return "mean" if config is None else _named_in(config)


def _named_in(config: Path) -> str:
    """The one pooling that a file asks for, by flags or by a name. Raises InputError."""
    said = json.loads(config.read_text(encoding="utf-8"))
    names = {flag: kind for kind, flag in FLAGS.items()}
    chosen: set[str] = {names.get(name, name) for name, on in said.items() if name.startswith("pooling_mode_") and on}
    chosen |= {str(said["pooling_mode"])} if "pooling_mode" in said else set()
    if len(chosen) != 1 or not chosen <= set(POOLINGS):
        raise InputError(
            f"{config} asks for pooling by {' and '.join(sorted(chosen)) or 'nothing'}. Known, one at a time:"
            f" {', '.join(POOLINGS)}."
        )
    return next(iter(chosen))
