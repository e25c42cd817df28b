"""Token counts of one API call, over all of its choices."""

from typing import Any

from gateway.answer import ChoiceDelta
from quire.v1 import types_pb2


class UsageTotals:
    """Counts as they are known so far; exact once every choice has ended.

    A prompt with several sequences is counted once.
    """

    def __init__(self, num_sequences: int) -> None:
        self._num_sequences = num_sequences
        self._prompt_tokens: dict[int, int] = {}
        self._completion_tokens: dict[int, int] = {}
        self._final: dict[int, types_pb2.Usage] = {}

    def note(self, delta: ChoiceDelta) -> None:
        """Take in the counts of `delta`."""
        if delta.prompt_tokens:
            self._prompt_tokens[delta.index // self._num_sequences] = delta.prompt_tokens
        self._completion_tokens[delta.index] = self._completion_tokens.get(delta.index, 0) + delta.num_tokens
        if delta.usage is not None:
            self._final[delta.index] = delta.usage
            self._prompt_tokens[delta.index // self._num_sequences] = delta.usage.prompt_tokens
            self._completion_tokens[delta.index] = delta.usage.completion_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(self._prompt_tokens.values())

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(self._completion_tokens.values())

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache, of each prompt's first sequence."""
        return sum(
            usage.cached_tokens for index, usage in self._final.items() if index % self._num_sequences == 0
        )

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning, of all choices."""
        return sum(usage.reasoning_tokens for usage in self._final.values())

    def longest(self) -> types_pb2.Usage | None:
        """The ledger of the choice with most tokens."""
        return max(self._final.values(), key=lambda usage: usage.completion_tokens, default=None)

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        prompt_tokens, completion_tokens = self.prompt_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }
