"""A request that another tokenizer service had goes on where its deltas ended, and nothing comes twice."""

from pathlib import Path
from typing import Any

import pytest

from quire.packing import pack_int32, unpack_int32
from quire.v1 import tokenizer_pb2, types_pb2
from tests.tokenizer_svc.test_server import Stack, deltas, oracle, request, running
from tokenizer_svc.text_tokenizer import TextTokenizer

Delta = tokenizer_pb2.TextDelta
_LENGTH = 40


def received(found: list[Delta]) -> list[tokenizer_pb2.ResumedText]:
    """What a caller has that got these deltas."""
    sequences: dict[int, tokenizer_pb2.ResumedText] = {}
    for delta in found:
        resumed = sequences.setdefault(delta.sequence, tokenizer_pb2.ResumedText(sequence=delta.sequence))
        resumed.token_ids += delta.token_ids
        resumed.has_ended = resumed.has_ended or bool(delta.finish_reason)
    return list(sequences.values())


def shown(found: list[Delta], sequence: int) -> tuple[str, str, list[str], list[int]]:
    """All that these deltas show of a sequence."""
    own = [delta for delta in found if delta.sequence == sequence]
    return (
        "".join(delta.text for delta in own),
        "".join(delta.reasoning for delta in own),
        [call.arguments for delta in own for call in delta.tool_calls],
        [item.token_id for delta in own for item in delta.logprobs],
    )


def ends(found: list[Delta]) -> dict[int, tuple[int, str, int]]:
    """How each sequence ended."""
    return {
        delta.sequence: (delta.finish_reason, delta.stop_string, delta.usage.completion_tokens)
        for delta in found
        if delta.finish_reason
    }


async def check_every_cut(stack: Stack, fields: dict[str, Any]) -> None:
    whole = await deltas(stack, request(_LENGTH, **fields))
    assert sum(delta.num_tokens for delta in whole) == sum(len(delta.token_ids) for delta in whole) // 4
    for cut in range(0, len(whole), 3):
        rest = await deltas(stack, request(_LENGTH, **fields, resumed=received(whole[:cut])))
        for sequence in range(fields.get("n", 1)):
            assert shown(whole[:cut] + rest, sequence) == shown(whole, sequence)
        assert ends(whole[:cut] + rest) == ends(whole)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"echo": True},
        {"n": 3},
        {"return_token_ids": True, "sampling": types_pb2.SamplingParams(logprobs=1)},
        {"stop": ["no such text", "\n\n\n\n"]},
        {
            "text": None,
            "chat": tokenizer_pb2.ChatPrompt(messages_json='[{"role": "user", "content": "Hi"}]'),
            "parse_response": True,
            "skip_special_tokens": False,
        },
    ],
    ids=["plain", "echo", "several", "log-probabilities", "stop strings", "parsed"],
)
async def test_wherever_a_stream_breaks_its_rest_is_what_was_missing(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with running(tmp_path) as stack:
        await check_every_cut(stack, fields)


async def test_a_stop_string_counts_from_what_came_before(tmp_path: Path, byte_level: TextTokenizer) -> None:
    text = byte_level.decode(oracle(byte_level, _LENGTH), skip_special_tokens=True)
    async with running(tmp_path) as stack:
        await check_every_cut(stack, {"stop": [text[20:24]]})
        await check_every_cut(stack, {"stop": [text[20:24]], "include_stop_str_in_output": True})


async def test_what_had_come_to_its_stop_string_ends_at_once(
    tmp_path: Path, byte_level: TextTokenizer
) -> None:
    tokens = oracle(byte_level, _LENGTH)
    stop = byte_level.decode(tokens, skip_special_tokens=True)[20:24]
    async with running(tmp_path) as stack:
        whole = await deltas(stack, request(_LENGTH, stop=[stop]))
        (end,) = ends(whole).values()
        resumed = tokenizer_pb2.ResumedText(token_ids=pack_int32(tokens[: end[2]]))
        computed = stack.worker.rows.tokens_computed
        rest = await deltas(stack, request(_LENGTH, stop=[stop], resumed=[resumed]))
        assert stack.worker.rows.tokens_computed == computed
    assert (ends(rest)[0], shown(rest, 0)[0]) == (end, "")


async def test_what_goes_on_elsewhere_is_one_request_in_the_ledger(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        whole = await deltas(stack, request(_LENGTH, ledger_id="not asked for"))
        for _ in range(2):
            await deltas(stack, request(_LENGTH, ledger_id="one", resumed=received(whole[:5])))
        await stack.scheduler._settlement.flush()
        marks = await stack.scheduler._redis.keys("quire:settled:*")
    named = [bytes(mark) for mark in marks if b"quire:settled:one:" in bytes(mark)]
    assert (len(marks), named) == (2, [b"quire:settled:one:0"])


async def test_the_tokens_of_a_long_output_are_read_again_in_a_thread(
    tmp_path: Path, byte_level: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = oracle(byte_level, 100)
    async with running(tmp_path) as stack:
        is_cheap: list[bool] = []
        call = stack.tokenizer._generation.call

        async def noted(cheap: bool, function: Any) -> Any:
            is_cheap.append(cheap)
            return await call(cheap, function)

        monkeypatch.setattr(stack.tokenizer._generation, "call", noted)
        monkeypatch.setattr("tokenizer_svc.generation._MANY_TOKENS", 50)
        resumed = tokenizer_pb2.ResumedText(token_ids=pack_int32(tokens[:60]))
        rest = await deltas(stack, request(100, resumed=[resumed]))
    assert is_cheap == [True, False]
    assert [token for delta in rest for token in unpack_int32(delta.token_ids).tolist()] == tokens[60:]
