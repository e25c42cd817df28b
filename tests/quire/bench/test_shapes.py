"""Shapes: checkpoints without weights that the services can load."""

import json
from pathlib import Path

import pytest

from quire.bench.shapes import shapes, write_shape
from quire.errors import InvalidRequest
from tokenizer_svc.text_tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape("llama-8b", tmp_path_factory.mktemp("shape"))


def test_the_tokenizer_has_a_token_for_every_row_of_the_embedding(directory: Path) -> None:
    assert TextTokenizer(directory).vocab_size == shapes()["llama-8b"]["vocab_size"]


def test_any_text_survives_the_way_to_ids_and_back(directory: Path) -> None:
    tokenizer = TextTokenizer(directory)
    text = "Grüße, 世界! 🙂\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_made_up_tokens_are_words(directory: Path) -> None:
    assert TextTokenizer(directory).decode([300, 100_000], skip_special_tokens=True).split()[0].isalpha()


def test_the_config_is_the_shape_s(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config.items() >= shapes()["llama-8b"].items()


def test_an_unknown_shape_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"qwen3-0\.6b"):
        write_shape("llama-9b", tmp_path)
