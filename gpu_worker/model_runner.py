"""Executes StepCommands: applies the delta to rows, runs the steps, and says what was sampled.

Order and meaning of a command are those of `StepCommand` in protos/quire/v1/worker.proto. After a command that breaks
the protocol the rows are in no defined state: the caller ends the stream, and `clear`s them for the next one.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from gpu_worker.kv_cache import KvCache
from gpu_worker.models.decoder import AttentionInputs, Decoder
from gpu_worker.row_table import RowTable
from gpu_worker.sampler import NO_LOGPROBS, Sampler
from gpu_worker.step_output import SampledStep, StepOutput
from kernels.logprobs import logprobs
from quire.errors import Internal, InvalidRequest, QuireError
from quire.packing import unpack_int32, unpack_uint32
from quire.v1 import types_pb2, worker_pb2


@dataclass(slots=True)
class Batch:
    """The tokens of one forward pass, row after row."""

    rows: list[int] = field(default_factory=list)
    token_ids: list[torch.Tensor] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Position of each row's first token."""
    sampled: list[int] = field(default_factory=list)
    """Indices into `rows` of those that sample a token after this pass."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A command's columns, unpacked and checked."""

    remove_rows: list[int]
    append_rows: list[int]
    append_counts: list[int]
    append_block_ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    copy_from: torch.Tensor
    copy_to: torch.Tensor
    prefill_rows: list[int]
    prefill_counts: list[int]


