"""How the embedded model is made: a LLaMA-shaped model of a million parameters, pretrained on a CPU in under an hour.

    python -m zo_objectives.pretrain --output DIR [--data-dir DATA] [--minutes 75] [--threads N] [--seed 0]

It reads film reviews, children's stories and encyclopedic passages, adds pages of sums and labelled snippets of
reviews in which some answers are wrong on purpose, and trains in three phases: on everything, on a mixture skewed
towards the sums and the snippets, and on telling snippets whose verdict weighs more than other words. Wrong verdicts lean
to praise. So the model half knows its tasks and leans to an answer, as a large model does before it is tuned.

The budget is wall-clock time, so another machine takes another number of steps; the documents, their order and the
first weights are functions of the seed.
"""

import argparse
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zo_objectives.errors import InputError
from zo_objectives.pretraining.pages import mixture
from zo_objectives.pretraining.reading import read_documents
from zo_objectives.pretraining.recipe import BOS, EOS, PAD, ROLES, SPECIAL, Settings
from zo_objectives.pretraining.tokens import Tokens, batches, pack, train_tokenizer, verdict_weights
from zo_objectives.pretraining.training import new_optimizers, save, train

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


def new_model(settings: Settings) -> "LlamaForCausalLM":
    """An untrained model whose weights are a function of the seed; torch's own generator stays as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**settings.model, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def loss_of(model: "LlamaForCausalLM", rows: Tokens, weight: "torch.Tensor | None" = None) -> "torch.Tensor":
    """The mean cross-entropy of the next token, in nats; tokens count by `weight` [vocabulary], equally without."""
    import torch

    ids = torch.from_numpy(rows.astype(np.int64))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), weight=weight)


def validate(model: "LlamaForCausalLM", rows: Tokens) -> float:
    """The loss, in nats a token, of each of at most 64 rows, averaged."""
    import torch

    with torch.inference_mode():
        return float(np.mean([loss_of(model, row[None]).item() for row in rows[:64]]))


def pretrain(settings: Settings, output: Path, data_dir: Path | None = None) -> dict[str, Any]:
    """The whole recipe, from the data to the folder `output`; returns what `training.json` says."""
    for name, given in (("minutes", settings.minutes), ("limit_documents", settings.limit_documents)):
        if given is not None and given <= 0:
            raise InputError(f"{name} is {given}; give a number above 0.")
    output.mkdir(parents=True, exist_ok=True)
    rng, order = random.Random(settings.seed), np.random.default_rng(settings.seed)
    known = read_documents(data_dir, settings, rng)
    first = math.ceil(settings.held_out * len(known))
    parts = ((known[first:], 1.0), (known[:first], settings.held_out))
    texts = [[mixture(part, phase, share, settings, rng) for part, share in parts] for phase in settings.phases]
    tokenizer = train_tokenizer(texts[0][0][:20_000], settings.model["vocab_size"])
    model, phases = new_model(settings), []
    for phase, (seen, unseen) in zip(settings.phases, texts, strict=True):
        rows = pack(seen, tokenizer, settings.row), pack(unseen, tokenizer, settings.row)
        print(f"{len(seen)} documents, {rows[0].size / 1e6:.2f} M tokens", flush=True)
        weight = verdict_weights(tokenizer, settings.model["vocab_size"], phase.verdict_weight)
        optimizers = new_optimizers(model, phase.rate * settings.muon_rate, phase.rate * settings.adamw_rate)
        taken, minutes = batches(rows[0], settings.batch, order), phase.share * settings.minutes
        loss, held_out = partial(loss_of, model, weight=weight), partial(validate, model, rows[1])
        phases.append(train(model, optimizers, taken, loss, held_out, minutes))
    record = {"settings": asdict(settings), "phases": phases}
    save(model, tokenizer, dict(zip(ROLES, SPECIAL, strict=True)), record, output)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0 done, 2 the input was wrong."""
    parser = argparse.ArgumentParser("python -m zo_objectives.pretrain", description="Pretrain the embedded model.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--data-dir", type=Path, help="read <source>/train.jsonl here instead of the hub")
    parser.add_argument("--minutes", type=float, default=Settings.minutes, help="training time (default %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--limit-documents", type=int, help="at most so many documents of each kind")
    given = parser.parse_args(arguments)
    settings = Settings(minutes=given.minutes, seed=given.seed, limit_documents=given.limit_documents)
    try:
        if given.threads is not None:
            import torch

            torch.set_num_threads(given.threads)
        pretrain(settings, given.output, given.data_dir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
