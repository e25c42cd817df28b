"""Replicas with known contents, without a worker behind them."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from quire.v1 import types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.replica import Replica


def connected_replica(name: str = "w", *, num_blocks: int = 64, worker_epoch: int = 7) -> Replica:
    """A replica whose worker (of the same name) has just connected, with nothing in its blocks."""
    replica = Replica(name, Limits())
    connect(replica, num_blocks=num_blocks, worker_epoch=worker_epoch)
    return replica


def connect(replica: Replica, *, num_blocks: int = 64, worker_epoch: int = 7) -> None:
    """Open the stream of a process of the replica's worker."""
    description = worker_pb2.WorkerDescription(
        worker_id=replica.name,
        worker_epoch=worker_epoch,
        model=types_pb2.ModelDescription(max_model_len=512),
        block_size=16,
        num_blocks=num_blocks,
        max_rows=8,
    )
    replica.connect(description, 1)


def content(number: int, *, sampled: bool = False) -> bytes:
    """A block hash; those of sampled blocks begin with a zero."""
    digest = blake2b(b"%d" % number, digest_size=15).digest()
    return (b"\0" if sampled else b"\1") + digest


def fill(replica: Replica, hashes: Sequence[bytes], *, step_id: int = 1) -> list[int]:
    """Have blocks computed by a command and freed again; what was there is evicted as needed."""
    blocks = replica.pool.allocate(len(hashes))
    for block, block_hash in zip(blocks, hashes, strict=True):
        replica.assigned[block] = (1, step_id)
        replica.pool.commit(block, block_hash)
    replica.pool.free(blocks)
    return blocks


async def checksums_of_ids(worker: str, blocks: Sequence[int]) -> Mapping[int, int]:
    """A worker's answer in which each block's checksum follows from its id."""
    return {block: 1000 + block for block in blocks}
