"""From logits to tokens, on the device alone: nothing here waits for it."""

from collections.abc import Mapping

import torch

from gpu_worker.device_rows import DeviceRows, SamplingColumns
from gpu_worker.row_sampling import DrawKind, DrawPlan
from kernels import logits as logits_op
from kernels import sampling as sampling_op


class Sampler:
    """Draws for batches of rows; keeps occurrence counts, [max_rows + 1, vocab], once a row needs them."""

    def __init__(self, rows: DeviceRows, vocab_size: int) -> None:
        self._rows = rows
        self._vocab_size = vocab_size
        self._output_counts: torch.Tensor | None = None
        self._in_prompt: torch.Tensor | None = None

    def draw(self, kind: DrawKind, logits: torch.Tensor, batch_rows: torch.Tensor) -> torch.Tensor:
        """Tokens int64 [n] for rows that want nothing but `kind`, which is not EDITED; logits [n, vocab]."""
        if kind == DrawKind.GREEDY:
            return sampling_op.greedy(logits)
        columns = self._rows.sampling(batch_rows)
        if kind == DrawKind.TEMPERATURE:
            return sampling_op.sample_unfiltered(
                logits, columns.temperature, columns.seeds, columns.positions
            )
        return _sample(logits, columns)

    def draw_edited(
        self,
        plan: DrawPlan,
        edits: Mapping[str, torch.Tensor],
        logits: torch.Tensor,
        batch_rows: torch.Tensor,
    ) -> torch.Tensor:
        """Tokens int64 [n] after the changes of logits that the rows ask for; `edits` is the plan's, on the device."""
        columns = self._rows.sampling(batch_rows)
        edited = logits
        if plan.is_penalised:
            edited = self._penalise(logits, batch_rows, columns)
        elif edits:
            # Log-probabilities are those of the logits as they were.
            edited = logits.to(torch.float32, copy=True)
        _edit(edited, edits, columns)
        drawn = _sample(edited, columns)
        if plan.is_penalised and self._output_counts is not None:
            ones = torch.ones_like(drawn, dtype=self._output_counts.dtype)
            self._output_counts.index_put_((batch_rows, drawn), ones, accumulate=True)
        return drawn

    def count(self, row: int, token_ids: torch.Tensor, num_prompt_tokens: int) -> None:
        """A penalised row is added; token_ids int64 [n] on the device are its tokens so far."""
        if self._output_counts is None or self._in_prompt is None:
            shape, device = (self._rows.fill_row + 1, self._vocab_size), token_ids.device
            self._output_counts = torch.zeros(shape, dtype=torch.int32, device=device)
            self._in_prompt = torch.zeros(shape, dtype=torch.bool, device=device)
        self._in_prompt[row] = False
        self._in_prompt[row].index_fill_(0, token_ids[:num_prompt_tokens], True)
        output = token_ids[num_prompt_tokens:]
        self._output_counts[row] = 0
        self._output_counts[row].index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def _penalise(
        self, logits: torch.Tensor, batch_rows: torch.Tensor, columns: SamplingColumns
    ) -> torch.Tensor:
        assert self._output_counts is not None
        assert self._in_prompt is not None
        # Rows that ask for no penalty have counts of earlier rows; their factors of 1 and 0 undo them exactly.
        return logits_op.apply_penalties(
            logits, batch_rows, self._output_counts, self._in_prompt,
            columns.repetition, columns.frequency, columns.presence,
        )  # fmt: skip


def _edit(logits: torch.Tensor, edits: Mapping[str, torch.Tensor], columns: SamplingColumns) -> None:
    """Apply what a plan asks for to logits float32 [n, vocab]."""
    bias = bans = None
    if "bias_starts" in edits:
        lists = logits_op.TokenLists(edits["bias_starts"], edits["bias_tokens"])
        bias = logits_op.Bias(lists, edits["bias_values"])
    if "ban_starts" in edits:
        lists = logits_op.TokenLists(edits["ban_starts"], edits["ban_tokens"])
        bans = logits_op.Bans(lists, columns.positions, columns.stops_from)
    if bias is not None or bans is not None:
        logits_op.edit_logits(logits, bias, bans)


def _sample(logits: torch.Tensor, columns: SamplingColumns) -> torch.Tensor:
    return sampling_op.sample(
        logits, columns.temperature, columns.top_k, columns.top_p, columns.min_p, columns.seeds,
        columns.positions,
    )  # fmt: skip
