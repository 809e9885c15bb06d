"""Causal language models of transformers: loading, tokenising, log-probabilities at sites, greedy generation."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zo_objectives.errors import InputError
from zo_objectives.language.outputs import Example
from zo_objectives.language.sheet import Ids, Sheet, common_prefix, make_sheet

EMBEDDED = "reviews-1m"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MICRO_TOKENS = 16384  # padded tokens that one forward pass may hold


@dataclass(frozen=True)
class CausalLM:
    """A model in evaluation mode with its tokenizer."""

    model: Any
    tokenizer: Any
    name: str

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def context(self) -> int:
        """The longest sequence in tokens; without a limit of its own, a million."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1_000_000)

    @property
    def padding(self) -> int:
        """A token id to fill up with; it is never attended to."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0):
            if token is not None:
                return int(token)
        raise AssertionError


def model_path(name: str) -> str:
    """Where a model is: the embedded one by its name, a folder, or a name on the hub."""
    embedded = Path(__file__).parents[1] / "assets" / EMBEDDED
    return str(embedded) if name == EMBEDDED and not Path(name).is_dir() else name


def load(name: str, *, dtype: str = "float32", device: str = "cpu") -> CausalLM:
    """A causal model and its tokenizer, from a folder, the hub, or the package (`reviews-1m`). Raises InputError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
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
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], local_files_only=local)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        offline = " There is no network, or HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise InputError(
            f"Cannot load model {name!r}: {type(error).__name__}: {reason}{offline} Give a folder or a name on the hub."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"Model {name!r} has no fast tokenizer, whose offsets are needed to cut prompt from option exactly."
        )
    return CausalLM(model.to(device).eval().requires_grad_(False), tokenizer, name)


def encode(lm: CausalLM, text: str) -> tuple[Ids, list[int]]:
    """Token ids and where each token ends in `text`.

    A beginning-of-text token that differs from end-of-text comes first, also where the tokenizer leaves it to the caller.
    """
    encoded = lm.tokenizer(text, return_offsets_mapping=True)
    ids, ends = list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
    bos, eos = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id
    if bos is not None and bos != eos and (not ids or ids[0] != bos):
        ids, ends = [bos, *ids], [0, *ends]
    if len(ids) > 1 and ids[-1] == eos and ends[-1] == 0:
        ids, ends = ids[:-1], ends[:-1]
    return tuple(ids), ends


def _fits(lm: CausalLM, length: int, example: Example, what: str) -> None:
    if length > lm.context:
        raise InputError(
            f"Example {example.id} is {length} tokens long with its {what}, and {lm.name} takes {lm.context}:"
            f" {example.prompt[:60]!r}..."
            " Shorten the prompt, take a model with a longer context, or leave such examples out: --set long_prompts=drop."
        )


def _sequences(lm: CausalLM, example: Example, continuations: Sequence[str]) -> tuple[list[Ids], int]:
    """Each continuation's whole token sequence and the number of leading tokens it is conditioned on."""
    encoded = [encode(lm, example.prompt + c) for c in continuations]
    full = [ids for ids, _ in encoded]
    if len(full) == 1:
        ids, ends = encoded[0]
        start = next((i for i, end in enumerate(ends) if end > len(example.prompt)), len(ids) - 1)
    else:
        start = common_prefix(full)
    for i, ids in enumerate(full):
        _fits(lm, len(ids), example, "option" if example.options else "target")
        if (j := full.index(ids)) != i:
            raise InputError(
                f"Example {example.id}: options {continuations[j]!r} and {continuations[i]!r} are the same tokens"
                f" for {lm.name}."
                " Choose other words in doc_to_choice."
            )
    if start == 0:
        raise InputError(f"Example {example.id}: nothing comes before the option. Give the task a prompt in doc_to_text.")
    return full, start


def choice_sheet(lm: CausalLM, examples: Sequence[Example]) -> Sheet:
    """The sheet of all options. Raises InputError for what cannot be told apart or does not fit."""
    return make_sheet([_sequences(lm, e, e.options) for e in examples])


def target_sheet(lm: CausalLM, examples: Sequence[Example], delimiter: str, end: str) -> Sheet:
    """The sheet of each example's first target between `delimiter` and `end`, as teacher forcing reads it."""
    return make_sheet([_sequences(lm, e, (delimiter + e.targets[0] + end,)) for e in examples])


def prompt_ids(lm: CausalLM, example: Example, new_tokens: int) -> Ids:
    """The prompt's tokens, with room for what is generated."""
    ids, _ = encode(lm, example.prompt)
    _fits(lm, len(ids) + new_tokens, example, f"{new_tokens} new tokens")
    return ids


@dataclass(frozen=True)
class Padded:
    """Sequences of one forward pass: ids and mask [B, T], padded on one side, and which sequences they are."""

    rows: tuple[int, ...]
    ids: Tensor
    mask: Tensor


def pad(sequences: Sequence[Ids], rows: Sequence[int], fill: int, device: torch.device, *, left: bool = False) -> Padded:
    width = max(len(sequences[r]) for r in rows)
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, r in enumerate(rows):
        span = slice(width - len(sequences[r]), width) if left else slice(0, len(sequences[r]))
        ids[i, span] = torch.tensor(sequences[r])
        mask[i, span] = 1
    return Padded(tuple(rows), ids.to(device), mask.to(device))


def repeated(batch: Padded, members: int) -> Padded:
    """The same sequences once for each of several members, one member's after another's."""
    return Padded(batch.rows * members, batch.ids.repeat(members, 1), batch.mask.repeat(members, 1))


