"""What the workers can take, and which workers can serve together."""

from collections.abc import Iterable
from dataclasses import dataclass

from quire.packing import unpack_int32
from quire.v1 import types_pb2, worker_pb2
from scheduler_svc.core.step_tokens import ProtocolError


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the connected replicas can take, the most of each."""

    model: types_pb2.ModelDescription
    block_size: int
    eos_token_ids: frozenset[int]
    max_total_tokens: int
    """Most tokens of prompt and output: the model's context, or what one pool of blocks holds."""
    max_logprobs: int
    capabilities: frozenset[str]

    @classmethod
    def of(
        cls, newest: worker_pb2.WorkerDescription, known: Iterable[worker_pb2.WorkerDescription]
    ) -> "Abilities":
        """What the newest worker and those known that hold the same model can take."""
        model = newest.model
        workers = [newest, *(worker for worker in known if worker.model.revision == model.revision)]
        # The KV of its last token is never computed, so a sequence may fill the pool and have one token more.
        pool_tokens = max(worker.num_blocks * worker.block_size for worker in workers) + 1
        return cls(
            model=model,
            block_size=newest.block_size,
            eos_token_ids=frozenset(unpack_int32(model.eos_token_ids).tolist()),
            max_total_tokens=min(model.max_model_len, pool_tokens),
            max_logprobs=min(worker.max_logprobs for worker in workers),
            capabilities=frozenset.intersection(*(frozenset(worker.capabilities) for worker in workers)),
        )


def check_worker(worker: worker_pb2.WorkerDescription, served: Abilities | None) -> None:
    """Raises ProtocolError for a worker that makes no sense, or cannot serve beside what is `served`."""
    if served is not None:
        model = worker.model
        theirs = (served.model.name, served.model.revision, served.model.vocab_size, served.block_size)
        its = (model.name, model.revision, model.vocab_size, worker.block_size)
        if its != theirs:
            raise ProtocolError(
                f"model, revision, vocabulary and block size are {its}, where {theirs} is served"
            )
    sizes = (worker.block_size, worker.num_blocks, worker.max_rows)
    if min(*sizes, worker.max_step_tokens, worker.max_decode_steps) < 1:
        raise ProtocolError("it has no rows or no blocks, or takes no tokens or no steps")
    if len(worker.model.eos_token_ids) % 4:
        raise ProtocolError("its eos_token_ids are not packed int32")
