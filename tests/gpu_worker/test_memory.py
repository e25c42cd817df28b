"""How many sequences a GPU is given, by what is left for their KV."""

import pytest

from gpu_worker.memory import gpu_rows
from gpu_worker.models.architectures import decoder_config
from quire.bench.shapes import shapes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("shape", "gib", "kv_dtype_bytes", "rows"),
    [
        ("llama-8b", 126, 2, 1024),
        ("llama-8b", 71, 2, 512),
        ("llama-8b", 71, 1, 1024),
        ("qwen3-0.6b", 71, 2, 1024),
        ("qwen3-0.6b", 21, 2, 512),
        ("llama-8b", 10, 2, 512),
    ],
)
def test_more_sequences_run_where_each_has_room_for_a_usual_request(
    shape: str, gib: int, kv_dtype_bytes: int, rows: int
) -> None:
    assert gpu_rows(decoder_config(shapes()[shape]), 2, kv_dtype_bytes, gib * GIB) == rows
