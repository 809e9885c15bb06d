"""From a task's file to examples: where rows come from, how they are split and sampled, how they are rendered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zo_objectives.errors import InputError, unknown
from zo_objectives.language import prompts
from zo_objectives.language.outputs import Example
from zo_objectives.language.prepare import ASSETS, GENERATED, PREPARE, Row, read_jsonl
from zo_objectives.language.recut import recut
from zo_objectives.language.tasks import TaskSpec

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """A task's examples. Validation chooses; test is looked at once; the three never overlap."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    leaks: int = 0  # examples left out since they stand in a later split too
    shown: tuple[Example, ...] = ()  # what demonstrations are drawn from; train where the task names no split of its own

    @property
    def options(self) -> set[str]:
        """The texts of all options."""
        return {option for part in (self.train, self.validation, self.test) for e in part for option in e.options}


def _from_folder(folder: Path) -> dict[str, list[Row]]:
    if not folder.is_dir():
        raise InputError(
            f"Data folder {folder} does not exist. Give --data-dir the folder that holds {folder.name}/train.jsonl."
        )
    if not (folder / "train.jsonl").is_file():
        raise InputError(f"Data file {folder / 'train.jsonl'} does not exist.")
    names = (*SPLITS, "fewshot")
    return {s: read_jsonl(folder / f"{s}.jsonl") for s in names if (folder / f"{s}.jsonl").is_file()}


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
    if spec.fewshot_split not in (None, *named.values()):
        named["fewshot"] = spec.fewshot_split
    given = {"revision": spec.metadata.get("revision"), **spec.dataset_kwargs}
    rows = {}
    for split, name in named.items():
        if name is not None:
            try:
                rows[split] = [dict(r) for r in load_dataset(spec.dataset_path, spec.dataset_name, split=name, **given)]
            except Exception as error:
                raise InputError(
                    f"Cannot load {spec.dataset_path} ({name}) from the Hugging Face hub: {type(error).__name__}:"
                    f" {' '.join(str(error).split())} Without a network, put {spec.zo.folder or spec.task}/train.jsonl and"
                    " test.jsonl into a folder and give that as --data-dir."
                ) from error
    return rows


def load_rows(
    spec: TaskSpec, data_dir: Path | None = None, cut: int | None = None, keep: Sequence[float] | None = None
) -> dict[str, list[Row]]:
    """Rows by split, from `data_dir`/<task>/*.jsonl where given, else from the task's own source or the hub.

    A validation split that has to be cut from train has at most `cut` rows. A split `fewshot` is there where the task's file
    names one of its own for demonstrations. Of each class the share `keep` is left in every split (see recut.py).
    """
    folder = None if data_dir is None else data_dir / (spec.zo.folder or spec.task)
    if folder is not None and (spec.zo.source is None or folder.is_dir()):
        rows = _from_folder(folder)
    elif spec.zo.source is not None:
        rows = _from_source(spec.zo.source)
    else:
        rows = _from_hub(spec)
    if spec.zo.prepare is not None:
        if spec.zo.prepare not in PREPARE:
            raise unknown("prepare function", spec.zo.prepare, PREPARE)
        rows = {s: PREPARE[spec.zo.prepare](r) for s, r in rows.items()}
    if keep is not None:
        rows = recut(spec, rows, keep, Form(spec).label)
    return _with_all_splits(rows, spec, cut or 500)


