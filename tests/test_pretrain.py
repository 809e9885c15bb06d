"""The recipe of the embedded model, on a few dozen made-up documents."""

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from zo_objectives import pretrain
from zo_objectives.errors import InputError
from zo_objectives.pretraining import pages, reading, tokens, training
from zo_objectives.pretraining.reading import Document
from zo_objectives.pretraining.recipe import BOS, Settings

SMALL = Settings(
    minutes=0.08,
    limit_documents=40,
    held_out=0.2,
    model={
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    row=32,
    batch=4,
)
PROMPT = 'Twelve émigrés,\n  12 films; "it was 307 times better" 🙂 '


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    text = "I saw film {} with a friend.<br /><br />The plot of it was thin. In the end I say it {} me very much!"
    reviews = [{"text": text.format(i, ("bored", "pleased")[i % 2]), "label": i % 2} for i in range(50)]
    write(folder / "imdb" / "train.jsonl", [dict(row) for row in reviews])
    write(folder / "tinystories" / "train.jsonl", [{"text": f"Once there were {i} cats. They slept."} for i in range(50)])
    write(
        folder / "squad" / "train.jsonl",
        [{"context": f"In the year {i // 2} it rained. Then not."} for i in range(80)],
    )
    return folder


@pytest.fixture(scope="module")
def made(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("models") / "made"
    pretrain.pretrain(SMALL, output, data_dir)
    return output


def test_a_run_gives_a_model_that_loads(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    logits = model(**tokenizer("It was good", return_tensors="pt", return_token_type_ids=False)).logits
    assert torch.isfinite(logits).all()
    assert json.loads((made / "config.json").read_text())["dtype"] == "float16"


def test_training_json_has_all_settings_and_a_loss_that_fell(made: Path) -> None:
    record = json.loads((made / "training.json").read_text())
    assert record["settings"]["model"] == SMALL.model
    assert record["settings"]["phases"][0]["sums"] == [[20, 16_000]]
    assert len(record["phases"]) == len(SMALL.phases)
    assert record["phases"][-1]["validation_loss"] < 0.9 * np.log(SMALL.model["vocab_size"])


def test_the_tokenizer_begins_with_bos_parts_digits_and_loses_nothing(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    ids = tokenizer(PROMPT).input_ids
    assert ids == Tokenizer.from_file(str(made / "tokenizer.json")).encode(PROMPT).ids
    assert ids[0] == tokenizer.bos_token_id == BOS
    assert tokenizer.decode(ids, skip_special_tokens=True) == PROMPT
    assert all(len(re.findall(r"\d", str(tokenizer.decode([i])))) <= 1 for i in range(len(tokenizer)))


def sums(below: int, wrong: float, seed: int, lines: int) -> list[tuple[int, int]]:
    """(true answer, given answer) of each sum on a page."""
    page = pages.sums_page(below, wrong, random.Random(seed), lines)
    found = re.findall(r"(\d+) (\+|-|plus|minus) (\d+)(?:\?\nAnswer:| =) (-?\d+)", page)
    assert len(found) == lines
    return [(int(a) + int(b) if sign in ("+", "plus") else int(a) - int(b), int(c)) for a, sign, b, c in found]


@settings(max_examples=30, deadline=None)
@given(below=st.integers(1, 100), wrong=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_sums_are_right_or_off_by_one_or_two_and_never_negative(below: int, wrong: float, seed: int) -> None:
    assert all(right == given >= 0 for right, given in sums(below, 0.0, seed, 20))
    assert all(right >= 0 <= given and abs(right - given) in (1, 2) for right, given in sums(below, 1.0, seed, 20))
    assert all(abs(right - given) <= 2 for right, given in sums(below, wrong, seed, 20))


def test_a_quarter_of_the_sums_is_wrong() -> None:
    answers = sums(20, SMALL.wrong_sums, seed=1, lines=10_000)
    assert np.mean([right != given for right, given in answers]) == pytest.approx(0.25, abs=0.02)  # 4.6 standard errors


def test_wrong_verdicts_have_their_share() -> None:
    reviews = [Document("imdb", f"This is review number {i}.", label=i % 2) for i in range(100)]
    texts = pages.snippets(reviews, 10_000, SMALL.wrong_labels, random.Random(2))
    good = [re.search(r"great|good|wonderful|positive|(8|9|10)/10$", text) is not None for text in texts]
    labels = [int(re.findall(r"number (\d+)", text)[0]) % 2 == 1 for text in texts]
    for label, wrong in enumerate(SMALL.wrong_labels):
        given = [g for g, is_good in zip(good, labels, strict=True) if is_good == bool(label)]
        assert np.mean([g != bool(label) for g in given]) == pytest.approx(wrong, abs=0.03)


def test_telling_sentences_speak_for_the_label() -> None:
    kinds = (("lovely", 1), ("dreary", 0))
    texts = [(f"A {word} film, number {i}. It lasts two hours.", label) for i in range(40) for word, label in kinds]
    reviews = [Document("imdb", text, label=label) for text, label in texts]
    odds = pages.log_odds(reviews)
    assert odds["lovely"] > 1 > -1 > odds["dreary"]
    assert abs(odds["hours"]) < 0.1
    chosen = pages.telling_half(["It lasts two hours.", "A lovely film."], 1, odds)
    assert chosen == ["A lovely film."]


def test_reviews_without_a_label_get_no_verdict() -> None:
    unlabelled = [Document("imdb", "Nobody said how this one was.", label=-1)]
    assert pages.snippets(unlabelled, 10, (0.0, 0.0), random.Random(0)) == []


def test_documents_and_first_weights_are_functions_of_the_seed(data_dir: Path) -> None:
    before = torch.random.get_rng_state()
    for draw in (
        lambda seed: reading.read_documents(data_dir, SMALL, random.Random(seed)),
        lambda seed: pretrain.new_model(replace(SMALL, seed=seed)).lm_head.weight.tolist(),
    ):
        assert draw(0) == draw(0) != draw(1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_pass_takes_every_row_once() -> None:
    rows = np.arange(20, dtype=np.uint16).reshape(10, 2)
    taken = tokens.batches(rows, 4, np.random.default_rng(0))
    for _ in range(3):
        seen = np.concatenate([next(taken) for _ in range(3)])
        assert sorted(seen.tolist()) == rows.tolist()


@pytest.mark.parametrize(
    ("progress", "factor"), [(0.0, 0.0), (0.01, 0.5), (0.02, 1.0), (0.5, 1.0), (0.8, 0.5), (1.0, 0.0), (1.5, 0.0)]
)
def test_schedule(progress: float, factor: float) -> None:
    assert training.schedule(progress) == pytest.approx(factor)


def test_a_missing_file_is_named_with_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = pretrain.main(["--output", str(tmp_path / "out"), "--data-dir", str(tmp_path), "--threads", "1"])
    message = capsys.readouterr().err
    assert code == 2
    assert str(tmp_path / "imdb" / "train.jsonl") in message
    assert "stanfordnlp/imdb" in message and "text and label" in message and "--data-dir" in message


@pytest.mark.parametrize("line", ["{", '{"text": "no label"}', "3"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "imdb" / "train.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "fine", "label": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.jsonl, line 2"):
        list(reading.source_rows("imdb", tmp_path))


@pytest.mark.parametrize(
    ("name", "wrong"), [("minutes", replace(SMALL, minutes=0.0)), ("limit_doc", replace(SMALL, limit_documents=0))]
)
def test_settings_that_cannot_work_are_named(tmp_path: Path, name: str, wrong: Settings) -> None:
    with pytest.raises(InputError, match=name):
        pretrain.pretrain(wrong, tmp_path, tmp_path)


def test_the_module_imports_without_torch() -> None:
    code = "import sys, zo_objectives.pretrain; sys.exit(not sys.modules.keys().isdisjoint({'torch', 'transformers'}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
