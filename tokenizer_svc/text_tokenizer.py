"""A checkpoint's tokenizer: text to ids and back, as transformers does it, through the Rust library it wraps."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from quire.errors import InvalidRequest, NotFound

# transformers looks for frameworks when it is imported; this service needs none, and torch takes seconds.
os.environ.setdefault("USE_TORCH", "0")

REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token as a reader sees it."""

    text: str
    data: bytes


class TextTokenizer:
    """Wraps a fast tokenizer. Thread-safe: the Rust object is, and it is never reconfigured."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.pretrained: Any = AutoTokenizer.from_pretrained(
                str(directory), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise NotFound(
                f"{directory} holds no tokenizer that can be loaded: {error}", param="model"
            ) from None
        if not self.pretrained.is_fast:
            raise InvalidRequest(f"the tokenizer of {directory} has no tokenizer.json", param="model")
        self.rust: Any = self.pretrained.backend_tokenizer
        # transformers pads and truncates by reconfiguring this object; no call here does either.
        self.rust.no_padding()
        self.rust.no_truncation()
        self.vocab_size: int = self.rust.get_vocab_size(with_added_tokens=True)
        self.special_ids = frozenset(self.pretrained.all_special_ids)
        self.token_text = lru_cache(maxsize=2**16)(self._token_text)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; with `add_special_tokens`, in the checkpoint's BOS and EOS where it has them."""
        # `encode` would hold the interpreter's lock all the while, and with it everybody's stream; a batch does not.
        ids: list[int] = self.rust.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of token ids; ids that the tokenizer does not know are left out."""
        text: str = self.rust.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def _token_text(self, token_id: int) -> TokenText:
        """A token by itself; byte-level tokens that are no whole character keep their bytes."""
        text = self.decode([token_id], skip_special_tokens=False)
        piece = self.rust.id_to_token(token_id)
        data = _bytes_of(piece) if piece is not None and REPLACEMENT in text else None
        return TokenText(text, text.encode() if data is None else data)


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2), each with its byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


def _bytes_of(piece: str) -> bytes | None:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    alphabet = _byte_level_alphabet()
    if all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    return None
