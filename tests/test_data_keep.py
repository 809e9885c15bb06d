"""Skewed re-cuts: how many are kept, that the cut depends on nothing but the row, and what is refused."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from zo_objectives.cli import app
from zo_objectives.config import make_config
from zo_objectives.config_files import read_config
from zo_objectives.errors import InputError
from zo_objectives.language import data
from zo_objectives.language.recut import WHOLE, position, recut
from zo_objectives.language.tasks import TaskSpec, find_task, read_task
from zo_objectives.run import execute
from zo_objectives.settings import parse_set, task_settings
from zo_objectives.workbench import Workbench

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
CHOICE: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "owner/mine",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}} It was",
    "doc_to_choice": ["bad", "fair", "good"],
    "doc_to_target": "label",
}
SPEC = TaskSpec.model_validate(CHOICE)
SHARES = (0.1, 1.0, 0.5)
Rows = list[dict[str, Any]]


def rows(count: int, start: int = 0) -> Rows:
    return [{"text": f"film {i}", "label": i % 3} for i in range(start, start + count)]


def kept(part: Rows, shares: Sequence[float] = SHARES) -> Rows:
    return recut(SPEC, {"train": part}, shares, data.Form(SPEC).label)["train"]


def write(folder: Path, splits: Mapping[str, Rows], task: str = "mine") -> Path:
    (folder / task).mkdir(parents=True, exist_ok=True)
    for split, content in splits.items():
        (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def texts(splits: data.Splits) -> list[list[str]]:
    return [[str(e.row["text"]) for e in getattr(splits, split)] for split in data.SPLITS]


def plausible(found: int, of: int, share: float) -> bool:
    low, high = binom.interval(1 - 1e-6, of, share)
    return bool(low <= found <= high)


# Which rows are kept


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_of_a_class_the_share_is_kept_and_no_row_of_another_class_goes(share: float) -> None:
    found = Counter(row["label"] for row in kept(rows(15_000), (1.0, share, 1.0)))
    assert found[0] == found[2] == 5_000 and plausible(found[1], 5_000, share)


def test_positions_are_spread_evenly() -> None:
    tenths = Counter(position(row) * 10 // WHOLE for row in rows(20_000))
    assert set(tenths) == set(range(10)) and all(plausible(n, 20_000, 0.1) for n in tenths.values())


def test_a_row_is_kept_whatever_else_is_there_and_wherever_it_stands() -> None:
    part = rows(300)
    shuffled = random.Random(0).sample(part, len(part))
    found = kept(part)
    assert kept(shuffled) == [row for row in shuffled if row in found]
    assert kept(part[:150]) + kept(part[150:]) == found == kept(found)
    assert [r for r in part if r in found] == found, "in their order"


def test_a_smaller_share_is_a_part_of_a_larger_one() -> None:
    sizes = [{row["text"] for row in kept(rows(3_000), (share,) * 3)} for share in (0.05, 0.2, 0.6, 1.0)]
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3] and len(sizes[3]) == 3_000


def test_only_the_texts_of_a_row_decide() -> None:
    assert position({"text": " a  fine\tfilm ", "idx": 3, "label": 1}) == position({"label": 0, "text": "a fine film"})
    assert position({"text": "a", "other": "b"}) == position({"other": "b", "text": "a"}) != position({"text": "b"})
    assert position({"a": 1}) != position({"a": 2}), "without a text all columns do"
    assert position({"text": "a fine film"}) == 0x92858913CFC29AF3, "and so it stays"


# In a task


def test_sizes_are_counted_in_what_is_kept_and_a_cut_validation_too(tmp_path: Path) -> None:
    folder = write(tmp_path, {"train": rows(900), "test": rows(600, 900)})
    sizes = data.Sizes(100, 80, 90, keep=SHARES)
    splits = data.load(data.Form(SPEC), folder, sizes)
    assert [len(part) for part in texts(splits)] == [100, 80, 90]
    whole = data.load(data.Form(SPEC), folder, data.Sizes(keep=SHARES))
    assert {*texts(splits)[0], *texts(splits)[1]} <= {row["text"] for row in kept(rows(900))}
    assert sorted(texts(whole)[0] + texts(whole)[1]) == sorted(row["text"] for row in kept(rows(900)))


def test_the_cut_is_the_same_for_every_seed_and_its_splits_are_disjoint(tmp_path: Path) -> None:
    splits = {"train": rows(400), "validation": rows(300, 400), "test": rows(300, 700), "fewshot": rows(60, 1_000)}
    folder = write(tmp_path, splits)
    first, other = (data.load(data.Form(SPEC), folder, data.Sizes(keep=SHARES), seed=s) for s in (0, 7))
    assert first == other and first == data.load(data.Form(SPEC), folder, data.Sizes(keep=SHARES))
    assert first.leaks == 0 and sum(map(len, texts(first))) == len({t for part in texts(first) for t in part})
    assert texts(first) == [[row["text"] for row in kept(splits[split])] for split in data.SPLITS]
    assert [e.row for e in first.shown] == kept(splits["fewshot"])


def test_copies_in_two_splits_share_their_fate(tmp_path: Path) -> None:
    """Of two equal sentences, numbered otherwise, both are kept, and the earlier one left out as ever; or neither is."""
    numbered = [{**row, "idx": 1_000 + i} for i, row in enumerate(rows(100))]
    folder = write(tmp_path, {"train": rows(200), "validation": rows(90, 300), "test": numbered})
    splits = data.load(data.Form(SPEC), folder, data.Sizes(keep=SHARES))
    assert splits.leaks == len(splits.test) == len(kept(rows(100)))


def test_few_shots_are_drawn_from_what_is_kept(tmp_path: Path) -> None:
    folder = write(tmp_path, {"train": rows(900), "test": rows(90, 900)})
    splits = data.load(data.Form(SPEC), folder, data.Sizes(shots=5, keep=SHARES), seed=3)
    whole = {row["text"] for row in kept(rows(900))}
    assert set(texts(splits)[0]) | set(texts(splits)[1]) <= whole
    assert Counter(e.label for e in splits.train) == {0: 5, 1: 5, 2: 5}


@pytest.mark.parametrize("name", ["sst2_skewed", "ag_news_skewed"])
def test_the_shipped_cuts_of_the_data_beside_the_checkout(name: str) -> None:
    spec = read_task(find_task(name))
    folder = SHARED / str(spec.zo.folder)
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not in ../shared/data")
    shares = make_config({**task_settings(spec), "task": name}).keep
    assert shares is not None
    even, skewed = (data.load(data.Form(spec), SHARED, data.Sizes(keep=keep)) for keep in (None, shares))
    for split in data.SPLITS:
        before, after = (Counter(e.label for e in getattr(splits, split)) for splits in (even, skewed))
        assert all(after[c] > 0 and plausible(after[c], before[c], share) for c, share in enumerate(shares))


# As a setting


def test_keep_is_a_setting_that_reaches_a_run_and_comes_back(tmp_path: Path) -> None:
    small = {"task": "reviews", "steps": 1, "directions": 1, "batch": 8, "n_train": 40, "n_validation": 20, "n_test": 20}
    skewed = make_config({**small, **parse_set(["keep=[0.1,1.0]"])})
    bench = Workbench.open(skewed)
    assert (
        bench.serves(skewed)
        and not bench.serves(make_config(small))
        and not Workbench.open(make_config(small)).serves(skewed)
    )
    labels = Counter(e.label for e in bench.splits.train)
    assert len(bench.splits.train) == 40 and labels[1] > 3 * labels[0] > 0
    folder = execute(skewed, tmp_path / "run", bench=bench, show=False)
    assert read_config(folder) == skewed and skewed.keep == (0.1, 1.0)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, "half"])
def test_a_share_that_is_none_is_refused_by_name(share: Any) -> None:
    with pytest.raises(InputError, match=r"Setting keep\.1="):
        make_config({"task": "reviews", "keep": [1.0, share]})


def refusal(spec: TaskSpec, shares: Sequence[float], part: Rows | None = None) -> str:
    with pytest.raises(InputError) as caught:
        recut(spec, {"train": rows(30) if part is None else part}, shares, data.Form(spec).label)
    return str(caught.value)


def test_what_cannot_be_cut_is_refused_with_the_cure() -> None:
    assert "keep has 2 shares, and task 'mine' has 3 classes (bad, fair, good)" in refusal(SPEC, (0.1, 1.0))
    for name, why in (("sums", "it generates text"), ("copa", "its options differ from example to example")):
        assert f"task {name!r} has no classes, since {why}. Leave keep out." in refusal(
            read_task(find_task(name)), (1.0, 1.0)
        )
    said = refusal(SPEC, (1.0, 1e-6, 1.0))
    assert "of the 10 train rows of class 1 (fair) of task 'mine' none is left at a share of 1e-06. Raise that" in said
    assert kept(rows(30)[::3], (1.0, 1e-6, 1e-6)) == rows(30)[::3], "what was never there does not vanish"


def test_validate_reads_the_task_as_a_run_would(tmp_path: Path) -> None:
    write(tmp_path, {"train": rows(90), "test": rows(60, 90)})
    path = tmp_path / "mine.yaml"
    for keep, code, said in (([0.5, 1.0], 2, "keep has 2 shares"), ([0.5, 1.0, 1.0], 0, "fair 20")):
        path.write_text(json.dumps({**CHOICE, "zo": {"settings": {"keep": keep}}}))
        done = CliRunner().invoke(app, ["tasks", "validate", str(path), "--data-dir", str(tmp_path)])
        assert (done.exit_code, said in " ".join(done.output.split())) == (code, True), done.output
