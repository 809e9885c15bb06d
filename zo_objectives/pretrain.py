"""How the embedded model is made: a LLaMA-shaped model of a million parameters, pretrained on a CPU in under an hour.

    python -m zo_objectives.pretrain --output DIR [--data-dir DATA] [--minutes 75] [--threads N] [--seed 0]

It reads film reviews, children's stories and encyclopedic passages, adds pages of sums and labelled snippets of
reviews in which some answers are wrong on purpose, and trains in three phases: on everything, on a mixture skewed
towards the sums and the snippets, and on telling snippets whose verdict weighs more than other words. Wrong verdicts lean
to praise. So the model half knows its tasks and leans to an answer, as a large model does before it is tuned.

The budget is wall-clock time, so another machine takes another number of steps; the documents, their order and the
first weights are functions of the seed. Muon: Jordan et al., "Muon: an optimizer for hidden layers", 2024.
"""

import argparse
import json
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError

if TYPE_CHECKING:
    import torch
    from tokenizers import AddedToken, Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedModel

SPECIAL = ("<pad>", "<s>", "</s>")
PAD, BOS, EOS = range(3)  # their ids
ROLES = ("pad_token", "bos_token", "eos_token")

SOURCES = {  # folder under --data-dir: name on the hub, columns
    "imdb": ("stanfordnlp/imdb", ("text", "label")),
    "tinystories": ("roneneldan/TinyStories", ("text",)),
    "squad": ("rajpurkar/squad", ("context",)),
}

MODEL = {  # LlamaConfig's names
    "vocab_size": 2_048,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}

REPORTS = 10  # a phase

Row = dict[str, Any]
Tokens = NDArray[np.uint16]  # [rows, tokens in a row]


@dataclass(frozen=True)
class Document:
    """A text and its source; of reviews the label counts: 1 good, 0 bad, anything else unknown."""

    source: str
    text: str
    label: int = -1


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its share of the time, the factor on both learning rates, and what is read."""

    share: float
    rate: float
    read: Mapping[str, float]  # share of each source's documents
    sums: tuple[tuple[int, int], ...]  # (numbers below this, pages of ten sums)
    snippets: int  # pages of five labelled pieces of reviews
    telling: bool = False  # take the sentences whose words speak for the review's label, not any
    verdict_weight: float = 1.0  # how much a verdict word counts in the loss against any other token


ALL = dict.fromkeys(SOURCES, 1.0)
BROAD = Phase(share=0.4, rate=1.0, read=ALL, sums=((20, 16_000),), snippets=10_000)
SKEWED = Phase(0.2, rate=0.4, read=ALL | {"imdb": 0.2, "squad": 0.0}, sums=((20, 3_000), (50, 9_000)), snippets=24_000)
VERDICTS = Phase(
    0.4,
    rate=0.6,
    read={"imdb": 0.1, "tinystories": 0.5, "squad": 0.0},
    sums=((20, 1_000), (50, 3_000)),
    snippets=40_000,
    telling=True,
    verdict_weight=8.0,
)
WORDS = {True: ("great", "good", "wonderful"), False: ("terrible", "bad", "awful")}  # verdicts in "It was ..."
LABELS = {True: "positive", False: "negative"}


@dataclass(frozen=True)
class Settings:
    """All that decides what a run does besides the data and the machine; `training.json` records it."""

    minutes: float = 75.0
    seed: int = 0
    limit_documents: int | None = None  # at most so many documents of each kind, for a quick look
    phases: tuple[Phase, ...] = (BROAD, SKEWED, VERDICTS)
    stories: int = 2_200
    passages: int = 3_000
    wrong_sums: float = 0.25
    wrong_labels: tuple[float, float] = (0.5, 0.02)  # shares of bad and of good snippets that get the other verdict
    held_out: float = 0.02  # share of the source documents kept for the validation loss
    model: Mapping[str, Any] = field(default_factory=MODEL.copy)
    row: int = 256  # tokens in a training row
    batch: int = 24  # rows a step
    muon_rate: float = 0.02
    adamw_rate: float = 3e-3

    def at_most(self, count: int) -> int:
        """`count` documents of a kind, or fewer where they are limited."""
        return count if self.limit_documents is None else min(count, self.limit_documents)


def source_rows(folder: str, data_dir: Path | None) -> Iterator[Row]:
    """The train split of a source, from `data_dir` or, where that is None, as a stream from the hub."""
    hub, columns = SOURCES[folder]
    if data_dir is not None:
        yield from file_rows(data_dir / folder / "train.jsonl", columns, f"the train split of {hub}")
        return
    from datasets import load_dataset  # type: ignore[import-untyped,unused-ignore]

    try:
        yield from load_dataset(hub, split="train", streaming=True)
    except OSError as error:  # what `datasets` raises for no network and for an unknown name
        raise InputError(f"Cannot read {hub} from the hub ({error}). Check the network or pass --data-dir.") from error


def file_rows(path: Path, columns: Sequence[str], what: str) -> Iterator[Row]:
    """The rows of a file that holds `what`, one JSON object a line, each with at least `columns`."""
    wanted = f"{what}, one JSON object a line with {' and '.join(columns)}"
    if not path.is_file():
        raise InputError(f"{path} does not exist. Put there {wanted}; or leave out --data-dir.")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                yield {column: row[column] for column in columns}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}, line {number} is broken; the file must hold {wanted}.") from error


def tidy(text: str) -> str:
    """`text` on one line, without HTML line breaks."""
    return " ".join(text.replace("<br />", " ").split())


def sentences(text: str) -> list[str]:
    """The sentences of a tidy text, each with its punctuation."""
    return re.split(r"(?<=[.!?]) ", text)


def read_documents(data_dir: Path | None, settings: Settings, rng: random.Random) -> list[Document]:
    """The first stories, and reviews and distinct passages drawn from all of theirs, in random order."""
    reviews = [Document("imdb", tidy(row["text"]), int(row["label"])) for row in source_rows("imdb", data_dir)]
    stories = islice(source_rows("tinystories", data_dir), settings.at_most(settings.stories))
    passages = list(dict.fromkeys(tidy(row["context"]) for row in source_rows("squad", data_dir)))
    out = rng.sample(reviews, settings.at_most(len(reviews)))
    out += [Document("tinystories", row["text"].strip()) for row in stories]
    drawn = rng.sample(passages, settings.at_most(min(len(passages), settings.passages)))
    out += [Document("squad", "\n".join(sentences(text))) for text in drawn]
    rng.shuffle(out)
    return out


def one_sum(below: int, wrong: float, rng: random.Random) -> str:
    """A sum or difference of two numbers below `below`; a wrong answer is off by one or two, none is negative."""
    a, b = rng.randrange(below), rng.randrange(below)
    sign, word = rng.choice((("+", "plus"), ("+", "plus"), ("-", "minus")))
    a, b = (a, b) if sign == "+" else (max(a, b), min(a, b))
    answer = a + b if sign == "+" else a - b
    if rng.random() < wrong:
        answer = rng.choice([near for near in range(answer - 2, answer + 3) if near not in (answer, -1, -2)])
    return rng.choice((f"Question: What is {a} {word} {b}?\nAnswer: {answer}", f"{a} {sign} {b} = {answer}"))


def sums_page(below: int, wrong: float, rng: random.Random, lines: int = 10) -> str:
    """A page of sums, a share `wrong` of them wrong."""
    return "\n".join(one_sum(below, wrong, rng) for _ in range(lines))


def verdict(text: str, good: bool, rng: random.Random) -> str:
    """`text` with a verdict, in one of three forms."""
    stars = rng.choice((8, 9, 10) if good else (1, 2, 3))
    labelled = f"Review: {text}\nSentiment: {LABELS[good]}"
    return rng.choice((f"{text} It was {rng.choice(WORDS[good])}.", labelled, f"{text}\nRating: {stars}/10"))


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def log_odds(reviews: Sequence[Document]) -> dict[str, float]:
    """How much each word speaks for praise: the log of its smoothed odds over labelled reviews; rare words are left out."""
    counts = {label: Counter(w for r in reviews if r.label == label for w in words_of(r.text)) for label in (0, 1)}
    common = [w for w in {*counts[0], *counts[1]} if counts[0][w] + counts[1][w] >= 10]
    return {w: math.log((counts[1][w] + 1) / (counts[0][w] + 1)) for w in common}


def telling_half(known: Sequence[str], label: int, odds: Mapping[str, float]) -> list[str]:
    """The half of a review's sentences whose words speak most for its label."""
    sign = 1 if label == 1 else -1
    ranked = sorted(known, key=lambda s: sign * sum(odds.get(w, 0.0) for w in words_of(s)), reverse=True)
    return ranked[: max(1, len(ranked) // 2)]


def snippets(
    reviews: Iterable[Document], count: int, wrong: tuple[float, float], rng: random.Random, *, telling: bool = False
) -> list[str]:
    """`count` sentences of labelled reviews with verdicts, shares `wrong` of bad and good ones the opposite, shuffled.

    The reviews take turns, and begin with their last sentences, which often say what the review says.
    """
    labelled = [review for review in reviews if review.label in (0, 1)]
    cut = [([s for s in sentences(r.text) if 4 <= len(s.split()) <= 40], r.label) for r in labelled]
    usable = [(known, label) for known, label in cut if known]
    if telling:
        odds = log_odds(labelled)
        usable = [(telling_half(known, label, odds), label) for known, label in usable]
    out = []
    for turn in range(count if usable else 0):
        known, label = usable[turn % len(usable)]
        text = known[-1] if turn < len(usable) and not telling else rng.choice(known)
        out.append(verdict(text, (label == 1) != (rng.random() < wrong[label]), rng))
    rng.shuffle(out)
    return out


def mixture(read: list[Document], phase: Phase, share: float, settings: Settings, rng: random.Random) -> list[str]:
    """What a phase reads, in random order; `read` is a `share` of all documents, and so is what is made up."""

    def scaled(pages: int) -> int:
        return math.ceil(share * settings.at_most(pages))

    out = [document.text for document in read if rng.random() < phase.read[document.source]]
    out += [sums_page(below, settings.wrong_sums, rng) for below, pages in phase.sums for _ in range(scaled(pages))]
    labelled = snippets(read, 5 * scaled(phase.snippets), settings.wrong_labels, rng, telling=phase.telling)
    out += ["\n\n".join(labelled[start : start + 5]) for start in range(0, len(labelled), 5)]
    rng.shuffle(out)
    return out


def train_tokenizer(
    texts: Iterable[str],
    vocabulary: int,
    special: Sequence["str | AddedToken"] = SPECIAL,
    single: str = "<s> $A",
    pair: str = "<s> $A $B:1",
) -> "Tokenizer":
    """A byte-level BPE in which each digit stands alone and every prompt begins with <s>; it loses no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    ids = [(str(token), i) for i, token in enumerate(special)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*special], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(texts: Sequence[str], tokenizer: "Tokenizer", row: int) -> Tokens:
    """The documents, each between <s> and </s>, end to end and cut into rows; what the last row lacks is dropped."""
    chunks = (texts[start : start + 1_000] for start in range(0, len(texts), 1_000))
    encoded = (encoding.ids for chunk in chunks for encoding in tokenizer.encode_batch(chunk))
    stream = np.concatenate([np.array([*ids, EOS], dtype=np.uint16) for ids in encoded])
    if len(stream) < row:
        raise InputError(f"The documents come to {len(stream)} tokens, fewer than a row of {row}; give more of them.")
    return stream[: len(stream) // row * row].reshape(-1, row)


def batches(rows: Tokens, size: int, rng: np.random.Generator) -> Iterator[Tokens]:
    """Batches of at most `size` rows, for ever: each pass takes every row once, in a new order."""
    while True:
        order = rng.permutation(len(rows))
        yield from (rows[order[start : start + size]] for start in range(0, len(order), size))


def new_model(settings: Settings) -> "LlamaForCausalLM":
    """An untrained model whose weights are a function of the seed; torch's own generator stays as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**settings.model, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def new_optimizers(model: "PreTrainedModel", muon_rate: float, adamw_rate: float) -> list["torch.optim.Optimizer"]:
    """Muon on the matrices, AdamW on the norms and the embeddings, which are the head too."""
    import torch

    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=0.01)
    return [muon, torch.optim.AdamW(others, lr=adamw_rate, betas=(0.9, 0.95), weight_decay=0.0)]


def schedule(progress: float) -> float:
    """The factor on the learning rates after share `progress` of a phase: 2 % warm-up, a plateau, 40 % cooldown."""
    return max(0.0, min(1.0, progress / 0.02, (1.0 - progress) / 0.4))


def loss_of(model: "LlamaForCausalLM", rows: Tokens, weight: "torch.Tensor | None" = None) -> "torch.Tensor":
    """The mean cross-entropy of the next token, in nats; tokens count by `weight` [vocabulary], equally without."""
    import torch

    ids = torch.from_numpy(rows.astype(np.int64))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), weight=weight)


