"""The model in assets/ is whole, small and usable without a network."""

import json
import logging
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zo_objectives import pretrain

FOLDER = Path(pretrain.__file__).parent / "assets" / "reviews-1m"
TEXTS = ("x", "", " a  film .\n\n", "12345 + 6 = 7", "émigré 漢字 🙂", "it 's n't so bad , or is it ?")


class Collect(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def no_network(*_: object) -> NoReturn:
    raise AssertionError("the embedded model must not use the network")


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]]:
    """The model and tokenizer, loaded with every connection refused, and the warnings they gave."""
    torch.set_num_threads(1)
    collect = Collect()
    logging.getLogger("transformers").addHandler(collect)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        patch.setattr(socket.socket, "connect", no_network)
        warnings.simplefilter("always")
        model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    logging.getLogger("transformers").removeHandler(collect)
    yield model, tokenizer, collect.messages + [str(w.message) for w in caught]


@pytest.fixture
def model(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]) -> PreTrainedModel:
    return loaded[0]


@pytest.fixture
def tokenizer(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]) -> PreTrainedTokenizerBase:
    return loaded[1]


def test_it_loads_offline_without_warnings(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]],
) -> None:
    assert loaded[2] == []


def test_it_is_what_the_card_says(model: PreTrainedModel) -> None:
    assert sum(p.numel() for p in model.parameters()) == 1_066_112
    config = model.config
    shape = (config.num_hidden_layers, config.hidden_size, config.vocab_size, config.max_position_embeddings)
    assert (config.model_type, *shape) == ("llama", 4, 128, 2048, 512)
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")


def test_the_files_are_small_and_store_the_head_once() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118 (no mapping)
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_begins_with_bos_and_loses_nothing(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded.input_ids == Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode(text).ids
    assert encoded.input_ids == [1, *tokenizer(text, add_special_tokens=False).input_ids]
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == text
    assert encoded.offset_mapping[0] == (0, 0)
    if text.isascii():
        assert "".join(text[start:stop] for start, stop in encoded.offset_mapping) == text


@pytest.mark.parametrize(
    ("prompt", "expected"), [("Question: What is 7 plus 12?\nAnswer:", " 19"), ("One day, a", " little")]
)
def test_it_generates(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, expected: str) -> None:
    given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        out = model.generate(**given, max_new_tokens=6, do_sample=False)  # type: ignore[operator,unused-ignore]
    assert str(tokenizer.decode(out[0, given.input_ids.shape[1] :])).startswith(expected)


def test_the_card_names_no_machine_paths() -> None:
    card = (FOLDER / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "/work" not in card and "/tmp" not in card
