"""How a small masked model is made: shaped as RoBERTa or BERT, 1.3 million parameters, pretrained on one CPU thread.

    python -m zo_objectives.pretrain_masked --output DIR --corpora DIR [DIR ...] [--minutes 30] [--threads 1] [--seed 0]
        [--family roberta|bert]

The folders hold plain text (*.txt, *.txt.gz, a paragraph a line; *_valid* is left alone) and, one of them, labelled
film reviews (imdb/train.jsonl). Paragraphs and telling snippets with verdicts, some wrong on purpose, are read in rows
of their own; whole words are masked, and of a snippet mostly the verdict, so that "{sentence} It was <mask>." works.
"""

import argparse
import gzip
import math
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zo_objectives.errors import InputError
from zo_objectives.pretraining import pages
from zo_objectives.pretraining.masked_recipe import CLS, HEADS, MASK, NAMES, PAD, ROLES, SEP, Settings
from zo_objectives.pretraining.masked_rows import Flags, batches, begins_word, choose, new_rows
from zo_objectives.pretraining.pages import log_odds, words_of
from zo_objectives.pretraining.reading import Document, source_rows
from zo_objectives.pretraining.tokens import Tokens, train_tokenizer, verdict_weights
from zo_objectives.pretraining.training import new_optimizers, save, train

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

VALIDATED = 400  # held-out rows


def paragraphs(text: str) -> list[str]:
    """The lines of `text` that have four words or more, tidy."""
    return [" ".join(line.split()) for line in re.split(r"<br />|\n", text) if len(line.split()) >= 4]


def read_documents(folders: Sequence[Path], settings: Settings, rng: random.Random) -> list[Document]:
    """Distinct paragraphs of the labelled reviews and, drawn, of each file, in random order; names begin with the source."""
    labelled = next((f for f in folders if (f / "imdb" / "train.jsonl").is_file()), folders[0])
    rows = source_rows("imdb", labelled)
    found = {text: Document("imdb", text, int(row["label"])) for row in rows for text in paragraphs(row["text"])}
    for path in sorted(p for folder in folders for p in folder.glob("*.txt*") if "_valid" not in p.name):
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            texts = paragraphs(file.read())
        rng.shuffle(texts)
        ends = np.cumsum([len(text) for text in texts])
        for text in texts[: int(np.searchsorted(ends, settings.characters, side="right"))]:
            found.setdefault(text, Document(re.split(r"[_.]", path.name)[0], text))
    return rng.sample([*found.values()], len(found))


def spaced(text: str) -> str:
    """`text` lower-cased and parted as treebanks part it: "it is n't bad , is it ?"."""
    return " ".join(re.sub(r"(n't\b|'\w+\b|[^\w\s'])", r" \1 ", text.lower()).split())


def snippets(documents: Sequence[Document], settings: Settings, rng: random.Random) -> list[str]:
    """Telling sentences of reviews with verdicts, many of them spaced; where a label lacks, the words decide."""
    odds = log_odds(reviews := [d for d in documents if d.source == "imdb"])
    styled = []
    for r in reviews:
        praise = sum(odds.get(word, 0.0) for word in words_of(r.text))
        text = spaced(r.text) if rng.random() < settings.spaced else r.text
        styled.append(Document("imdb", text, r.label if r.label in (0, 1) else int(praise > 0)))
    return pages.snippets(styled, settings.snippets, settings.wrong_labels, rng, telling=True)


def new_tokenizer(texts: Sequence[str], settings: Settings) -> tuple["Tokenizer", dict[str, Any]]:
    """The embedded model's BPE with other special tokens, and their roles; a mask takes the space before it along."""
    from tokenizers import AddedToken

    names = NAMES[settings.family]
    special: list[Any] = [*names[:MASK], AddedToken(names[MASK], lstrip=True, special=True)]
    frame, roles = (f"{names[CLS]} $A {names[SEP]}", f" $B {names[SEP]}"), dict(zip(ROLES, special, strict=True))
    tokenizer = train_tokenizer(texts, settings.vocabulary, special, frame[0], "".join(frame))
    return tokenizer, roles | {"bos_token": names[CLS], "eos_token": names[SEP], "model_max_length": settings.row}