def micro_batches(sequences: Sequence[Ids], tokens: int = MICRO_TOKENS) -> list[list[int]]:
    """Sequence numbers in groups of similar length, each at most `tokens` padded tokens (or one sequence)."""
    groups: list[list[int]] = []
    for r in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        length, group = len(sequences[r]), groups[-1] if groups else []
        wasteful = len(group) >= 32 and length > 1.25 * len(sequences[group[0]])
        if group and not wasteful and (len(group) + 1) * length <= tokens:
            group.append(r)
        else:
            groups.append([r])
    return groups


@contextmanager
def only_sites(head: nn.Module, rows: Tensor, columns: Tensor, members: int = 1) -> Iterator[None]:
    """While open, the output head sees states [members, sites, d] instead of [members * B, T, d].

    Logits nobody reads are not made.
    """

    def gather(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = inputs[0].view(members, -1, *inputs[0].shape[1:])
        return (states[:, rows, columns], *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Pass:
    """One forward pass over part of a sheet: its padded sequences and the sites read from them."""

    batch: Padded
    rows: Tensor  # [sites]: row of the batch
    columns: Tensor  # [sites]: position
    sites: Tensor  # [sites]: number in the sheet


def plan(lm: CausalLM, sheet: Sheet, tokens: int = MICRO_TOKENS) -> list[Pass]:
    """The forward passes that a sheet takes, similar lengths together. Right-padded, so positions need no shift."""
    passes = []
    for group in micro_batches(sheet.sequences, tokens):
        place = np.full(len(sheet.sequences), -1)
        place[group] = np.arange(len(group))
        sites = np.flatnonzero(place[sheet.site_sequence] >= 0)
        rows, columns = place[sheet.site_sequence[sites]], sheet.site_position[sites]
        rows_columns_sites = (torch.from_numpy(x).to(lm.device) for x in (rows, columns, sites))
        passes.append(Pass(pad(sheet.sequences, group, lm.padding, lm.device), *rows_columns_sites))
    return passes


def site_logits(lm: CausalLM, work: Pass) -> Tensor:
    """Logits [sites of the pass, vocabulary], float32, differentiable where gradients are on."""
    return member_logits(lm, work, 1)[0]


def member_logits(lm: CausalLM, work: Pass, members: int) -> Tensor:
    """Logits [members, sites of the pass, vocabulary] of a pass over its sequences once for each member, float32."""
    batch = repeated(work.batch, members)
    with only_sites(lm.model.get_output_embeddings(), work.rows, work.columns, members):
        logits: Tensor = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return logits.float()


def sheet_logits(lm: CausalLM, sheet: Sheet, passes: Sequence[Pass]) -> Tensor:
    """Logits [sites of the sheet, vocabulary] from all its passes; only the columns that are read, for a closed sheet."""
    parts = [site_logits(lm, work) for work in passes]
    if sheet.closed:
        columns = torch.from_numpy(sheet.columns).to(lm.device)
        parts = [part[:, columns] for part in parts]
    return torch.cat(parts)[torch.argsort(torch.cat([work.sites for work in passes]))]


def stop_tokens(lm: CausalLM, until: Sequence[str]) -> list[int]:
    """Token ids that end a generation: end-of-text and every token that contains a stop string of one character."""
    ends = {lm.tokenizer.eos_token_id} - {None}
    single = [u for u in until if len(u) == 1]
    if single:
        texts = lm.tokenizer.batch_decode([[i] for i in range(len(lm.tokenizer))])
        ends |= {i for i, text in enumerate(texts) if any(u in text for u in single)}
    return sorted(ends)


def text_of(lm: CausalLM, tokens: Sequence[int], until: Sequence[str]) -> str:
    """The text of generated tokens, up to the first stop string."""
    text: str = lm.tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min((at for u in until if (at := text.find(u)) >= 0), default=len(text))]


@contextmanager
def _no_settings(model: Any) -> Iterator[None]:
    """While open, `generate` fills in none of the model's own settings, such as a repetition penalty: greedy is greedy."""
    own, model.generation_config = model.generation_config, type(model.generation_config)()
    try:
        yield
    finally:
        model.generation_config = own


def generate(lm: CausalLM, prompts: Sequence[Ids], *, new_tokens: int, stops: Sequence[int]) -> list[list[int]]:
    """Greedy continuations, at most `new_tokens` tokens each, a stop token included where one came."""
    result: list[list[int]] = [[] for _ in prompts]
    for group in micro_batches(prompts):
        batch = pad(prompts, group, lm.padding, lm.device, left=True)
        for r, tokens in zip(group, continuations(lm, batch, new_tokens=new_tokens, stops=stops), strict=True):
            result[r] = tokens
    return result


def continuations(lm: CausalLM, batch: Padded, *, new_tokens: int, stops: Sequence[int]) -> list[list[int]]:
    """Greedy continuations of the rows of a left-padded batch, as `generate` gives them."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        pad_token_id=lm.padding,
        eos_token_id=list(stops) or None,
        use_cache=True,
    )
    with _no_settings(lm.model):
        out = lm.model.generate(input_ids=batch.ids, attention_mask=batch.mask, generation_config=config)
    said: list[list[int]] = out[:, batch.ids.shape[1] :].tolist()
    stop = set(stops)
    return [tokens[: next((i + 1 for i, token in enumerate(tokens) if token in stop), len(tokens))] for tokens in said]
