"""Checkpoints without weights: the shapes of known models, with a made-up tokenizer, for measurements of speed.

The worker fills them with random weights (`--load-format dummy`). The tokenizer has every byte and then words of
five letters up to the vocabulary's size, so that text comes out at about the cost of a real one.
"""

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

from quire.errors import InvalidRequest

# transformers warns of tokenizers whose checkpoint is older.
_TRANSFORMERS_VERSION = "5.0.0"
_SPECIAL = ("<unk>", "<s>", "</s>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
)


@functools.cache
def shapes() -> dict[str, dict[str, Any]]:
    """config.json of each shape, by name."""
    text = resources.files("quire.bench").joinpath("shapes.json").read_text(encoding="utf-8")
    configs: dict[str, dict[str, Any]] = json.loads(text)
    return configs


def write_shape(name: str, directory: Path) -> Path:
    """Write config, tokenizer and chat template of a shape. Raises InvalidRequest for an unknown name."""
    config = shapes().get(name)
    if config is None:
        raise InvalidRequest(f"no shape {name}: there are {', '.join(shapes())}", param="model")
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": {**config, "transformers_version": _TRANSFORMERS_VERSION},
        "tokenizer.json": _tokenizer(config["vocab_size"]),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": _SPECIAL[0],
            "bos_token": _SPECIAL[1],
            "eos_token": _SPECIAL[2],
            "chat_template": _CHAT_TEMPLATE,
        },
    }
    for file, document in files.items():
        (directory / file).write_text(json.dumps(document), encoding="utf-8")
    return directory


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE without merges, in the format of tokenizer.json."""
    words = [*_SPECIAL, *_byte_characters()]
    words += [f"Ġ{_word(number)}" for number in range(vocab_size - len(words))]
    special = [
        {"id": at, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for at, word in enumerate(_SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {word: at for at, word in enumerate(words)},
        "merges": [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def _byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return [chr(byte) for byte in shown] + [chr(256 + at) for at in range(len(hidden))]


def _word(number: int) -> str:
    letters = ""
    for _ in range(5):
        number, letter = divmod(number, 26)
        letters += chr(ord("a") + letter)
    return letters
