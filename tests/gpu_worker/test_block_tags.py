"""What a worker says of its blocks: who assigned each last, and a checksum of what it holds."""

from pathlib import Path

import grpc
import numpy as np
import pytest

from gpu_worker.block_tags import BlockTags
from quire.packing import pack_int32, pack_uint32, unpack_uint64
from quire.v1 import worker_pb2
from tests.gpu_worker.test_server import first_command, loaded, run, status_code, worker


def tags(column: BlockTags) -> list[tuple[int, int]]:
    return list(zip(column.lease_epochs.tolist(), column.step_ids.tolist(), strict=True))


def test_a_block_is_assigned_by_the_command_that_gives_it_to_a_row_to_be_written() -> None:
    column = BlockTags(8, 16)
    added = worker_pb2.RowAdd(num_computed_tokens=32, block_ids=pack_int32([0, 1, 2, 3]))
    column.note(worker_pb2.StepCommand(lease_epoch=2**63, step_id=5, add_rows=[added]))
    column.note(
        worker_pb2.StepCommand(
            lease_epoch=2**63,
            step_id=6,
            append_rows=pack_uint32([0]),
            append_num_blocks=pack_uint32([1]),
            append_block_ids=pack_int32([4]),
        )
    )
    # Those that are shared, 0 and 1, are only read.
    assert tags(column) == [(0, 0), (0, 0), (2**63, 5), (2**63, 5), (2**63, 6), (0, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize("blocks", [[8], [-1], [2**31 - 1]])
def test_a_command_that_names_no_block_of_ours_tags_nothing(blocks: list[int]) -> None:
    column = BlockTags(8, 16)
    column.note(worker_pb2.StepCommand(lease_epoch=1, step_id=1, append_block_ids=pack_int32([3, *blocks])))
    column.note(worker_pb2.StepCommand(lease_epoch=1, step_id=1, append_block_ids=b"odd"))
    assert set(tags(column)) == {(0, 0)}


async def describe(
    stub: object, *blocks: int, checksums: bool = False
) -> tuple[list[tuple[int, int]], list[int]]:
    request = worker_pb2.DescribeBlocksRequest(block_ids=pack_int32(blocks), with_checksums=checksums)
    answer = await stub.DescribeBlocks(request)  # type: ignore[attr-defined]
    pairs = zip(unpack_uint64(answer.lease_epochs), unpack_uint64(answer.step_ids), strict=True)
    return [(int(epoch), int(step)) for epoch, step in pairs], unpack_uint64(answer.checksums).tolist()


async def test_a_worker_tells_tags_and_checksums_that_follow_the_content(tmp_path: Path) -> None:
    async with worker(tmp_path) as (stub, _):
        description = await loaded(stub)
        everything, checksums = await describe(stub)
        assert everything == [(0, 0)] * description.num_blocks
        assert checksums == []
        call = run(stub, 3)
        await call.write(first_command(lease=3))
        await call.read()
        found, (written, empty, other_empty) = await describe(stub, 0, 4, 5, checksums=True)
        assert found == [(3, 1), (0, 0), (0, 0)]
        assert written != empty == other_empty
        assert (await describe(stub, 0, checksums=True))[1] == [written], (
            "the same content, the same checksum"
        )
        # One more token lies in block 0.
        await call.write(worker_pb2.StepCommand(step_id=2, lease_epoch=3, decode_steps=1))
        await call.read()
        found, changed = await describe(stub, 0, checksums=True)
        assert found == [(3, 1)]
        assert changed != [written]
        call.cancel()


async def test_tags_and_content_outlive_the_stream(tmp_path: Path) -> None:
    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        call = run(stub, 3)
        await call.write(first_command(lease=3))
        await call.read()
        before = await describe(stub, 0, 1, checksums=True)
        call.cancel()
        newer = run(stub, 4)
        await newer.initial_metadata()
        assert await describe(stub, 0, 1, checksums=True) == before
        newer.cancel()


@pytest.mark.parametrize("blocks", [b"odd", pack_int32([-1]), pack_int32([2**31 - 1])])
async def test_blocks_that_do_not_exist_are_refused(tmp_path: Path, blocks: bytes) -> None:
    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        request = worker_pb2.DescribeBlocksRequest(block_ids=blocks)
        assert await status_code(stub.DescribeBlocks(request)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_checksums_tell_one_bit_and_where_it_is(tmp_path: Path) -> None:
    from tests.support.checkpoints import checkpoint
    from tests.support.worker_driver import make_runner

    cache = make_runner(checkpoint(), max_rows=2, max_model_len=64)._cache
    blocks = np.arange(2, dtype=np.int32)
    first, second = cache.checksums(blocks).wait().tolist()
    assert first == second
    seen = {first}
    for tensor in (*cache.keys, *cache.values):
        for position in (0, -1):
            flat = tensor[0].reshape(-1)
            flat[position] = 1.0
            changed, untouched = cache.checksums(blocks).wait().tolist()
            assert untouched == second
            assert changed not in seen
            seen.add(changed)
            flat[position] = 0.0
