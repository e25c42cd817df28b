"""Two real tokenizers: byte-level BPE, and one in SentencePiece's manner."""

import pytest

from tests.support.checkpoints import checkpoint
from tests.support.tokenizers import save_sentencepiece
from tokenizer_svc.text_tokenizer import TextTokenizer


@pytest.fixture(scope="session")
def byte_level() -> TextTokenizer:
    """GPT-2's manner: every byte is a token's part, spaces included."""
    return TextTokenizer(checkpoint())


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Llama 2's manner: ▁ for spaces, a leading one stripped at the start of a text, bytes as <0xNN>."""
    return TextTokenizer(save_sentencepiece(tmp_path_factory.mktemp("sentencepiece")))