def _with_all_splits(rows: dict[str, list[Row]], spec: TaskSpec, most: int) -> dict[str, list[Row]]:
    """Test is the file's own test or else its validation; a missing validation is cut from train, at most 2/5 of it."""
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
        cut = min(most, max(1, len(order) * 2 // 5))
        train = rows["train"]
        rows |= {"validation": [train[i] for i in order[:cut]], "train": [train[i] for i in sorted(order[cut:])]}
    return rows


@dataclass(frozen=True)
class Form:
    """How rows become examples: with what text for a masked model's mask, and whether with a prompt to calibrate with."""

    spec: TaskSpec
    mask: str | None = None
    blank: bool = False

    def render(self, row: prompts.Row, index: int, where: str) -> Example:
        """One row as an example. Raises InputError that names split, row and field."""
        prompt = self._prompt(row, where)
        if self.spec.output_type == "multiple_choice":
            texts, (label, *also) = self._options(row, where), self._labels(row, where)
            return Example(
                index, prompt, row, texts, label, also=tuple(also), blank=self._blank(row, where) if self.blank else None
            )
        if self.spec.doc_to_target is None:
            return Example(index, prompt, row)
        targets = prompts.targets(str(self.spec.doc_to_target), row, f"{where}, doc_to_target")
        return Example(index, prompt, row, targets=targets)

    def label(self, row: prompts.Row, where: str) -> int:
        """The class of a row; 0 for all where there are no options."""
        return self._labels(row, where)[0] if self.spec.output_type == "multiple_choice" else 0

    def _prompt(self, row: prompts.Row, where: str) -> str:
        if self.mask is None:
            text = str(prompts.render(self.spec.doc_to_text, row, f"{where}, doc_to_text"))
        elif self.spec.zo.mask is None:
            raise InputError(
                f"Task {self.spec.task!r} has no form for masked models: give it zo.mask, or take a causal model."
            )
        else:
            text = str(prompts.render(self.spec.zo.mask, {**row, "mask": self.mask}, f"{where}, zo.mask"))
        return self.description(row, where) + text

    def description(self, row: prompts.Row, where: str) -> str:
        """What stands before the prompt, and before all demonstrations."""
        return str(prompts.render(self.spec.description, row, f"{where}, description")) if self.spec.description else ""

    def _blank(self, row: prompts.Row, where: str) -> str | None:
        """The content-free prompt: as the task says, else its prompt with all texts of the row left out."""
        if self.spec.zo.calibration is not None and self.mask is None:
            return str(prompts.render(self.spec.zo.calibration, row, f"{where}, zo.calibration"))
        empty = {name: "" if isinstance(value, str) else value for name, value in row.items()}
        try:
            return self._prompt(empty, where)
        except InputError:
            return None

    def _choices(self, row: prompts.Row, where: str) -> tuple[str, ...]:
        choice = self.spec.doc_to_choice
        assert choice is not None
        return prompts.options(list(choice) if isinstance(choice, tuple) else choice, row, f"{where}, doc_to_choice")

    def _options(self, row: prompts.Row, where: str) -> tuple[str, ...]:
        if self.mask is not None:
            return tuple(" " + word for word in self.spec.words)
        return tuple(self.spec.target_delimiter + choice for choice in self._choices(row, where))

    def _labels(self, row: prompts.Row, where: str) -> tuple[int, ...]:
        assert self.spec.doc_to_target is not None
        return prompts.labels(self.spec.doc_to_target, row, self._choices(row, where), f"{where}, doc_to_target")


Numbered = list[tuple[int, Row]]


def _sample(rows: Sequence[Row], size: int | None, seed: int) -> Numbered:
    """`size` rows with their numbers, drawn without replacement and kept in order; all of them for None."""
    if size is None or size >= len(rows):
        return list(enumerate(rows))
    chosen = np.random.default_rng(seed).choice(len(rows), size, replace=False)
    return [(int(i), rows[i]) for i in sorted(chosen)]


def few_shot(rows: Sequence[Row], labels: Sequence[int], shots: int, seed: int) -> tuple[Numbered, Numbered]:
    """Train and validation with `shots` rows of each class (LM-BFF's protocol, Gao et al. 2021), no row in both.

    A class of fewer than twice as many gives the larger half of its rows to train.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    parts: tuple[list[int], list[int]] = ([], [])
    for label in sorted(set(labels)):
        own = [int(i) for i in order if labels[i] == label]
        k = min(shots, (len(own) + 1) // 2)
        parts[0].extend(own[:k])
        parts[1].extend(own[k : 2 * k])
    train, validation = ([(i, rows[i]) for i in sorted(part)] for part in parts)
    return train, validation


@dataclass(frozen=True)
class Sizes:
    """How many examples are used: at most so many in each split, or `shots` of each class in train and in validation.

    They are taken from what `load_rows` leaves of each class, a share in `keep`; all rows for None.
    """

    train: int | None = None
    validation: int | None = None
    test: int | None = None
    shots: int | None = None
    keep: tuple[float, ...] | None = None


def load(form: Form, data_dir: Path | None = None, sizes: Sizes = Sizes(), seed: int = 0) -> Splits:
    """A task's examples, from `data_dir`, its own source or the hub; see `examples_of`."""
    return examples_of(form, load_rows(form.spec, data_dir, sizes.validation, sizes.keep), sizes, seed)


def examples_of(form: Form, rows: Mapping[str, list[Row]], sizes: Sizes = Sizes(), seed: int = 0) -> Splits:
    """The examples of rows. Train's sample depends on `seed`, and with `shots` validation's too; test's never does.

    What stands in test is left out of validation and train, and what stands in validation out of train.
    """
    spec = form.spec
    if sizes.shots is not None:
        labels = [form.label(row, f"task {spec.task!r}, train row {i}") for i, row in enumerate(rows["train"])]
        train, validation = few_shot(rows["train"], labels, sizes.shots, seed)
    else:
        train, validation = _sample(rows["train"], sizes.train, seed), _sample(rows["validation"], sizes.validation, 0)
    parts = {"train": train, "validation": validation, "test": _sample(rows["test"], sizes.test, 0)}
    rendered = {
        split: [form.render(row, i, f"task {spec.task!r}, {split} row {i}") for i, row in part]
        for split, part in parts.items()
    }
    seen, kept = set[tuple[str, ...]](), dict[str, tuple[Example, ...]]()
    for split in ("test", "validation", "train"):
        kept[split] = tuple(e for e in rendered[split] if identity(e) not in seen)
        if not kept[split]:
            raise InputError(f"Task {spec.task!r}: every {split} example stands in another split too, or there is none.")
        seen |= {identity(e) for e in rendered[split]}
    leaks = sum(map(len, rendered.values())) - sum(map(len, kept.values()))
    own = rows.get("fewshot", [])
    shown = tuple(form.render(row, i, f"task {spec.task!r}, fewshot row {i}") for i, row in enumerate(own))
    return Splits(kept["train"], kept["validation"], kept["test"], leaks, shown or kept["train"])


def identity(example: Example) -> tuple[str, ...]:
    """What makes two examples the same."""
    return (example.prompt, *example.options)
