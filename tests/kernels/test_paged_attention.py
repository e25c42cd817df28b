"""The reference of paged attention against a naive float64 computation, over shapes that models have."""

import pytest
import torch

from kernels.paged_attention import paged_attention

# heads, kv_heads, head_dim, block_size
SHAPES = [(1, 1, 64, 16), (4, 2, 80, 16), (8, 1, 96, 32), (16, 2, 128, 64), (6, 6, 256, 16), (16, 1, 64, 128)]
# (tokens in this pass, tokens in all) of each row
BATCHES = [
    [(1, 1)],
    [(1, 37), (1, 1), (1, 128)],
    [(5, 5), (130, 130)],
    [(1, 50), (20, 70), (64, 64), (3, 40)],
]


def naive(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None) -> torch.Tensor:
    """q [n, heads, d] are the last n tokens of keys and values [length, kv_heads, d]; float64."""
    n, heads, head_dim = q.shape
    length, kv_heads, _ = keys.shape
    out = torch.empty(n, heads, head_dim, dtype=torch.float64)
    for i in range(n):
        at = length - n + i
        first = 0 if window is None else max(0, at - window + 1)
        for head in range(heads):
            k = keys[first : at + 1, head * kv_heads // heads].double()
            v = values[first : at + 1, head * kv_heads // heads].double()
            weights = torch.softmax(k @ q[i, head].double() * head_dim**-0.5, dim=0)
            out[i, head] = weights @ v
    return out


@pytest.mark.parametrize("window", [None, 1, 30])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_sees_its_own_pages_up_to_itself(
    shape: tuple[int, int, int, int], batch: list[tuple[int, int]], window: int | None
) -> None:
    torch.set_num_threads(1)
    heads, kv_heads, head_dim, block_size = shape
    torch.manual_seed(heads * head_dim)
    per_row = max(-(-length // block_size) for _, length in batch)
    num_blocks = per_row * len(batch) + 3
    # What no row may see is not a number, and would show.
    k_cache = torch.full((num_blocks, kv_heads, block_size, head_dim), float("nan"))
    v_cache = k_cache.clone()
    tables = torch.randperm(num_blocks)[: per_row * len(batch)].view(len(batch), per_row)
    queries, wanted = [], []
    for row, (query_len, length) in enumerate(batch):
        keys, values = torch.randn(2, length, kv_heads, head_dim)
        q = torch.randn(query_len, heads, head_dim)
        positions = torch.arange(length)
        blocks, offsets = tables[row][positions // block_size], positions % block_size
        k_cache[blocks, :, offsets], v_cache[blocks, :, offsets] = keys, values
        queries.append(q)
        wanted.append(naive(q, keys, values, window))
    found = paged_attention(
        torch.cat(queries),
        k_cache,
        v_cache,
        tables,
        torch.tensor([query_len for query_len, _ in batch]),
        torch.tensor([length for _, length in batch]),
        head_dim**-0.5,
        window,
    )
    assert torch.allclose(found.double(), torch.cat(wanted), atol=1e-5)
