"""A worker's row table without a model: it checks every command and answers with tokens that prove the KV.

In place of keys and values, a block keeps for each position a hash of all tokens up to it:
h[p] = h[p-1] * A + token[p] + 1 (mod 2**64). The next token is a function of the last hash, which is read
back through the block table as attention would. So a block that was shared wrongly, given to two rows or freed
early either breaks a check or changes the tokens; and a sequence's tokens depend on its own prompt alone.
"""

import numpy as np
from numpy.typing import NDArray

from quire.packing import pack_float32, pack_int32, unpack_int32, unpack_uint32
from quire.v1 import types_pb2, worker_pb2

_A = 0x5851F42D4C957F2D
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_MODULUS = 2**64


class ProtocolViolation(Exception):
    """A command that the step protocol does not allow; the message says what and where."""


def expected_tokens(prompt: list[int], num_tokens: int, vocab_size: int) -> list[int]:
    """The first `num_tokens` tokens that follow `prompt`, by the definition: the oracle of tests."""
    last_hash, output = 0, []
    for token in prompt:
        last_hash = (last_hash * _A + token + 1) % _MODULUS
    for _ in range(num_tokens):
        output.append(int(_next_tokens(np.asarray([last_hash], np.uint64), vocab_size)[0]))
        last_hash = (last_hash * _A + output[-1] + 1) % _MODULUS
    return output


def _next_tokens(hashes: NDArray[np.uint64], vocab_size: int) -> NDArray[np.int32]:
    mixed = (hashes ^ (hashes >> np.uint64(31))) * _MIX
    return ((mixed >> np.uint64(33)) % np.uint64(vocab_size)).astype(np.int32)


def _check(holds: object, problem: str) -> None:
    if not holds:
        raise ProtocolViolation(problem)


