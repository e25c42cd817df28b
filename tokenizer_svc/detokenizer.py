"""Incremental detokenization of one sequence: whole characters only, and in the end exactly the full decode."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from tokenizer_svc.text_tokenizer import REPLACEMENT, TextTokenizer

# Enough for any decoder's look-back (leading spaces, byte fallback).
_CONTEXT_TOKENS = 6
# A context that begins inside a run of bytes decodes to nonsense; one of these begins before it.
_PROMPT_CONTEXTS = (_CONTEXT_TOKENS, 16, 64)


class Detokenizer:
    """Text of a growing list of tokens.

    The end of the prompt is given as context, because decoders treat the first token of a text differently (a
    leading space, for one). A prompt that ends inside a character gives none: its bytes are not ours to show.
    """

    def __init__(
        self, tokenizer: TextTokenizer, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        context = self._context(prompt_token_ids)
        self._shown = context
        """Tokens before `_pending`, as many as the decoder looks back."""
        self._pending: list[int] = []
        """Tokens whose text is not out yet."""
        self._stream = DecodeStream(ids=context, skip_special_tokens=skip_special_tokens)

    def _context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        for size in _PROMPT_CONTEXTS:
            context = list(prompt_token_ids[-size:])
            text = self._tokenizer.decode(context, skip_special_tokens=self._skip)
            if not text.endswith(REPLACEMENT):
                return context
        return []

    def push(self, token_ids: list[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete.

        The same text has come after the same tokens, however they were grouped.
        """
        return "".join([self._push_one(token) for token in token_ids])

    def _push_one(self, token: int) -> str:
        try:
            text = self._stream.step(self._tokenizer.rust, token)
        except Exception:  # the library's only exception type: its look-back met text that it cannot extend
            return self._restart(token)
        if text is None:
            self._pending.append(token)
            return ""
        self._shown = [*self._shown, *self._pending, token][-_CONTEXT_TOKENS:]
        self._pending = []
        return str(text)

    def flush(self) -> str:
        """What is left at the end: incomplete characters as replacement characters, as a full decode shows them."""
        if not self._pending:
            return ""
        text = self._difference(self._pending)
        self._pending = []
        return text

    def _restart(self, token: int) -> str:
        text = self._difference([*self._pending, token])
        self._pending, self._shown = [], []
        self._stream = DecodeStream(skip_special_tokens=self._skip)
        return text

    def _difference(self, token_ids: list[int]) -> str:
        """Text of `token_ids` after what was shown."""
        before = self._tokenizer.decode(self._shown, skip_special_tokens=self._skip)
        whole = self._tokenizer.decode(self._shown + token_ids, skip_special_tokens=self._skip)
        if whole.startswith(before):
            return whole[len(before) :]
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)