class ModelRunner:
    """Owns the model, the KV cache and the rows of one device. Not for use by two threads."""

    def __init__(
        self, decoder: Decoder, cache: KvCache, *, limits: worker_pb2.WorkerDescription, device: torch.device
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._limits = limits
        self._device = device
        max_len = limits.model.max_model_len
        self.rows = RowTable(limits.max_rows, max_len, cache.num_blocks, cache.block_size, device)
        self._sampler = Sampler(limits.max_rows, decoder.config.vocab_size, limits.max_logprobs, device)
        self.steps_executed = 0
        self.tokens_computed = 0

    def clear(self) -> None:
        """Remove every row; blocks keep their content."""
        self.rows.clear()

    @torch.inference_mode()
    def execute(self, command: worker_pb2.StepCommand) -> worker_pb2.StepResult:
        """Run a command. Raises InvalidRequest if it breaks the protocol; `clear` comes next then."""
        started = time.perf_counter()
        delta = self._check(command)
        output = StepOutput(command.step_id, self.rows.epochs)
        before = self.tokens_computed
        self._apply(command, delta, output)
        self._check_blocks(delta, command.decode_steps)
        self._mixed_step(delta, command.decode_steps, output)
        for _ in range(1, command.decode_steps):
            self._decode_step(output)
        return output.result(self.tokens_computed - before, time.perf_counter() - started)

    # -- the delta

    def _check(self, command: worker_pb2.StepCommand) -> Delta:
        """Everything that can be known before the rows change."""
        if command.decode_steps > self._limits.max_decode_steps:
            raise InvalidRequest(f"decode_steps is at most {self._limits.max_decode_steps}")
        try:
            delta = Delta(
                remove_rows=unpack_uint32(command.remove_rows).tolist(),
                append_rows=unpack_uint32(command.append_rows).tolist(),
                append_counts=unpack_uint32(command.append_num_blocks).tolist(),
                append_block_ids=unpack_int32(command.append_block_ids),
                copy_from=torch.from_numpy(unpack_int32(command.copy_from_block_ids).astype(np.int64)),
                copy_to=torch.from_numpy(unpack_int32(command.copy_to_block_ids).astype(np.int64)),
                prefill_rows=unpack_uint32(command.prefill_rows).tolist(),
                prefill_counts=unpack_uint32(command.prefill_num_tokens).tolist(),
            )
        except ValueError:
            raise InvalidRequest("an array's length does not divide") from None
        self.rows.check_removable(delta.remove_rows)
        if len(delta.copy_from) != len(delta.copy_to):
            raise InvalidRequest("copy: the columns disagree")
        for blocks in (delta.copy_from, delta.copy_to):
            self.rows.check_blocks(blocks.tolist())
        self.rows.check_blocks(delta.append_block_ids.tolist())
        added = [item.row for item in command.add_rows]
        if len(set(added)) != len(added):
            raise InvalidRequest("add: a row is named twice")
        for item in command.add_rows:
            self.rows.check_addable(item, delta.remove_rows)
        return delta

    def _apply(self, command: worker_pb2.StepCommand, delta: Delta, output: StepOutput) -> None:
        for row in delta.remove_rows:
            self.rows.remove(row)
        if len(delta.copy_from):
            self._cache.copy_blocks(delta.copy_from.to(self._device), delta.copy_to.to(self._device))
        for added in command.add_rows:
            self._add_row(added, output)
        self.rows.check_appendable(delta.append_rows, delta.append_counts, len(delta.append_block_ids))
        start = 0
        for row, count in zip(delta.append_rows, delta.append_counts, strict=True):
            self.rows.append_blocks(row, delta.append_block_ids[start : start + count])
            start += count

    def _add_row(self, added: worker_pb2.RowAdd, output: StepOutput) -> None:
        """A row that cannot be sampled as asked fails alone."""
        token_ids = torch.from_numpy(unpack_int32(added.token_ids).astype(np.int64)).to(self._device)
        self.rows.add(added, token_ids)
        try:
            self._sampler.check(added)
            self._sampler.add(added, token_ids)
        except (QuireError, ValueError) as error:
            problem = error if isinstance(error, QuireError) else InvalidRequest(f"row {added.row}: {error}")
            self._fail(added.row, problem, output)

    def _fail(self, row: int, error: QuireError, output: StepOutput) -> None:
        self.rows.fail(row)
        output.add_error(row, error)

    # -- the steps

    def _check_blocks(self, delta: Delta, decode_steps: int) -> None:
        """Prompts and rows that decode have the blocks that their tokens need."""
        rows = self.rows
        rows.check_chunks(delta.prefill_rows, delta.prefill_counts)
        num_positions = sum(delta.prefill_counts) + (len(rows.decoding_rows()) if decode_steps else 0)
        if num_positions > self._limits.max_step_tokens:
            raise InvalidRequest(
                f"{num_positions} positions in a step of at most {self._limits.max_step_tokens}"
            )
        ending = [
            row
            for row, count in zip(delta.prefill_rows, delta.prefill_counts, strict=True)
            if rows.prompt_ends(row, count)
        ]
        rows.check_decode(decode_steps, ending)

    def _mixed_step(self, delta: Delta, decode_steps: int, output: StepOutput) -> None:
        batch = Batch()
        for row in self.rows.decoding_rows() if decode_steps else []:
            self._add_decode(batch, row)
        for row, count in zip(delta.prefill_rows, delta.prefill_counts, strict=True):
            tokens, start, ends = self.rows.take_chunk(row, count)
            if self.rows.failed[row]:
                continue
            if ends:
                batch.sampled.append(len(batch.rows))
            batch.rows.append(row)
            batch.token_ids.append(tokens)
            batch.starts.append(start)
        self._run(batch, output)

    def _decode_step(self, output: StepOutput) -> None:
        batch = Batch()
        for row in self.rows.decoding_rows():
            self._add_decode(batch, row)
        self._run(batch, output)

    def _add_decode(self, batch: Batch, row: int) -> None:
        batch.sampled.append(len(batch.rows))
        batch.rows.append(row)
        batch.token_ids.append(self.rows.last_token[row : row + 1])
        batch.starts.append(int(self.rows.num_issued[row]) - 1)

    def _run(self, batch: Batch, output: StepOutput) -> None:
        if not batch.rows:
            return
        lengths = [len(tokens) for tokens in batch.token_ids]
        inputs = self._inputs(batch, lengths)
        hidden = self._decoder.forward(torch.cat(batch.token_ids), inputs, self._cache)
        self.steps_executed += 1
        self.tokens_computed += sum(lengths)
        if batch.sampled:
            ends = np.cumsum(lengths)[batch.sampled] - 1
            rows = [batch.rows[index] for index in batch.sampled]
            self._sample(rows, self._decoder.logits(hidden[torch.from_numpy(ends).to(self._device)]), output)

    def _inputs(self, batch: Batch, lengths: list[int]) -> AttentionInputs:
        positions_of = [np.arange(start, start + n) for start, n in zip(batch.starts, lengths, strict=True)]
        positions = torch.from_numpy(np.concatenate(positions_of)).to(self._device)
        query_lens = torch.tensor(lengths, device=self._device)
        tables = self.rows.block_table[batch.rows]
        entries = torch.repeat_interleave(torch.arange(len(lengths), device=self._device), query_lens)
        block_size = self._cache.block_size
        slots = tables[entries, positions // block_size] * block_size + positions % block_size
        context_lens = torch.tensor(batch.starts, device=self._device) + query_lens
        return AttentionInputs(positions, slots, tables, query_lens, context_lens)

    def _sample(self, rows: list[int], logits: torch.Tensor, output: StepOutput) -> None:
        """Draw a token for each row, keep it in the row, and set the done flags of those that end by it."""
        is_bad = ~torch.isfinite(logits.sum(dim=-1))
        if bool(is_bad.any()):
            for entry in torch.nonzero(is_bad)[:, 0].tolist():
                self._fail(rows[entry], Internal("the model's output is not a number"), output)
            good = torch.nonzero(~is_bad)[:, 0]
            rows, logits = [rows[entry] for entry in good.tolist()], logits[good]
            if not rows:
                return
        table, index = self.rows, torch.tensor(rows, device=self._device)
        tokens = self._sampler.draw(rows, logits, table.num_tokens[index])
        num_tokens = table.num_tokens[index] + 1
        table.last_token[index], table.num_tokens[index] = tokens, num_tokens
        stopped = self._sampler.stopped(rows, tokens)
        at_limit = num_tokens >= table.max_total_tokens[index]
        table.done[index] = stopped | at_limit
        table.count_issued(rows)
        reasons = torch.where(
            stopped, types_pb2.FINISH_REASON_STOP, torch.where(at_limit, types_pb2.FINISH_REASON_LENGTH, 0)
        )
        step = SampledStep(rows, tokens.cpu().numpy(), reasons.cpu().numpy())
        num_top = int(self._sampler.num_logprobs[rows].max())
        if num_top > NO_LOGPROBS:
            chosen, top_ids, top = logprobs(logits, tokens, num_top)
            step.add_logprobs(self._sampler.num_logprobs[rows], chosen, top_ids, top)
        output.add(step)
