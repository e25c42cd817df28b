"""Two real tokenizers: byte-level BPE, and one in SentencePiece's manner."""

from pathlib import Path

import pytest

from tests.support.checkpoints import checkpoint
from tokenizer_svc.text_tokenizer import TextTokenizer


@pytest.fixture(scope="session")
def byte_level() -> TextTokenizer:
    """GPT-2's manner: every byte is a token's part, spaces included."""
    return TextTokenizer(checkpoint())


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Llama 2's manner: ▁ for spaces, a leading one stripped at the start of a text, bytes as <0xNN>."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁he",
        "llo",
        "▁wor",
        "ld",
    ]
    pieces += [*"helowrdt,.!", "é"]
    raw = Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    directory = tmp_path_factory.mktemp("sentencepiece")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.save_pretrained(str(directory))
    (Path(directory) / "config.json").write_text('{"model_type": "llama"}')
    return TextTokenizer(directory)
