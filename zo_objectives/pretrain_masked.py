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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zo_objectives import pretrain
from zo_objectives.errors import InputError
from zo_objectives.pretrain import Document, Tokens

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

ROLES = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
CLS, PAD, SEP, UNK, MASK = range(5)  # their ids; a larger id is text
NAMES = {"roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "bert": ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")}
HEADS = {"roberta": "lm_head", "bert": "cls"}
MODEL = {  # names that the two configurations share
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.07,
}
ENDING = 3  # a verdict is among so many last tokens of a row
VALIDATED = 400  # held-out rows

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Settings:
    """All that decides what a run does besides the corpora and the machine; `training.json` records it."""

    family: str = "roberta"
    minutes: float = 30.0  # of CPU time: a busy machine takes longer, not fewer steps
    seed: int = 0
    characters: int = 8_000_000  # at most so many of each file
    snippets: int = 160_000
    spaced: float = 0.5  # share of the paragraphs of reviews whose snippets are lower-cased, with spaces around punctuation
    wrong_labels: tuple[float, float] = (0.3, 0.05)  # shares of bad and of good snippets that get the other verdict
    held_out: float = 0.01  # share of the paragraphs kept for the validation loss
    vocabulary: int = 4_096
    model: Mapping[str, Any] = field(default_factory=MODEL.copy)
    row: int = 256  # tokens in a row, at most
    batch: int = 2_048  # tokens in a step, at most
    masked: float = 0.2  # share of the words
    masked_verdicts: float = 0.8  # share of the verdicts at the ends of snippets
    verdict_weight: float = 3.0  # how much a verdict word counts in the loss against any other token
    muon_rate: float = 0.008
    adamw_rate: float = 3e-3


def paragraphs(text: str) -> list[str]:
    """The lines of `text` that have four words or more, tidy."""
    return [" ".join(line.split()) for line in re.split(r"<br />|\n", text) if len(line.split()) >= 4]


def read_documents(folders: Sequence[Path], settings: Settings, rng: random.Random) -> list[Document]:
    """Distinct paragraphs of the labelled reviews and, drawn, of each file, in random order; names begin with the source."""
    labelled = next((f for f in folders if (f / "imdb" / "train.jsonl").is_file()), folders[0])
    rows = pretrain.source_rows("imdb", labelled)
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
    odds = pretrain.log_odds(reviews := [d for d in documents if d.source == "imdb"])
    styled = []
    for r in reviews:
        praise = sum(odds.get(word, 0.0) for word in pretrain.words_of(r.text))
        text = spaced(r.text) if rng.random() < settings.spaced else r.text
        styled.append(Document("imdb", text, r.label if r.label in (0, 1) else int(praise > 0)))
    return pretrain.snippets(styled, settings.snippets, settings.wrong_labels, rng, telling=True)


def new_tokenizer(texts: Sequence[str], settings: Settings) -> tuple["Tokenizer", dict[str, Any]]:
    """The embedded model's BPE with other special tokens, and their roles; a mask takes the space before it along."""
    from tokenizers import AddedToken

    names = NAMES[settings.family]
    special: list[Any] = [*names[:MASK], AddedToken(names[MASK], lstrip=True, special=True)]
    frame, roles = (f"{names[CLS]} $A {names[SEP]}", f" $B {names[SEP]}"), dict(zip(ROLES, special, strict=True))
    tokenizer = pretrain.train_tokenizer(texts, settings.vocabulary, special, frame[0], "".join(frame))
    return tokenizer, roles | {"bos_token": names[CLS], "eos_token": names[SEP], "model_max_length": settings.row}


def new_rows(texts: Sequence[str], tokenizer: "Tokenizer", row: int) -> list[list[int]]:
    """The texts cut into rows of at most `row` tokens, each row between the tokens of its beginning and its end."""
    chunks = (texts[start : start + 1_000] for start in range(0, len(texts), 1_000))
    encoded = (e.ids for chunk in chunks for e in tokenizer.encode_batch(chunk, add_special_tokens=False))
    return [[CLS, *ids[start : start + row - 2], SEP] for ids in encoded for start in range(0, len(ids), row - 2)]


def batches(rows: Sequence[Sequence[int]], size: int, rng: np.random.Generator) -> Iterator[Tokens]:
    """Every row once, beside rows of its length, in padded batches of at most `size` tokens; the batches in random order."""
    lengths, order = np.array([len(row) for row in rows]), rng.permutation(len(rows))
    groups: list[list[int]] = [[]]
    for i in order[np.argsort(lengths[order], kind="stable")]:
        if groups[-1] and (len(groups[-1]) + 1) * lengths[i] > size:
            groups.append([])
        groups[-1].append(i)
    for g in rng.permutation(len(groups)):
        out = np.full((len(groups[g]), lengths[groups[g][-1]]), PAD, dtype=np.uint16)
        for line, i in zip(out, groups[g], strict=True):
            line[: lengths[i]] = rows[i]
        yield out


def begins_word(tokenizer: "Tokenizer") -> Flags:
    """Of each token whether it begins a word: all but those that begin with a letter, with no space before."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return np.array([i > MASK and (t[0] in "ĠĊ" or not t[0].isalpha()) for t, i in tokens])


def choose(rows: Tokens, begins: Flags, verdicts: Flags, settings: Settings, rng: np.random.Generator) -> Flags:
    """What to mask: whole words, `masked` of them, and `masked_verdicts` of the verdicts that end a row."""
    drawn = np.take_along_axis(rng.random(rows.shape), np.cumsum(begins[rows], axis=1), axis=1)
    last = np.arange(rows.shape[1]) >= (rows != PAD).sum(axis=1, keepdims=True) - ENDING
    rate = np.where(verdicts[rows] & last, settings.masked_verdicts, settings.masked)
    return (drawn < rate) & (rows > MASK)


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
    model, weight = new_model(settings), pretrain.verdict_weights(tokenizer, settings.vocabulary, settings.verdict_weight)
    mask = partial(choose, begins=begins_word(tokenizer), verdicts=(weight > 1).numpy(), settings=settings, rng=order)
    kept = [(rows, mask(rows)) for rows in batches(unseen[:VALIDATED], settings.batch, order)]

    def held_out_loss() -> float:
        with torch.inference_mode():
            return float(np.average([loss_of(model, *k).item() for k in kept], weights=[k[1].sum() for k in kept]))

    def step_loss(rows: Tokens) -> "torch.Tensor":
        return loss_of(model, rows, mask(rows), weight)

    optimizers = pretrain.new_optimizers(model, settings.muon_rate, settings.adamw_rate)
    taken = chain.from_iterable(batches(seen, settings.batch, order) for _ in count())
    done = pretrain.train(model, optimizers, taken, step_loss, held_out_loss, settings.minutes, time.process_time)
    counts = {"parameters": model.num_parameters(), "paragraphs": len(texts), "snippets": len(labelled)}
    record = {"settings": asdict(settings), **counts, **done}
    pretrain.save(model, tokenizer, roles, record, output)
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
