"""The two ends of a decode step: what they read and write, and that Triton's do exactly what the reference does."""

from dataclasses import fields

import pytest
import torch

from kernels.decode_rows import AT_LIMIT, IDLE, NOT_FINITE, RUNNING, STOPPED, RowColumns, kernel, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK_SIZE, VOCAB, NUM_ROWS, NUM_BLOCKS = 4, 50, 9, 6
DUMP = NUM_ROWS - 1


def columns(seed: int = 0) -> RowColumns:
    """Rows 0-7 at random lengths, of which 2 is done; the last one, always done, fills batches up."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).to(device=DEVICE, dtype=dtype)

    done = torch.zeros(NUM_ROWS, dtype=torch.int64, device=DEVICE)
    done[2] = done[DUMP] = 1
    num_tokens = integers(1, BLOCK_SIZE * NUM_BLOCKS, NUM_ROWS)
    stop_ids = torch.full((NUM_ROWS, 5), -1, dtype=torch.int32, device=DEVICE)
    stop_ids[1, :2] = torch.tensor([7, 9])
    return RowColumns(
        last_token=integers(0, VOCAB, NUM_ROWS),
        num_tokens=num_tokens,
        max_tokens=num_tokens + torch.tensor([5, 5, 5, 1, 2, 5, 5, 5, 5], device=DEVICE),
        done=done,
        stop_ids=stop_ids,
        block_table=integers(0, 1000, NUM_ROWS, NUM_BLOCKS, dtype=torch.int32),
    )


def both() -> list[pytest.param]:
    return [pytest.param(module, id=module.__name__.rpartition(".")[2]) for module in (reference, kernel)]


def results_and_cursor() -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.full((3, 2, NUM_ROWS), -7, dtype=torch.int32, device=DEVICE),
        torch.tensor([0], device=DEVICE),
    )


@pytest.mark.parametrize("module", both())
def test_a_batch_reads_its_rows_and_done_ones_are_empty(module) -> None:
    rows = columns()
    batch = torch.tensor([3, 2, 0, DUMP], device=DEVICE)
    _, cursor = results_and_cursor()
    inputs = module.begin_decode(rows, batch, BLOCK_SIZE, cursor)
    lengths = rows.num_tokens[batch].tolist()
    assert inputs.token_ids.tolist() == rows.last_token[batch].tolist()
    assert inputs.context_lens.tolist() == [lengths[0], 0, lengths[2], 0]
    assert inputs.positions.tolist() == [lengths[0] - 1, 0, lengths[2] - 1, 0]
    for entry in (0, 2):
        row, position = int(batch[entry]), lengths[entry] - 1
        used = position // BLOCK_SIZE + 1
        assert torch.equal(inputs.block_tables[entry, :used], rows.block_table[row, :used])
        block = int(rows.block_table[row, position // BLOCK_SIZE])
        assert inputs.slots[entry] == block * BLOCK_SIZE + position % BLOCK_SIZE
    assert inputs.slots[[1, 3]].tolist() == [-1, -1]
    assert cursor.tolist() == [1]


@pytest.mark.parametrize("module", both())
def test_an_empty_batch_moves_the_cursor_all_the_same(module) -> None:
    _, cursor = results_and_cursor()
    inputs = module.begin_decode(
        columns(), torch.empty(0, dtype=torch.int64, device=DEVICE), BLOCK_SIZE, cursor
    )
    assert (inputs.token_ids.shape, cursor.tolist()) == ((0,), [1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("module", both())
def test_tokens_are_kept_and_end_their_rows(module, dtype: torch.dtype) -> None:
    rows = columns()
    before = {field.name: getattr(rows, field.name).clone() for field in fields(rows)}
    batch = torch.tensor([0, 1, 2, 3, 4, 5, 6, DUMP, DUMP], device=DEVICE)
    tokens = torch.tensor([7, 9, 4, 5, 6, 8, VOCAB + 5, 1, 1], device=DEVICE)
    logits = torch.randn(len(batch), VOCAB, device=DEVICE).to(dtype)
    logits[5], logits[6, 0] = float("nan"), float("inf")
    tokens[6] = 0
    results, cursor = results_and_cursor()
    module.commit_tokens(rows, batch, tokens, logits, results, cursor)
    statuses = [RUNNING, STOPPED, IDLE, AT_LIMIT, RUNNING, NOT_FINITE, NOT_FINITE, IDLE, IDLE]
    assert results[0, 1, : len(batch)].tolist() == statuses
    assert results[0, 0, [0, 1, 3, 4]].tolist() == [7, 9, 5, 6]
    assert (results[1:] == -7).all()
    grown = torch.tensor([1, 1, 0, 1, 1, 0, 0, 0, 0], device=DEVICE)
    assert torch.equal(rows.num_tokens, before["num_tokens"] + grown)
    assert torch.equal(rows.last_token[[0, 1, 3, 4]], tokens[[0, 1, 3, 4]])
    assert torch.equal(rows.last_token[[2, 5, 6, 7, 8]], before["last_token"][[2, 5, 6, 7, 8]])
    assert rows.done.tolist() == [0, 1, 1, 1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_triton_and_reference_leave_the_same_state(seed: int) -> None:
    ours, theirs = columns(seed), columns(seed)
    batch = torch.randperm(NUM_ROWS - 1, device=DEVICE)[:5]
    tokens = torch.randint(0, VOCAB, (5,), device=DEVICE)
    logits = torch.randn(8, VOCAB, device=DEVICE)[::2][:4]
    logits = torch.cat((logits, logits[:1]))
    found = []
    for module, rows in ((kernel, ours), (reference, theirs)):
        results, cursor = results_and_cursor()
        inputs = module.begin_decode(rows, batch, BLOCK_SIZE, cursor)
        module.commit_tokens(rows, batch, tokens, logits, results, cursor)
        found.append((inputs, results))
    for name in ("token_ids", "positions", "slots", "context_lens"):
        assert torch.equal(getattr(found[0][0], name), getattr(found[1][0], name))
    assert torch.equal(found[0][1], found[1][1])
    for field in fields(ours):
        assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name))