def new_model(settings: Settings) -> "PreTrainedModel":
    """An untrained model whose weights are a function of the seed; torch's own generator stays as it was.

    Positions are fixed sinusoids and queries equal keys, so that heads begin by looking around them.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    sizes = {
        "vocab_size": settings.vocabulary,
        "max_position_embeddings": settings.row + PAD + 1,
    }  # RoBERTa begins at PAD + 1
    rest = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "tie_word_embeddings": True}
    ids = {"pad_token_id": PAD, "bos_token_id": CLS, "eos_token_id": SEP}
    config = AutoConfig.for_model(settings.family, **settings.model, **sizes, **rest, **ids)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(settings.seed)
        model = AutoModelForMaskedLM.from_config(config)
        positions = model.base_model.embeddings.position_embeddings.weight.requires_grad_(False)
        angles = torch.arange(len(positions))[:, None] / torch.logspace(-0.3, 1.2, positions.shape[1] // 2)
        positions.copy_(0.15 * torch.cat([angles.sin(), angles.cos()], dim=1))
        for layer in model.base_model.encoder.layer:
            attention = layer.attention.self
            attention.key.weight.copy_(torch.nn.init.orthogonal_(attention.query.weight, gain=1.4))
    return model


def loss_of(model: "PreTrainedModel", rows: Tokens, chosen: Flags, weight: "torch.Tensor | None" = None) -> "torch.Tensor":
    """The mean cross-entropy of the masked tokens, in nats; tokens count by `weight` [vocabulary], equally without."""
    import torch

    ids, hidden = torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(chosen)
    inputs, mask = ids.masked_fill(hidden, MASK), (ids != PAD).long()
    states = model.base_model(input_ids=inputs, attention_mask=mask).last_hidden_state[hidden]
    logits = model.get_submodule(HEADS[model.config.model_type])(states)
    return torch.nn.functional.cross_entropy(logits, ids[hidden], weight=weight)


def pretrain_masked(settings: Settings, output: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """The whole recipe, from the corpora to the folder `output`; returns what `training.json` says."""
    import torch

    if settings.minutes <= 0:
        raise InputError(f"minutes is {settings.minutes}; give a number above 0.")
    output.mkdir(parents=True, exist_ok=True)
    rng, order = random.Random(settings.seed), np.random.default_rng(settings.seed)
    known = read_documents(folders, settings, rng)
    first = math.ceil(settings.held_out * len(known))
    held_out, texts = [d.text for d in known[:first]], [d.text for d in known[first:]]
    labelled = snippets(known[first:], settings, rng)
    tokenizer, roles = new_tokenizer(texts[:40_000] + labelled[:20_000], settings)
    seen, unseen = (new_rows(part, tokenizer, settings.row) for part in (texts + labelled, held_out))
    print(f"{len(texts)} paragraphs, {len(labelled)} snippets, {sum(map(len, seen)) / 1e6:.2f} M tokens", flush=True)
    model, weight = new_model(settings), verdict_weights(tokenizer, settings.vocabulary, settings.verdict_weight)
    mask = partial(choose, begins=begins_word(tokenizer), verdicts=(weight > 1).numpy(), settings=settings, rng=order)
    kept = [(rows, mask(rows)) for rows in batches(unseen[:VALIDATED], settings.batch, order)]

    def held_out_loss() -> float:
        with torch.inference_mode():
            return float(np.average([loss_of(model, *k).item() for k in kept], weights=[k[1].sum() for k in kept]))

    def step_loss(rows: Tokens) -> "torch.Tensor":
        return loss_of(model, rows, mask(rows), weight)

    optimizers = new_optimizers(model, settings.muon_rate, settings.adamw_rate)
    taken = chain.from_iterable(batches(seen, settings.batch, order) for _ in count())
    done = train(model, optimizers, taken, step_loss, held_out_loss, settings.minutes, time.process_time)
    counts = {"parameters": model.num_parameters(), "paragraphs": len(texts), "snippets": len(labelled)}
    record = {"settings": asdict(settings), **counts, **done}
    save(model, tokenizer, roles, record, output)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0 done, 2 the input was wrong."""
    parser = argparse.ArgumentParser("python -m zo_objectives.pretrain_masked", description="Pretrain a small masked model.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--corpora", type=Path, nargs="+", required=True, help="folders of *.txt[.gz] and imdb/train.jsonl")
    parser.add_argument("--minutes", type=float, default=Settings.minutes, help="CPU time of training (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--family", choices=NAMES, default=Settings.family)
    given = parser.parse_args(arguments)
    settings = Settings(family=given.family, minutes=given.minutes, seed=given.seed)
    try:
        import torch

        torch.set_num_threads(given.threads)
        pretrain_masked(settings, given.output, given.corpora)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
