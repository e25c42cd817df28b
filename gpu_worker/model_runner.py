"""Executes StepCommands: applies the delta to rows, launches the steps, and lets go of them.

Order and meaning of a command are those of `StepCommand` in protos/quire/v1/worker.proto. Everything that a command
needs goes to the device in one copy, everything that it makes comes back in one; in between nothing waits for the
device, so commands queue up on a GPU. After a command that breaks the protocol the rows are in no defined state: the
caller ends the stream, and `clear`s them for the next one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.decode_graphs import DecodeGraphs
from gpu_worker.delta import Delta, unpack_delta
from gpu_worker.device_rows import DeviceRows, RowChanges
from gpu_worker.kv_cache import KvCache
from gpu_worker.launched_step import LaunchedStep
from gpu_worker.mixed_graphs import MixedGraphs, MixedSize
from gpu_worker.model_steps import EditedDraw, ModelSteps
from gpu_worker.models.decoder import Decoder
from gpu_worker.prefix_groups import PrefixFinder, PrefixGroups
from gpu_worker.row_sampling import DrawKind, DrawPlan, RowSampling
from gpu_worker.row_table import RowTable
from gpu_worker.sampler import Sampler
from gpu_worker.step_batch import StepBatch, lay_out
from gpu_worker.step_output import CommandOutline, RowFailure
from gpu_worker.step_slots import SlotRing
from quire.errors import InvalidRequest, QuireError
from quire.packing import unpack_int32
from quire.v1 import worker_pb2

# One that runs, two that wait on the device, one whose result is being read.
_SLOTS = 4
_DECODE_GRAPHS = 0.7
"""Share of the time for recording that decode steps take, roughly."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a command's delta means for the device."""

    changes: RowChanges
    failures: list[RowFailure] = field(default_factory=list)
    counted: list[worker_pb2.RowAdd] = field(default_factory=list)
    """Rows with penalties, whose tokens have to be counted."""


class _Recorded(NamedTuple):
    """As what a command's steps run; None where they are launched kernel by kernel."""

    decode: int | None
    """Rows of a decode step."""
    mixed: MixedSize | None
    groups: PrefixGroups | None
    """Of the rows of its decode steps."""