class InstantRows:
    """Executes StepCommands for one description of a worker; columns are [max_rows]."""

    def __init__(self, description: worker_pb2.WorkerDescription) -> None:
        self.description = description
        self._vocab_size = description.model.vocab_size
        self._block_size = description.block_size
        max_len = description.model.max_model_len
        self._hashes = np.zeros(description.num_blocks * self._block_size, np.uint64)
        # A**1 .. A**n and their inverses, so that the hashes of a chunk are one cumulative sum.
        self._powers = np.cumprod(np.full(max_len + 1, _A, np.uint64))
        self._inverse_powers = np.cumprod(np.full(max_len + 1, pow(_A, -1, _MODULUS), np.uint64))
        self.tokens_computed = 0
        self.steps_executed = 0
        self.clear()

    def clear(self) -> None:
        """Remove all rows; blocks keep their content."""
        max_rows = self.description.max_rows
        blocks_per_row = -(-self.description.model.max_model_len // self._block_size) + 1
        self.used = np.zeros(max_rows, np.bool_)
        self.block_refs = np.zeros(self.description.num_blocks, np.int64)
        self.last_step_id = 0
        self._epochs = np.zeros(max_rows, np.uint32)
        self._decoding = np.zeros(max_rows, np.bool_)
        self._done = np.zeros(max_rows, np.bool_)
        self._num_tokens = np.zeros(max_rows, np.int64)
        self._num_computed = np.zeros(max_rows, np.int64)
        self._max_tokens = np.zeros(max_rows, np.int64)
        self._stops_from = np.zeros(max_rows, np.int64)  # tokens a row holds when stop tokens begin to count
        self._last_tokens = np.zeros(max_rows, np.int32)
        self._tables = np.full((max_rows, blocks_per_row), -1, np.int64)
        self._num_blocks = np.zeros(max_rows, np.int64)
        self._stops = np.full((max_rows, 1), -1, np.int32)
        self._prompts: dict[int, NDArray[np.int32]] = {}
        self._num_logprobs: dict[int, int] = {}

    def execute(self, command: worker_pb2.StepCommand) -> worker_pb2.StepResult:
        """Run a command. Raises ProtocolViolation; the state is then undefined until `clear`."""
        _check(command.step_id == self.last_step_id + 1, f"step {command.step_id} after {self.last_step_id}")
        self.last_step_id = command.step_id
        _check(command.decode_steps <= self.description.max_decode_steps, "too many decode_steps")
        for row in unpack_uint32(command.remove_rows).tolist():
            self._remove(row)
        for added in command.add_rows:
            self._add(added)
        if command.append_rows:
            self._append(command)
        before = self.tokens_computed
        sampled = [self._mixed_step(command)]
        sampled += [
            self._decode(np.flatnonzero(self._decoding & ~self._done)) for _ in range(1, command.decode_steps)
        ]
        return self._result(command.step_id, sampled, self.tokens_computed - before)

    def checksums(self, blocks: NDArray[np.int32]) -> NDArray[np.uint64]:
        """A sum over what each of these blocks holds, weighted by place."""
        places = np.arange(self._block_size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        held: NDArray[np.uint64] = self._hashes.reshape(-1, self._block_size)[blocks]
        return (held * places).sum(axis=1, dtype=np.uint64)

    # -- the delta

    def _remove(self, row: int) -> None:
        _check(row < len(self.used) and self.used[row], f"remove: row {row} is not in use")
        self.block_refs[self._tables[row, : self._num_blocks[row]]] -= 1
        self.used[row] = self._decoding[row] = False
        self._prompts.pop(row, None)
        self._num_logprobs.pop(row, None)

    def _add(self, added: worker_pb2.RowAdd) -> None:
        row, tokens = added.row, unpack_int32(added.token_ids)
        _check(row < len(self.used) and not self.used[row], f"add: row {row} is in use or does not exist")
        _check(0 < added.num_prompt_tokens <= len(tokens), f"add: row {row} has no prompt")
        _check(len(tokens) < added.max_total_tokens, f"add: row {row} is at its limit already")
        _check(added.max_total_tokens <= self.description.model.max_model_len, f"add: row {row} is too long")
        _check(added.num_computed_tokens < len(tokens), f"add: row {row} has nothing to compute")
        _check(added.sampling.HasField("seed"), f"add: row {row} has no seed")
        blocks, num_cached = unpack_int32(added.block_ids), added.num_computed_tokens
        num_shared = num_cached // self._block_size
        _check(len(set(blocks.tolist())) == len(blocks), f"add: row {row} names a block twice")
        self._check_fresh(blocks[num_shared:], f"add: row {row}")
        self.used[row], self._epochs[row] = True, added.epoch
        self._decoding[row] = self._done[row] = False
        self._tables[row, : len(blocks)] = blocks
        self._num_blocks[row] = len(blocks)
        self.block_refs[blocks] += 1
        self._num_tokens[row], self._num_computed[row] = len(tokens), num_cached
        self._max_tokens[row] = added.max_total_tokens
        self._stops_from[row] = added.num_prompt_tokens + added.sampling.min_tokens
        self._last_tokens[row] = tokens[-1]
        self._prompts[row] = tokens
        if num_cached:
            positions = np.arange(num_cached)
            found = self._hashes[self._slots(np.full(num_cached, row), positions)]
            true = self._chain(np.uint64(0), tokens[:num_cached])
            _check((found == true).all(), f"add: row {row} shares blocks that hold another prefix")
        if added.sampling.HasField("logprobs"):
            self._num_logprobs[row] = added.sampling.logprobs
        self._set_stops(row, unpack_int32(added.sampling.stop_token_ids))

    def _set_stops(self, row: int, stops: NDArray[np.int32]) -> None:
        if len(stops) > self._stops.shape[1]:
            wider = np.full((len(self.used), len(stops)), -1, np.int32)
            wider[:, : self._stops.shape[1]] = self._stops
            self._stops = wider
        self._stops[row] = -1
        self._stops[row, : len(stops)] = stops

    def _append(self, command: worker_pb2.StepCommand) -> None:
        rows, counts = unpack_uint32(command.append_rows), unpack_uint32(command.append_num_blocks)
        blocks = unpack_int32(command.append_block_ids)
        _check(
            len(rows) == len(counts) and len(blocks) == counts.sum(), "append: columns have different lengths"
        )
        _check(len(set(rows.tolist())) == len(rows), "append: a row occurs twice")
        _check(len(set(blocks.tolist())) == len(blocks), "append: a block occurs twice")
        self._check_fresh(blocks, "append")
        start = 0
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
            _check(row < len(self.used) and self.used[row], f"append: row {row} is not in use")
            length = int(self._num_blocks[row])
            _check(length + count <= self._tables.shape[1], f"append: the table of row {row} is full")
            self._tables[row, length : length + count] = blocks[start : start + count]
            self._num_blocks[row] += count
            start += count
        self.block_refs[blocks] += 1

    def _check_fresh(self, blocks: NDArray[np.integer], where: str) -> None:
        inside = (blocks >= 0) & (blocks < len(self.block_refs))
        _check(inside.all(), f"{where}: a block does not exist")
        _check((self.block_refs[blocks] == 0).all(), f"{where}: a block to be written is another row's")

    # -- the steps

    def _mixed_step(self, command: worker_pb2.StepCommand) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        rows, counts = unpack_uint32(command.prefill_rows), unpack_uint32(command.prefill_num_tokens)
        decoding = self._decoding & ~self._done if command.decode_steps else np.zeros_like(self._decoding)
        live = np.flatnonzero(decoding)
        _check(len(rows) == len(counts), "prefill: columns have different lengths")
        _check(len(set(rows.tolist())) == len(rows), "prefill: a row occurs twice")
        num_positions = int(counts.sum()) + len(live)
        _check(num_positions <= self.description.max_step_tokens, f"{num_positions} positions in one step")
        self.steps_executed += command.decode_steps or bool(len(rows))
        decoded_rows, decoded = self._decode(live)
        finished = [row for row, n in zip(rows.tolist(), counts.tolist(), strict=True) if self._chunk(row, n)]
        ended = np.asarray(finished, np.intp)
        first = self._sample(ended)
        return np.concatenate([decoded_rows, ended]), np.concatenate([decoded, first])

    def _chunk(self, row: int, count: int) -> bool:
        """Compute `count` prompt positions of a row; returns whether its prompt is then computed."""
        _check(
            row < len(self.used) and self.used[row] and row in self._prompts, f"prefill: row {row} has none"
        )
        start, prompt = int(self._num_computed[row]), self._prompts[row]
        _check(0 < count <= len(prompt) - start, f"prefill: row {row} has not {count} tokens left")
        slots = self._slots(np.full(count, row), np.arange(start, start + count))
        before = self._hashes[self._slots(np.asarray([row]), np.asarray([start - 1]))[0]] if start else 0
        self._hashes[slots] = self._chain(np.uint64(before), prompt[start : start + count])
        self._num_computed[row] += count
        self.tokens_computed += count
        if start + count < len(prompt):
            return False
        del self._prompts[row]
        self._decoding[row] = True
        return True

    def _decode(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        if len(rows) == 0:
            return rows, np.zeros(0, np.int32)
        positions = self._num_computed[rows]
        before = self._hashes[self._slots(rows, positions - 1)]
        tokens = self._last_tokens[rows].astype(np.uint64)
        self._hashes[self._slots(rows, positions)] = before * np.uint64(_A) + tokens + np.uint64(1)
        self._num_computed[rows] += 1
        self.tokens_computed += len(rows)
        return rows, self._sample(rows)

    def _sample(self, rows: NDArray[np.intp]) -> NDArray[np.int32]:
        hashes = self._hashes[self._slots(rows, self._num_computed[rows] - 1)]
        tokens = _next_tokens(hashes, self._vocab_size)
        self._last_tokens[rows] = tokens
        self._num_tokens[rows] += 1
        stopped = (tokens[:, None] == self._stops[rows]).any(axis=1)
        stopped &= self._num_tokens[rows] > self._stops_from[rows]
        self._done[rows] = stopped | (self._num_tokens[rows] >= self._max_tokens[rows])
        return tokens

    def _slots(self, rows: NDArray[np.integer], positions: NDArray[np.integer]) -> NDArray[np.int64]:
        columns = positions // self._block_size
        short = columns >= self._num_blocks[rows]
        if short.any():
            row, position = int(rows[short][0]), int(positions[short][0])
            raise ProtocolViolation(f"row {row} has no block for position {position}")
        blocks: NDArray[np.int64] = self._tables[rows, columns]
        return blocks * self._block_size + positions % self._block_size

    def _chain(self, before: np.uint64, tokens: NDArray[np.int32]) -> NDArray[np.uint64]:
        n = len(tokens)
        terms = (tokens.astype(np.uint64) + np.uint64(1)) * self._inverse_powers[:n]
        terms[:1] += before  # as an array, which wraps without a warning
        chain: NDArray[np.uint64] = np.cumsum(terms, dtype=np.uint64) * self._powers[:n]
        return chain

    # -- the result

    def _result(
        self, step_id: int, sampled: list[tuple[NDArray[np.intp], NDArray[np.int32]]], computed: int
    ) -> worker_pb2.StepResult:
        rows, tokens = sampled[0]
        result = worker_pb2.StepResult(step_id=step_id, tokens_computed=computed)
        if len(sampled) > 1:
            every_row = np.concatenate([part[0] for part in sampled])
            tokens = np.concatenate([part[1] for part in sampled])[np.argsort(every_row, kind="stable")]
            num_sampled = np.bincount(every_row)
            rows = np.flatnonzero(num_sampled)
            result.num_tokens = num_sampled[rows].astype(np.uint32).tobytes()
        stopped = (self._last_tokens[rows, None] == self._stops[rows]).any(axis=1)
        stopped &= self._num_tokens[rows] > self._stops_from[rows]
        reasons = np.where(stopped, types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH)
        result.rows = rows.astype(np.uint32).tobytes()
        result.epochs = self._epochs[rows].tobytes()
        result.token_ids = tokens.tobytes()
        result.finish_reasons = np.where(self._done[rows], reasons, 0).astype(np.uint8).tobytes()
        if self._num_logprobs:
            self._add_logprobs(result, rows, tokens)
        return result

    def _add_logprobs(
        self, result: worker_pb2.StepResult, rows: NDArray[np.intp], tokens: NDArray[np.int32]
    ) -> None:
        """Every chosen token gets -1; its rivals are itself and the ids after it, at -1, -2, …"""
        counts = unpack_uint32(result.num_tokens) if result.num_tokens else np.ones(len(rows), np.uint32)
        ends = np.cumsum(counts)
        for row, count, end in zip(rows.tolist(), counts.tolist(), ends.tolist(), strict=True):
            if row not in self._num_logprobs:
                continue
            own, num_top = tokens[end - count : end], self._num_logprobs[row]
            top = (own[:, None] + np.arange(num_top)) % self._vocab_size
            logprobs = types_pb2.Logprobs(
                token_logprobs=pack_float32(np.full(count, -1.0)),
                top_token_ids=pack_int32(top.reshape(-1)),
                top_logprobs=pack_float32(np.tile(-1.0 - np.arange(num_top), count)),
            )
            result.logprobs.add(row=row, epoch=int(self._epochs[row]), logprobs=logprobs)
