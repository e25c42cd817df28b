"""Prompts for `quire bench serve`: random token ids, or conversations of a ShareGPT-format file."""

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from quire.bench.workloads import Item, Workload, fixed
from quire.errors import InvalidRequest

# Those that vLLM's benchmark leaves out, so that figures on the same file compare.
_MIN_TOKENS, _MAX_PROMPT_TOKENS, _MAX_TOTAL_TOKENS = 4, 1024, 2048

Tokenize = Callable[[str], Awaitable[list[int]]]


def random_items(count: int, prompt_len: int, output_len: int, vocab_size: int, seed: int) -> list[Item]:
    """Prompts of one length that share nothing."""
    return Workload("", fixed(count, prompt_len, output_len, seed)).within(vocab_size).items


def read_conversations(path: Path) -> list[tuple[str, str]]:
    """First question and first answer of each conversation. Raises InvalidRequest for a file of another format."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        turns = [entry.get("conversations") or entry.get("conversation") or [] for entry in document]
        return [(turn[0]["value"], turn[1]["value"]) for turn in turns if len(turn) >= 2]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidRequest(
            f"{path} is not in ShareGPT's format, a list of {{conversations: [{{from, value}}]}}: {error!r}",
            param="dataset",
        ) from None


async def sampled_items(
    conversations: Sequence[tuple[str, str]], count: int, tokenize: Tokenize, seed: int
) -> list[Item]:
    """`count` conversations in random order, as often as it takes, each to run to the length of its own answer.

    Raises InvalidRequest where no conversation has a measured length (prompts of 4 to 1,024 tokens, and 2,048 in all).
    """
    order = list(conversations)
    random.Random(seed).shuffle(order)
    items: list[Item] = []
    for question, answer in order:
        if len(items) == count:
            break
        prompt, output = await tokenize(question), await tokenize(answer)
        is_long_enough = min(len(prompt), len(output)) >= _MIN_TOKENS
        if (
            is_long_enough
            and len(prompt) <= _MAX_PROMPT_TOKENS
            and len(prompt) + len(output) <= _MAX_TOTAL_TOKENS
        ):
            items.append(Item(prompt, len(output)))
    if not items:
        raise InvalidRequest("no conversation of the dataset has a length that is measured", param="dataset")
    return [items[number % len(items)] for number in range(count)]
