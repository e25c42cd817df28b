"""The byte-level BPE tokenizer: digits stay single, and every byte has a token of its own."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo_model.chat import CONTROL_TOKENS, END, MARKUP_TOKENS, PAD, RESPONSE_TEMPLATE, TEMPLATE_PATH, render
from demo_model.mixture import draw

VOCAB_SIZE = 2048
MAX_LENGTH = 8192


def _corpus(seed: int, samples: int) -> Iterator[str]:
    rng = Random(f"tokenizer:{seed}")
    for _ in range(samples):
        sample = draw(rng, long_tokens=None)
        text = render(sample.messages, sample.tools)
        for mark in CONTROL_TOKENS + MARKUP_TOKENS:
            text = text.replace(mark, "\n")
        yield text


def build_tokenizer(seed: int = 0, samples: int = 60_000) -> Tokenizer:
    """Train the BPE merges on `samples` generated chats; the result depends on `seed` alone."""
    tokenizer = Tokenizer(models.BPE())
    # One token a digit makes numbers line up, for arithmetic as for copying; without it "48213" and
    # "48 213" would share no tokens.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=20,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    # The markup takes the last ids, so that the vocabulary keeps its size with it.
    trainer.vocab_size = VOCAB_SIZE - len(MARKUP_TOKENS)
    tokenizer.train_from_iterator(_corpus(seed, samples), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer as transformers loads and saves it, with chat and response templates."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        response_template=RESPONSE_TEMPLATE,
    )
    wrapped.chat_template = TEMPLATE_PATH.read_text(encoding="utf-8").rstrip("\n")
    return wrapped