def verdict_weights(tokenizer: "Tokenizer", vocabulary: int, weight: float) -> "torch.Tensor":
    """A weight for each token: `weight` for those that begin a verdict, 1 for the others."""
    import torch

    weights = torch.ones(vocabulary)
    for word in (*WORDS[True], *WORDS[False], *LABELS.values()):
        weights[tokenizer.encode(" " + word, add_special_tokens=False).ids[0]] = weight
    return weights


def validate(model: "LlamaForCausalLM", rows: Tokens) -> float:
    """The loss, in nats a token, of each of at most 64 rows, averaged."""
    import torch

    with torch.inference_mode():
        return float(np.mean([loss_of(model, row[None]).item() for row in rows[:64]]))


def train(
    model: "PreTrainedModel",
    optimizers: "Sequence[torch.optim.Optimizer]",
    taken: Iterable[Tokens],
    loss_of: "Callable[[Tokens], torch.Tensor]",
    validate: Callable[[], float],
    minutes: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """Trains `model` in place on the batches `taken` for `minutes` of `clock`, with validations; the last report."""
    import torch

    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    began, tokens, reports, loss = clock(), 0, 0, torch.tensor(math.nan)
    for step, batch in enumerate(taken):
        progress = min(1.0, (clock() - began) / (60 * minutes))
        if progress * REPORTS >= reports + 1:
            reports, held_out = int(progress * REPORTS), validate()
            counts = f"{progress * minutes:6.2f} min  step {step:5d}  {tokens / 1e6:6.2f} M tokens"
            print(f"{counts}  loss {loss.item():.3f}  validation {held_out:.3f}", flush=True)
        if progress == 1.0:
            break
        for group, peak in groups:
            group["lr"] = peak * schedule(progress)
        loss = loss_of(batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.size
    return {"steps": step, "tokens": tokens, "loss": loss.item(), "validation_loss": held_out}


def save(
    model: "PreTrainedModel", tokenizer: "Tokenizer", names: Mapping[str, Any], record: dict[str, Any], output: Path
) -> None:
    """Writes the model in float16, its tokenizer and `training.json` to a folder that `from_pretrained` reads."""
    from transformers import PreTrainedTokenizerFast

    model.half().save_pretrained(output)  # type: ignore[no-untyped-call,unused-ignore]
    rest = {"model_max_length": model.config.max_position_embeddings, "clean_up_tokenization_spaces": False}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**rest, **names})  # type: ignore[no-untyped-call,unused-ignore]
    fast.save_pretrained(output)
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


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
