"""`usage` is the ledger: exact over the turns of a chat, and for choices that are computed and not returned."""

import openai
import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e

BLOCK_SIZE = 16
QUESTIONS = (
    "What is a quire, and of how many sheets of parchment was it folded?",
    "And who wrote on its pages, with which ink, and for whom?",
    "How were several of them sewn into a book?",
    "Thank you.",
)


def tokens_of(client: openai.OpenAI, server: Server, messages: list[dict[str, str]]) -> list[int]:
    """The prompt that the chat template makes, in tokens."""
    answer = client.post(f"{server.url}/tokenize", body={"messages": messages}, cast_to=dict[str, object])
    tokens = answer["tokens"]
    assert isinstance(tokens, list)
    return tokens


def cached_blocks(prompt: list[int], computed: list[list[int]]) -> int:
    """Tokens in full blocks that earlier turns have computed; the prompt's last token is always computed."""
    longest = 0
    for tokens in computed:
        common = next(
            (i for i, (a, b) in enumerate(zip(prompt, tokens, strict=False)) if a != b), len(tokens)
        )
        longest = max(longest, min(common, len(prompt) - 1))
    return longest // BLOCK_SIZE * BLOCK_SIZE


def test_cached_tokens_are_exact_over_the_turns_of_a_chat(client: openai.OpenAI, server: Server) -> None:
    messages: list[dict[str, str]] = []
    computed: list[list[int]] = []
    hits = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        prompt = tokens_of(client, server, messages)
        answer = client.chat.completions.create(
            model="tiny",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=20,
            temperature=0,
            extra_body={"cache_salt": "turns", "return_token_ids": True, "ignore_eos": True},
        )
        usage, choice = answer.usage, answer.choices[0]
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), 20)
        assert usage.prompt_tokens_details.cached_tokens == cached_blocks(prompt, computed)
        hits.append(cached_blocks(prompt, computed))
        assert choice.model_extra is not None
        # The last token's keys and values are never computed.
        computed.append([*prompt, *choice.model_extra["token_ids"][:-1]])
        messages.append({"role": "assistant", "content": choice.message.content or ""})
    assert hits[0] == 0
    assert hits[1:] == sorted(set(hits[1:])), "each turn finds more than the one before"
    assert hits[1] > 0


def test_best_of_returns_some_choices_and_counts_all(client: openai.OpenAI) -> None:
    arguments = {"model": "tiny", "prompt": "Which of these is best?", "max_tokens": 6, "seed": 3}
    every = client.completions.create(**arguments, n=4, logprobs=0)  # type: ignore[call-overload]
    best = client.completions.create(**arguments, n=2, best_of=4)  # type: ignore[call-overload]

    def mean(choice: openai.types.CompletionChoice) -> float:
        assert choice.logprobs is not None
        values = [value for value in choice.logprobs.token_logprobs or () if value is not None]
        return sum(values) / len(values)

    ranked = sorted(every.choices, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == every.usage.completion_tokens
    assert best.usage.prompt_tokens == every.usage.prompt_tokens
    assert all(choice.logprobs is None for choice in best.choices)
