"""Streamed text is whole characters, and put together exactly what a full decode shows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.text_tokenizer import REPLACEMENT, TextTokenizer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def streamed(
    tokenizer: TextTokenizer, prompt: list[int], parts: list[list[int]], *, skip: bool = True
) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return [*(detokenizer.push(part) for part in parts), detokenizer.flush()]


def after(tokenizer: TextTokenizer, prompt: list[int], output: list[int], *, skip: bool = True) -> str:
    """What the output adds to the prompt's text."""
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    return tokenizer.decode(prompt + output, skip_special_tokens=skip)[len(before) :]


def split(tokens: list[int], cuts: list[int]) -> list[list[int]]:
    """Cut into parts of the given sizes, over and over."""
    parts, start = [], 0
    while start < len(tokens):
        size = cuts[len(parts) % len(cuts)]
        parts.append(tokens[start : start + size])
        start += size
    return parts


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_text_survives_the_stream(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)

    @settings(max_examples=200, deadline=None)
    @given(prompt=texts, text=texts, cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
    def holds(prompt: str, text: str, cuts: list[int]) -> None:
        before = tokenizer.encode(prompt, add_special_tokens=False)
        output = tokenizer.encode(text, add_special_tokens=False)
        parts = streamed(tokenizer, before, split(output, cuts))
        assert "".join(parts) == after(tokenizer, before, output)

    holds()


def test_any_tokens_give_what_a_full_decode_gives(byte_level: TextTokenizer) -> None:
    """Random tokens are mostly broken characters: the worst case for a stream."""

    @settings(max_examples=300, deadline=None)
    @given(
        output=st.lists(st.integers(0, byte_level.vocab_size - 1), max_size=25),
        cuts=st.lists(st.integers(1, 3), min_size=1, max_size=4),
        skip=st.booleans(),
    )
    def holds(output: list[int], cuts: list[int], skip: bool) -> None:
        parts = streamed(byte_level, [], split(output, cuts), skip=skip)
        assert "".join(parts) == byte_level.decode(output, skip_special_tokens=skip)

    holds()


def test_the_same_text_has_come_after_the_same_tokens_however_they_were_grouped(
    byte_level: TextTokenizer,
) -> None:
    @settings(max_examples=200, deadline=None)
    @given(
        output=st.lists(st.integers(0, byte_level.vocab_size - 1), max_size=25),
        cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    )
    def holds(output: list[int], cuts: list[int]) -> None:
        grouped = Detokenizer(byte_level, [], skip_special_tokens=True)
        single = Detokenizer(byte_level, [], skip_special_tokens=True)
        for part in split(output, cuts):
            assert grouped.push(part) == "".join(single.push([token]) for token in part)

    holds()


def test_no_part_ends_inside_a_character(byte_level: TextTokenizer) -> None:
    output = byte_level.encode("a 👩‍👩‍👧 é 日本 z", add_special_tokens=False)
    parts = streamed(byte_level, [], [[token] for token in output])
    assert "".join(parts) == "a 👩‍👩‍👧 é 日本 z"
    assert not any(REPLACEMENT in part for part in parts)


def test_a_character_that_never_ends_is_shown_as_the_full_decode_shows_it(byte_level: TextTokenizer) -> None:
    output = byte_level.encode("ok 👍", add_special_tokens=False)[:-1]
    parts = streamed(byte_level, [], [[token] for token in output])
    assert "".join(parts) == byte_level.decode(output, skip_special_tokens=True)
    assert parts[-1].endswith(REPLACEMENT)


def test_a_prompt_that_ends_inside_a_character_does_not_leak(byte_level: TextTokenizer) -> None:
    prompt = byte_level.encode("secret words 👍", add_special_tokens=False)[:-1]
    parts = streamed(
        byte_level, prompt, [[token] for token in byte_level.encode("fine", add_special_tokens=False)]
    )
    assert "secret" not in "".join(parts)
    assert "".join(parts).endswith("fine")


def test_special_tokens_are_left_out_or_kept(byte_level: TextTokenizer) -> None:
    output = byte_level.encode("a<|im_end|>b", add_special_tokens=False)
    assert "".join(streamed(byte_level, [], [output])) == "ab"
    assert "".join(streamed(byte_level, [], [output], skip=False)) == "a<|im_end|>b"
