"""From a task's file to examples: where rows come from, how they are split and sampled, how they are rendered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zo_objectives.errors import InputError, unknown
from zo_objectives.language import prompts
from zo_objectives.language.outputs import Example
from zo_objectives.language.prepare import ASSETS, GENERATED, PREPARE, Row, read_jsonl
from zo_objectives.language.tasks import TaskSpec

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """A task's examples. Validation chooses; test is looked at once; the three never overlap."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


def _from_folder(folder: Path) -> dict[str, list[Row]]:
    if not folder.is_dir():
        raise InputError(
            f"Data folder {folder} does not exist. Give --data-dir the folder that holds {folder.name}/train.jsonl."
        )
    if not (folder / "train.jsonl").is_file():
        raise InputError(f"Data file {folder / 'train.jsonl'} does not exist.")
    return {s: read_jsonl(folder / f"{s}.jsonl") for s in SPLITS if (folder / f"{s}.jsonl").is_file()}


def _from_source(source: str) -> dict[str, list[Row]]:
    kind, _, name = source.partition(":")
    if kind == "generated":
        if name not in GENERATED:
            raise unknown("generator", name, GENERATED)
        return {s: GENERATED[name](s) for s in SPLITS}
    if kind == "embedded":
        return _from_folder(ASSETS / name)
    raise unknown("source", kind, ("generated", "embedded"))


def _from_hub(spec: TaskSpec) -> dict[str, list[Row]]:
    from datasets import load_dataset

    named = {"train": spec.training_split, "validation": spec.validation_split, "test": spec.test_split}
    rows = {}
    for split, name in named.items():
        if name is not None:
            try:
                revision = spec.metadata.get("revision")
                rows[split] = [
                    dict(r) for r in load_dataset(spec.dataset_path, spec.dataset_name, split=name, revision=revision)
                ]
            except Exception as error:
                raise InputError(
                    f"Cannot load {spec.dataset_path} ({name}) from the Hugging Face hub: {type(error).__name__}:"
                    f" {' '.join(str(error).split())} Without a network, put {spec.task}/train.jsonl and test.jsonl into a"
                    " folder and give that as --data-dir."
                ) from error
    return rows


def load_rows(spec: TaskSpec, data_dir: Path | None = None) -> dict[str, list[Row]]:
    """Rows by split, from `data_dir`/<task>/*.jsonl where given, else from the task's own source or the hub."""
    if data_dir is not None and (spec.zo.source is None or (data_dir / spec.task).is_dir()):
        rows = _from_folder(data_dir / spec.task)
    elif spec.zo.source is not None:
        rows = _from_source(spec.zo.source)
    else:
        rows = _from_hub(spec)
    if spec.zo.prepare is not None:
        if spec.zo.prepare not in PREPARE:
            raise unknown("prepare function", spec.zo.prepare, PREPARE)
        rows = {s: PREPARE[spec.zo.prepare](r) for s, r in rows.items()}
    return _with_all_splits(rows, spec)


def _with_all_splits(rows: dict[str, list[Row]], spec: TaskSpec) -> dict[str, list[Row]]:
    """Test is the file's own test or else its validation; a missing validation is cut from train, at most a fifth of it."""
    for split in SPLITS:
        if split in rows and not rows[split]:
            raise InputError(f"Task {spec.task!r}: the {split} split is empty.")
    rows = dict(rows)
    if "test" not in rows:
        if "validation" not in rows:
            raise InputError(f"Task {spec.task!r} has neither a validation nor a test split to measure on.")
        rows["test"] = rows.pop("validation")
    if "validation" not in rows:
        if len(rows["train"]) < 2:
            raise InputError(f"Task {spec.task!r}: train has one example, too few to cut a validation split from.")
        order = np.random.default_rng(0).permutation(len(rows["train"]))
        cut = min(500, max(1, len(order) // 5))
        train = rows["train"]
        rows |= {"validation": [train[i] for i in order[:cut]], "train": [train[i] for i in sorted(order[cut:])]}
    return rows


def render(spec: TaskSpec, row: Row, index: int, where: str) -> Example:
    """One row as an example. Raises InputError that names split, row and field."""
    prompt = str(spec.description) + str(prompts.render(spec.doc_to_text, row, f"{where}, doc_to_text"))
    if spec.output_type == "multiple_choice":
        assert spec.doc_to_choice is not None and spec.doc_to_target is not None
        choice = list(spec.doc_to_choice) if isinstance(spec.doc_to_choice, tuple) else spec.doc_to_choice
        texts = prompts.options(choice, row, f"{where}, doc_to_choice")
        label = prompts.label(spec.doc_to_target, row, texts, f"{where}, doc_to_target")
        return Example(index, prompt, row, tuple(spec.target_delimiter + t for t in texts), label)
    if spec.doc_to_target is None:
        return Example(index, prompt, row)
    return Example(index, prompt, row, targets=prompts.targets(str(spec.doc_to_target), row, f"{where}, doc_to_target"))


def _sample(rows: Sequence[Row], size: int | None, seed: int) -> list[tuple[int, Row]]:
    """`size` rows with their numbers, drawn without replacement and kept in order; all of them for None."""
    if size is None or size >= len(rows):
        return list(enumerate(rows))
    chosen = np.random.default_rng(seed).choice(len(rows), size, replace=False)
    return [(int(i), rows[i]) for i in sorted(chosen)]


def load(
    spec: TaskSpec,
    data_dir: Path | None = None,
    *,
    sizes: tuple[int | None, int | None, int | None] = (None, None, None),
    seed: int = 0,
) -> Splits:
    """A task's examples, at most `sizes` in train, validation and test; only train's sample depends on `seed`."""
    rows = load_rows(spec, data_dir)
    seeds: dict[str, Any] = {"train": seed, "validation": 0, "test": 0}
    rendered = {
        s: tuple(render(spec, row, i, f"task {spec.task!r}, {s} row {i}") for i, row in _sample(rows[s], size, seeds[s]))
        for s, size in zip(SPLITS, sizes, strict=True)
    }
    return Splits(**rendered)
