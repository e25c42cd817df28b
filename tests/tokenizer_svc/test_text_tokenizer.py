"""Encoding is transformers' own, and leaves the interpreter to the others while it runs."""

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_svc.text_tokenizer import TextTokenizer


def test_ids_are_those_of_transformers(byte_level: TextTokenizer, sentencepiece: TextTokenizer) -> None:
    @settings(max_examples=100, deadline=None)
    @given(text=st.text(st.characters(exclude_categories=["Cs"])), add_special_tokens=st.booleans())
    def holds(text: str, add_special_tokens: bool) -> None:
        for tokenizer in (byte_level, sentencepiece):
            wanted = tokenizer.pretrained(text, add_special_tokens=add_special_tokens)["input_ids"]
            assert tokenizer.encode(text, add_special_tokens=add_special_tokens) == wanted

    holds()


def test_other_threads_run_while_a_long_prompt_is_encoded(byte_level: TextTokenizer) -> None:
    """Were the interpreter's lock held, this thread would stand still from `begun` to `done`."""
    begun, done = threading.Event(), threading.Event()

    def encode() -> None:
        begun.set()
        byte_level.encode("word " * 200_000, add_special_tokens=False)
        done.set()

    worker = threading.Thread(target=encode)
    worker.start()
    begun.wait()
    turns = 0
    while not done.is_set():
        turns += 1
        threading.Event().wait(0.001)
    worker.join()
    assert turns > 10
