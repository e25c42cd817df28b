"""Two real tokenizers, without the model that a checkpoint has besides."""

from pathlib import Path

from tests.support.checkpoints import tokenizer


def save_byte_level(directory: Path) -> Path:
    """GPT-2's manner: every byte is a token's part, spaces included. With the chat template of `checkpoint`."""
    tokenizer().save_pretrained(str(directory))
    return _with_config(directory)


def save_sentencepiece(directory: Path) -> Path:
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
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.save_pretrained(str(directory))
    return _with_config(directory)


def _with_config(directory: Path) -> Path:
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory
