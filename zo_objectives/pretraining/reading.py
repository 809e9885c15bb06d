"""The documents of the sources, from files or from the hub."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from zo_objectives.errors import InputError
from zo_objectives.pretraining.recipe import SOURCES, Settings

Row = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """A text and its source; of reviews the label counts: 1 good, 0 bad, anything else unknown."""

    source: str
    text: str
    label: int = -1


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
