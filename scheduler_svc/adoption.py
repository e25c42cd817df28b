"""What a worker's blocks still hold when a scheduler's stream to it opens: what the worker itself confirms.

A scheduler that takes a worker over learns of its blocks from the prefix index; one that had it before, from its own
pool. Either may be out of date: another scheduler may have driven the worker since. The worker tells which command
assigned each block last, and only entries that name the same command stand.
"""

from collections.abc import Mapping
from typing import NamedTuple

import grpc
import structlog

from quire.packing import pack_int32, unpack_uint64
from quire.redis_client import RedisFailure
from quire.v1 import worker_pb2, worker_pb2_grpc
from scheduler_svc import metrics
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.prefix_index import Entry, PrefixIndex

log = structlog.get_logger()

_TIMEOUT_S = 2.0
_UINT64 = 2**64


class AdoptedBlock(NamedTuple):
    """A block whose content is known from before."""

    block_hash: bytes
    block: int
    assigned: tuple[int, int]
    """(lease epoch, step id) of the command that assigned it."""


async def blocks_to_attach(
    scheduler: Scheduler,
    worker: str,
    index: PrefixIndex | None,
    stub: "worker_pb2_grpc.WorkerAsyncStub",
    description: worker_pb2.WorkerDescription,
) -> list[AdoptedBlock]:
    """What `attach` is to be told of a worker whose stream has just opened.

    Forgets a replica that is known under this name if its pool is not to be believed as it stands.
    """
    replica = scheduler.replicas.get(worker)
    if replica is None or replica.description.worker_epoch != description.worker_epoch:
        return [] if index is None else await confirmed_blocks(index, stub, description)
    left = await blocks_since(replica, stub, description)
    if left is None:
        return []
    scheduler.forget(worker)
    return left


async def confirmed_blocks(
    index: PrefixIndex, stub: "worker_pb2_grpc.WorkerAsyncStub", description: worker_pb2.WorkerDescription
) -> list[AdoptedBlock]:
    """The entries of this worker process whose blocks nobody was given since, in no order.

    Nothing if the index or the worker does not answer, or if a sampled block's content is not what was published.
    """
    try:
        entries = await index.load(description.worker_id, description.worker_epoch)
        if not entries:
            return []
        standing = await _standing(entries, stub, description)
        is_sound = await _is_sound(standing, stub)
    except (*RedisFailure, grpc.aio.AioRpcError, ValueError) as error:
        log.warning("a worker's cache is not adopted", worker=description.worker_id, error=str(error))
        return []
    metrics.index_refused.inc(len(entries) - len(standing))
    if not is_sound:
        log.error("sampled blocks do not hold what was published", worker=description.worker_id)
        return []
    metrics.index_adopted.inc(len(standing))
    log.info(
        "a worker's cache is adopted",
        worker=description.worker_id,
        blocks=len(standing),
        refused=len(entries) - len(standing),
    )
    return [AdoptedBlock(block_hash, entry.block, entry.assigned) for block_hash, entry in standing.items()]


async def blocks_since(
    replica: Replica, stub: "worker_pb2_grpc.WorkerAsyncStub", description: worker_pb2.WorkerDescription
) -> list[AdoptedBlock] | None:
    """What is left of a replica's pool, whose worker process may have served another scheduler since.

    None: all of it, as far as is known.
    """
    entries = {h: Entry(block, replica.assigned[block]) for h, block in replica.pool.contents().items()}
    if not entries:
        return None
    try:
        standing = await _standing(entries, stub, description)
    except (grpc.aio.AioRpcError, ValueError) as error:
        log.warning("a worker does not say what its blocks hold", worker=replica.name, error=str(error))
        standing = {}
    if len(standing) == len(entries):
        return None
    metrics.index_refused.inc(len(entries) - len(standing))
    log.info("another scheduler has used a worker's blocks", worker=replica.name, left=len(standing))
    return [AdoptedBlock(block_hash, entry.block, entry.assigned) for block_hash, entry in standing.items()]


async def _standing(
    entries: Mapping[bytes, Entry],
    stub: "worker_pb2_grpc.WorkerAsyncStub",
    description: worker_pb2.WorkerDescription,
) -> dict[bytes, Entry]:
    """Entries whose block was last assigned by the command that they name. Raises AioRpcError or ValueError."""
    state = await stub.DescribeBlocks(worker_pb2.DescribeBlocksRequest(), timeout=_TIMEOUT_S)
    if state.worker_epoch != description.worker_epoch:
        raise ValueError("the worker has been started again")
    lease_epochs, step_ids = unpack_uint64(state.lease_epochs), unpack_uint64(state.step_ids)
    if len(lease_epochs) != len(step_ids):
        raise ValueError("the worker's columns disagree")
    assigned = list(zip(lease_epochs.tolist(), step_ids.tolist(), strict=True))
    return {
        block_hash: entry
        for block_hash, entry in entries.items()
        if 0 <= entry.block < len(assigned) and assigned[entry.block] == entry.assigned
    }


async def _is_sound(standing: Mapping[bytes, Entry], stub: "worker_pb2_grpc.WorkerAsyncStub") -> bool:
    """Whether every block whose checksum was kept has it still."""
    sampled = {entry.block: entry.checksum for entry in standing.values() if entry.checksum is not None}
    if not sampled:
        return True
    found = await checksums(stub, list(sampled))
    return found == sampled


async def checksums(stub: "worker_pb2_grpc.WorkerAsyncStub", blocks: list[int]) -> dict[int, int]:
    """Checksum of each block, as the worker computes it now. Raises AioRpcError."""
    request = worker_pb2.DescribeBlocksRequest(block_ids=pack_int32(blocks), with_checksums=True)
    answer = await stub.DescribeBlocks(request, timeout=_TIMEOUT_S)
    values = unpack_uint64(answer.checksums).tolist()
    return {block: value % _UINT64 for block, value in zip(blocks, values, strict=True)}
