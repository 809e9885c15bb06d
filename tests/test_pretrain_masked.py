"""The recipe of the masked model, on a few dozen made-up paragraphs."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from zo_objectives import pretrain_masked as masked
from zo_objectives.pretraining.masked_recipe import CLS, MASK, NAMES, PAD, ROLES, SEP, Settings
from zo_objectives.pretraining.masked_rows import Flags, batches, begins_word, choose
from zo_objectives.pretraining.reading import Document
from zo_objectives.pretraining.recipe import LABELS, WORDS

SMALL = Settings(
    minutes=0.04,
    snippets=200,
    held_out=0.2,
    vocabulary=400,
    model={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    row=32,
    batch=256,
)
REVIEW = "I saw film {0} with a friend.{1}In the end film {0} {2} me very much!"
PROMPT = "a film of {} hours It was <mask>."


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "imdb").mkdir()
    reviews = [(REVIEW.format(i, "<br /><br />", ("bored", "pleased")[i % 2]), i % 2) for i in range(60)]
    rows = [json.dumps({"text": text, "label": label}) for text, label in reviews[:40]]
    (folder / "imdb" / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    texts = [text.replace("<br />", "\n") for text, _ in reviews]
    (folder / "imdb_reviews.txt.gz").write_bytes(gzip.compress("\n\n".join(texts).encode()))
    (folder / "tales.txt").write_text("".join(f"Once there were {i} cats.\n" for i in range(60)), encoding="utf-8")
    (folder / "tales_valid.txt").write_text("Once there was one dog.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("models") / request.param
    masked.pretrain_masked(replace(SMALL, family=request.param), output, [corpora.parent, corpora])
    return output


def read(corpora: Path, seed: int = 0) -> list[Document]:
    return masked.read_documents([corpora], SMALL, random.Random(seed))


def test_a_run_gives_a_model_that_loads_and_fills_masks(made: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(made, dtype=torch.float32, local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(made, local_files_only=True)
    assert model.config.model_type == made.name
    prompts = [PROMPT.format(hours).replace("<mask>", tokenizer.mask_token) for hours in ("two", "twenty-one")]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    assert ((inputs.input_ids == tokenizer.mask_token_id).sum(1) == 1).all()
    assert torch.isfinite(model(**inputs).logits).all()
    long = tokenizer("word " * 100, truncation=True, return_tensors="pt")
    assert long.input_ids.shape == (1, SMALL.row)
    assert torch.isfinite(model(**long).logits).all()


def test_the_head_is_tied(made: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(made, local_files_only=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_special_tokens_have_their_roles(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    roles = [getattr(tokenizer, role) for role in ROLES]
    assert tuple(roles) == NAMES[made.name]
    assert tokenizer.convert_tokens_to_ids(roles) == [*range(5)]
    assert (tokenizer.bos_token, tokenizer.eos_token) == (tokenizer.cls_token, tokenizer.sep_token)
    one, two = tokenizer("One.").input_ids, tokenizer("One.", "One.").input_ids
    assert (one[0], one[-1]) == (CLS, SEP)
    assert two == one + one[1:]
    spaced, tight = (tokenizer(f"It was{space}{tokenizer.mask_token}.").input_ids for space in (" ", ""))
    assert spaced == tight == Tokenizer.from_file(str(made / "tokenizer.json")).encode(f"It was{tokenizer.mask_token}.").ids


def test_training_json_has_all_settings_and_a_loss_that_fell(made: Path) -> None:
    record = json.loads((made / "training.json").read_text())
    assert record["settings"]["model"] == SMALL.model
    assert record["snippets"] == SMALL.snippets
    assert record["validation_loss"] < 0.8 * np.log(SMALL.vocabulary)


def test_documents_are_distinct_labelled_where_known_and_a_function_of_the_seed(corpora: Path) -> None:
    documents = read(corpora)
    texts = [document.text for document in documents]
    assert len(set(texts)) == len(texts) == 180
    assert sum(document.label in (0, 1) for document in documents) == 80
    assert {document.source for document in documents} == {"imdb", "tales"}
    assert not any("dog" in text or "<br" in text for text in texts)
    assert documents == read(corpora) != read(corpora, seed=1)


def test_at_most_so_many_characters_of_a_file_are_read(corpora: Path) -> None:
    documents = masked.read_documents([corpora], replace(SMALL, characters=300), random.Random(0))
    assert 250 < sum(len(document.text) for document in documents if document.source == "tales") <= 300


def test_verdicts_follow_the_words_where_the_label_lacks(corpora: Path) -> None:
    settings = replace(SMALL, wrong_labels=(0.0, 0.0), snippets=400)
    made = masked.snippets(read(corpora), settings, random.Random(0))
    assert made == masked.snippets(read(corpora), settings, random.Random(0))
    telling = [text for text in made if "very much" in text]
    good = (*(f" {word}." for word in WORDS[True]), LABELS[True], "8/10", "9/10", "10/10")
    assert all(text.endswith(good) == ("pleased" in text) for text in telling)
    assert {i for i in range(60) for text in telling if f"film {i} " in text} & {*range(40, 60)}


@pytest.mark.parametrize(
    ("text", "parted"),
    [("It isn't bad, is it?", "it is n't bad , is it ?"), ("The film's end (1999)...", "the film 's end ( 1999 ) . . .")],
)
def test_spaced(text: str, parted: str) -> None:
    assert masked.spaced(text) == parted


@hypothesis_settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(2, 32), min_size=1, max_size=50), seed=st.integers(0, 99))
def test_batches_take_every_row_once_and_keep_to_their_size(lengths: list[int], seed: int) -> None:
    rows = [[CLS, *[5 + i] * (n - 2), SEP] for i, n in enumerate(lengths)]
    taken = list(batches(rows, 64, np.random.default_rng(seed)))
    assert all(batch.size <= 64 for batch in taken)
    assert sorted([i for i in line.tolist() if i != PAD] for batch in taken for line in batch) == sorted(rows)


def test_masks_take_whole_words_and_verdicts_and_are_a_function_of_the_seed(corpora: Path) -> None:
    tokenizer, _ = masked.new_tokenizer([document.text for document in read(corpora)], SMALL)
    begins = begins_word(tokenizer)
    ids = tokenizer.encode("pleased Zanzibar friend very").ids
    rows = np.tile(np.array([*ids, PAD], dtype=np.uint16), (4_000, 1))
    verdicts = np.arange(len(begins)) == ids[-2]

    def drawn(seed: int) -> Flags:
        return choose(rows, begins, verdicts, SMALL, np.random.default_rng(seed))

    chosen = drawn(0)
    assert np.array_equal(chosen, drawn(0)) and not np.array_equal(chosen, drawn(1))
    assert not chosen[rows <= MASK].any()
    same = np.flatnonzero(~begins[ids[2:-1]]) + 2  # what continues a word
    assert len(same) and (chosen[:, same] == chosen[:, same - 1]).all()
    assert chosen[:, 1].mean() == pytest.approx(SMALL.masked, abs=0.03)  # 4.7 standard errors
    assert chosen[:, len(ids) - 2].mean() == pytest.approx(SMALL.masked_verdicts, abs=0.03)


def test_a_few_steps_lower_the_loss_and_first_weights_are_a_function_of_the_seed() -> None:
    state = torch.random.get_rng_state()
    model, again, other = (masked.new_model(replace(SMALL, seed=seed)) for seed in (0, 0, 1))
    weights = [m.get_input_embeddings().weight.tolist() for m in (model, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert torch.equal(torch.random.get_rng_state(), state)
    rng = np.random.default_rng(0)
    rows = rng.integers(5, 25, (8, 16)).astype(np.uint16)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(30):
        loss = masked.loss_of(model, rows, rng.random(rows.shape) < 0.3)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_padding_does_not_change_the_loss() -> None:
    model, rng = masked.new_model(SMALL).double(), np.random.default_rng(0)
    rows = rng.integers(5, 25, (2, 9)).astype(np.uint16)
    chosen = rng.random(rows.shape) < 0.5
    padded = [np.pad(given, ((0, 0), (0, 4)), constant_values=fill) for given, fill in ((rows, PAD), (chosen, 0))]
    torch.testing.assert_close(masked.loss_of(model, padded[0], padded[1]), masked.loss_of(model, rows, chosen))


@pytest.mark.parametrize(("arguments", "named"), [((), "stanfordnlp/imdb"), (("--minutes", "0"), "minutes")])
def test_input_that_cannot_work_is_named(
    arguments: tuple[str, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert masked.main(["--output", str(tmp_path / "out"), "--corpora", str(tmp_path), *arguments]) == 2
    assert named in capsys.readouterr().err