class ModelRunner:
    """Owns the model, the KV cache and the rows of one device. `launch` is for one thread."""

    def __init__(
        self, decoder: Decoder, cache: KvCache, *, limits: worker_pb2.WorkerDescription, device: torch.device
    ) -> None:
        self._cache = cache
        self.limits = limits
        max_rows, vocab_size = limits.max_rows, decoder.config.vocab_size
        self.rows = RowTable(max_rows, limits.model.max_model_len, cache.num_blocks, cache.block_size)
        self._sampling = RowSampling(max_rows, vocab_size, limits.max_logprobs)
        self._device_rows = DeviceRows(max_rows, self.rows.max_blocks, device)
        self._sampler = Sampler(self._device_rows, vocab_size)
        self._slots = SlotRing(_SLOTS, limits.max_decode_steps, max_rows, device)
        self._steps, shallow = (
            ModelSteps(each, cache, self._device_rows, self._sampler, self._slots.results)
            for each in (decoder, decoder.shallow())
        )
        self._graphs = DecodeGraphs(self._steps, shallow)
        self._prefixes = PrefixFinder(self.rows, decoder.config.num_heads, decoder.config.num_kv_heads)
        self._groups_on_device: PrefixGroups | None = None
        self._mixed_graphs = MixedGraphs(self._steps, shallow, self._device_rows.fill_row, device)
        self.steps_executed = 0

    def capture_graphs(self, on_progress: Callable[[float], None]) -> None:
        """Record steps, on a GPU; without it they are launched kernel by kernel. `on_progress` gets the share done."""
        limits = self.limits
        self._graphs.capture(limits.max_rows, lambda share: on_progress(share * _DECODE_GRAPHS))
        self._mixed_graphs.capture(
            limits.max_rows,
            limits.max_step_tokens,
            lambda share: on_progress(_DECODE_GRAPHS + share * (1 - _DECODE_GRAPHS)),
        )

    def rehearse(self) -> None:
        """Run what `capture_graphs` records, for its kernels' sake; leaves no row, and results that mean nothing."""
        self._graphs.rehearse(self.limits.max_rows)
        self._mixed_graphs.rehearse(self.limits.max_rows, self.limits.max_step_tokens)

    @property
    def num_graphs(self) -> int:
        """Steps recorded."""
        return len(self._graphs) + len(self._mixed_graphs)

    def clear(self) -> None:
        """Remove every row; blocks keep their content."""
        self.rows.clear()

    @torch.inference_mode()
    def launch(self, command: worker_pb2.StepCommand) -> LaunchedStep:
        """Hand a command to the device; blocks only while too many have not been waited for.

        Raises InvalidRequest if it breaks the protocol; `clear` comes next then.
        """
        delta = unpack_delta(command)
        self._check(command, delta)
        applied = self._apply(command, delta)
        self._check_blocks(delta, command.decode_steps)
        batch = lay_out(self.rows, delta.prefill_rows, delta.prefill_counts, command.decode_steps)
        plan = self._sampling.plan(batch.rows, self.rows.num_issued[batch.rows])
        num_steps = command.decode_steps if len(batch.rows) else 0
        if batch.prefill:
            num_steps = max(1, num_steps)
        self.rows.count_issued(batch.rows, num_steps)
        self.steps_executed += num_steps
        outline = CommandOutline(
            command.step_id, batch.rows.astype(np.uint32), self.rows.epochs[batch.rows], plan.num_logprobs,
            num_steps, batch.num_decoding, batch.num_prefilled, applied.failures,
        )  # fmt: skip
        return self._launch(applied, batch, plan, outline)

    # -- the host's part

    def _check(self, command: worker_pb2.StepCommand, delta: Delta) -> None:
        """Everything that can be known before the rows change."""
        if command.decode_steps > self.limits.max_decode_steps:
            raise InvalidRequest(f"decode_steps is at most {self.limits.max_decode_steps}")
        self.rows.check_removable(delta.remove_rows)
        self.rows.check_blocks(delta.append_block_ids)
        self.rows.check_addable(command.add_rows, delta.remove_rows)

    def _apply(self, command: worker_pb2.StepCommand, delta: Delta) -> Applied:
        """Bring the host's mirror up to date."""
        applied = Applied(RowChanges(self.rows.max_blocks))
        for row in delta.remove_rows:
            self.rows.remove(row)
        for added in command.add_rows:
            self._add_row(added, applied)
        self.rows.check_appendable(delta.append_rows, delta.append_counts, len(delta.append_block_ids))
        if len(delta.append_rows):
            rows, columns = self.rows.append_blocks(
                delta.append_rows, delta.append_counts, delta.append_block_ids
            )
            applied.changes.add_blocks(rows, columns, delta.append_block_ids)
        return applied

    def _add_row(self, added: worker_pb2.RowAdd, applied: Applied) -> None:
        """A row that cannot be sampled as asked fails alone."""
        row = added.row
        self.rows.add(added)
        try:
            self._sampling.check(added)
        except (QuireError, ValueError) as error:
            problem = error if isinstance(error, QuireError) else InvalidRequest(f"row {row}: {error}")
            self.rows.fail(row)
            applied.failures.append(RowFailure(row, added.epoch, problem))
            return
        self._sampling.add(added, applied.changes)
        block_ids = unpack_int32(added.block_ids)
        applied.changes.add_blocks(row, np.arange(len(block_ids)), block_ids)
        if self._sampling.is_penalised(row):
            applied.counted.append(added)

    def _check_blocks(self, delta: Delta, decode_steps: int) -> None:
        """Prompts and rows that decode have the blocks that their tokens need."""
        rows = self.rows
        rows.check_chunks(delta.prefill_rows, delta.prefill_counts)
        num_positions = sum(delta.prefill_counts) + (len(rows.decoding_rows()) if decode_steps else 0)
        if num_positions > self.limits.max_step_tokens:
            raise InvalidRequest(
                f"{num_positions} positions in a step of at most {self.limits.max_step_tokens}"
            )
        ending = [
            row
            for row, count in zip(delta.prefill_rows, delta.prefill_counts, strict=True)
            if rows.prompt_ends(row, count)
        ]
        rows.check_decode(decode_steps, ending)

    # -- the device's part

    def _launch(
        self, applied: Applied, batch: StepBatch, plan: DrawPlan, outline: CommandOutline
    ) -> LaunchedStep:
        num_rows = len(batch.rows)
        recorded = self._recorded(batch)
        mixed = {"mixed": self._mixed_graphs.pack(batch, recorded.mixed)} if recorded.mixed else batch.prefill
        slot = self._slots.take()
        try:
            control = np.full(1 + (recorded.decode or num_rows), self._device_rows.fill_row)
            control[0] = self._slots.first_step(slot) - 1
            control[1 : 1 + num_rows] = batch.rows
            staged = slot.upload(
                {"control": control}
                | applied.changes.arrays()
                | _counted_tokens(applied)
                | mixed
                | self._new_groups(recorded.groups)
                | dict(plan.edits)
            )
            slot.start()
            self._update(staged, applied)
            edited = EditedDraw(plan, {name: staged[name] for name in plan.edits})
            self._run(batch, staged, edited, recorded, outline.num_steps)
            logprobs = slot.finish(outline.num_steps, edited.logprobs)
        except BaseException:
            self._slots.give_back(slot)
            raise
        return LaunchedStep(outline, slot, self._slots, logprobs, edited.logprobs, self.rows.num_used)

    def _recorded(self, batch: StepBatch) -> _Recorded:
        num_rows = len(batch.rows)
        size = self._graphs.size_for(num_rows, in_groups=True) if not batch.prefill else None
        groups = self._prefixes.find(batch.rows) if size else None
        if groups is None:
            size = self._graphs.size_for(num_rows, in_groups=False)
        return _Recorded(size, self._mixed_graphs.size_for(batch), groups)

    def _new_groups(self, groups: PrefixGroups | None) -> dict[str, NDArray[np.int32]]:
        """What the device does not have yet."""
        if groups is None or groups is self._groups_on_device:
            return {}
        self._groups_on_device = groups
        return {"groups": groups.packed()}

    def _update(self, staged: Mapping[str, torch.Tensor], applied: Applied) -> None:
        """Bring the device's rows up to date."""
        self._device_rows.update(staged)
        start = 0
        for added in applied.counted:
            end = start + len(added.token_ids) // 4
            self._sampler.count(added.row, staged["counted_tokens"][start:end], added.num_prompt_tokens)
            start = end
        self._steps.set_batch(staged["control"])
        if "groups" in staged:
            self._steps.set_groups(staged["groups"])

    def _run(
        self,
        batch: StepBatch,
        staged: Mapping[str, torch.Tensor],
        edited: EditedDraw,
        recorded: _Recorded,
        num_steps: int,
    ) -> None:
        num_rows = len(batch.rows)
        if batch.prefill:
            if recorded.mixed is not None:
                logits = self._mixed_graphs.replay(recorded.mixed, staged["mixed"])
            else:
                logits = self._steps.mixed_logits(self._steps.batch_rows[: batch.num_decoding], staged)
            if num_rows:
                self._steps.draw(num_rows, logits[:num_rows], edited.plan.kind, edited)
            num_steps -= 1
        if num_rows:
            for _ in range(num_steps):
                self._decode(num_rows, edited, recorded)

    def _decode(self, num_rows: int, edited: EditedDraw, recorded: _Recorded) -> None:
        size, kind, in_groups = recorded.decode, edited.plan.kind, recorded.groups is not None
        if kind == DrawKind.EDITED:
            replayed = self._graphs.replay_logits(size, in_groups=in_groups) if size else None
            logits = replayed if replayed is not None else self._steps.decode_logits(num_rows)
            self._steps.draw(num_rows, logits[:num_rows], kind, edited)
        elif size:
            self._graphs.replay(size, kind, in_groups=in_groups)
        else:
            self._steps.decode(num_rows, kind)


def _counted_tokens(applied: Applied) -> dict[str, NDArray[np.int64]]:
    if not applied.counted:
        return {}
    tokens = [unpack_int32(added.token_ids) for added in applied.counted]
    return {"counted_tokens": np.concatenate(tokens).astype(np.int64)}
