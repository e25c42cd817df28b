"""One step of the model, on the device from end to end: rows in, tokens back into the rows and into the results."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from gpu_worker.device_rows import DeviceRows
from gpu_worker.kv_cache import KvCache
from gpu_worker.models.decoder import AttentionInputs, Decoder
from gpu_worker.prefix_groups import groups_of
from gpu_worker.row_sampling import NO_LOGPROBS, DrawKind, DrawPlan
from gpu_worker.sampler import Sampler
from kernels.decode_rows import begin_decode, commit_tokens
from kernels.logprobs import logprobs
from kernels.paged_attention import Chunks, SharedPrefixes, group_members


@dataclass(frozen=True, slots=True)
class EditedDraw:
    """How to draw where logits are changed or looked at; collects the log-probabilities of the steps."""

    plan: DrawPlan
    edits: Mapping[str, torch.Tensor]
    logprobs: list[torch.Tensor] = field(default_factory=list)
    """Of each step: chosen float32 [n], top ids int64 and top log-probabilities float32 [n, most asked for]."""


class ModelSteps:
    """Steps over the rows named by `batch_rows`; nothing in them waits for the device.

    The decode steps have fixed shapes and no arguments besides the size and kind of the batch, so that a CUDA graph
    can hold one whole.
    """

    def __init__(
        self, decoder: Decoder, cache: KvCache, rows: DeviceRows, sampler: Sampler, results: torch.Tensor
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._rows = rows
        self._sampler = sampler
        self._results = results
        device = results.device
        self._control = torch.empty(1 + rows.fill_row, dtype=torch.int64, device=device)
        self._cursor = self._control[:1]
        self.batch_rows = self._control[1:]
        """int64 [max_rows]: rows of the batch, filled up with the row that is always done."""
        config = decoder.config
        members = group_members(config.num_heads, config.num_kv_heads)
        max_rows = rows.fill_row
        self._groups = torch.empty(
            max_rows + groups_of(max_rows, members) * members, dtype=torch.int32, device=device
        )
        self._shared_lens = self._groups[:max_rows]
        self._group_members = self._groups[max_rows:].view(-1, members)
        self.can_share = decoder.can_share and members > 1
        """Whether rows may be in groups."""
        self.clear_batch()

    def clear_batch(self) -> None:
        """Name no row and no group, and let the next step's results be the first."""
        self._shared_lens.zero_()
        self._group_members.fill_(-1)
        self._control.fill_(self._rows.fill_row)
        self._cursor.fill_(-1)

    def set_batch(self, control: torch.Tensor) -> None:
        """Name the batch, int64 [1 + n]: the step before the next one's place in the results, then rows."""
        self._control[: len(control)].copy_(control)

    def set_groups(self, packed: torch.Tensor) -> None:
        """What rows of the batch share from now on, as `PrefixGroups.packed`."""
        self._groups.copy_(packed)

    def decode(self, size: int, kind: DrawKind, *, in_groups: bool = False) -> None:
        """A decode step of the first `size` rows of the batch, none of which wants more than `kind`.

        `in_groups`: what rows share is read once a group.
        """
        batch_rows = self.batch_rows[:size]
        logits = self.decode_logits(size, in_groups=in_groups)
        self._commit(batch_rows, self._sampler.draw(kind, logits, batch_rows), logits)

    def decode_logits(self, size: int, *, in_groups: bool = False) -> torch.Tensor:
        """The first half of a decode step: logits [size, vocab]."""
        inputs = begin_decode(
            self._rows.columns, self.batch_rows[:size], self._cache.block_size, self._cursor
        )
        prefixes = self._prefixes(size) if in_groups else None
        plan = self._decoder.plan_attention(inputs.block_tables, inputs.context_lens, size, prefixes=prefixes)
        attention = AttentionInputs(inputs.positions, inputs.slots, plan)
        return self._decoder.logits(self._decoder.forward(inputs.token_ids, attention, self._cache))

    def _prefixes(self, size: int) -> SharedPrefixes:
        members = self._group_members
        return SharedPrefixes(self._shared_lens[:size], members[: groups_of(size, members.shape[1])])

    def mixed_logits(self, decode_rows: torch.Tensor, prefill: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Rows, int64 [n], decode beside chunks of prompts; logits [rows sampling, vocab].

        `prefill` is `StepBatch.prefill` on the device.
        """
        decoding = begin_decode(self._rows.columns, decode_rows, self._cache.block_size, self._cursor)
        plan = self._decoder.plan_attention(
            self._rows.block_table.index_select(0, prefill["attention_rows"]),
            torch.cat((decoding.context_lens, prefill["chunk_ends"])),
            len(decode_rows),
            Chunks(*(prefill[name] for name in ("query_lens", "query_starts", "tile_chunks", "tile_starts"))),
        )
        attention = AttentionInputs(
            positions=torch.cat((decoding.positions, prefill["prefill_positions"])),
            slots=torch.cat((decoding.slots, prefill["prefill_slots"])),
            plan=plan,
        )
        token_ids = torch.cat((decoding.token_ids, prefill["prefill_tokens"]))
        hidden = self._decoder.forward(token_ids, attention, self._cache)
        return self._decoder.logits(hidden.index_select(0, prefill["sample_at"]))

    def draw(self, num_rows: int, logits: torch.Tensor, kind: DrawKind, edited: EditedDraw) -> None:
        """The second half of a step: tokens for the first `num_rows` rows of the batch from logits [n, vocab]."""
        batch_rows = self.batch_rows[:num_rows]
        if kind != DrawKind.EDITED:
            self._commit(batch_rows, self._sampler.draw(kind, logits, batch_rows), logits)
            return
        tokens = self._sampler.draw_edited(edited.plan, edited.edits, logits, batch_rows)
        num_top = int(edited.plan.num_logprobs.max())
        if num_top > NO_LOGPROBS:
            edited.logprobs.extend(logprobs(logits, tokens, num_top))
        self._commit(batch_rows, tokens, logits)

    def _commit(self, batch_rows: torch.Tensor, tokens: torch.Tensor, logits: torch.Tensor) -> None:
        commit_tokens(self._rows.columns, batch_rows, tokens, logits, self._results, self._cursor)
