"""The ledger in Redis: what each tenant has had, counted once and only once.

Keys: `quire:usage:{tenant}` is a hash of totals (the fields of COUNTED, all integers); `quire:settled:{sequence}`
marks a sequence (request id and index) as settled and expires SETTLED_S later. One Lua script does both, so that
a write that is repeated because its answer was lost counts nothing twice. A request that another scheduler
finishes after this one died is settled there; what the dead one computed for it is in no ledger but in the
worker's own counter.
"""

import asyncio
from collections import deque
from typing import NamedTuple

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure
from quire.v1 import types_pb2
from scheduler_svc import metrics

log = structlog.get_logger()

SETTLED_S = 86_400
MAX_UNSETTLED = 100_000
_BATCH = 256
_INTERVAL_S = 0.05

COUNTED = (
    "requests", "refusals", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "computed_tokens",
    "recomputed_tokens", "preemptions", "queue_ms", "prefill_ms", "decode_ms",
)  # fmt: skip

# ARGV: seconds, number of fields, their names, then for each record: sequence, tenant, and the fields' values.
_SETTLE = """
local width = tonumber(ARGV[2])
local settled = 0
for at = 3 + width, #ARGV, 2 + width do
  if redis.call('SET', 'quire:settled:' .. ARGV[at], '1', 'NX', 'EX', ARGV[1]) then
    settled = settled + 1
    for i = 1, width do
      if ARGV[at + 1 + i] ~= '0' then
        redis.call('HINCRBY', 'quire:usage:' .. ARGV[at + 1], ARGV[2 + i], ARGV[at + 1 + i])
      end
    end
  end
end
return settled
"""


class LedgerRecord(NamedTuple):
    """What one sequence, or one refused request, adds to its tenant's totals."""

    sequence: str
    tenant: str
    values: tuple[int, ...]
    """In the order of COUNTED."""

    @classmethod
    def of_end(
        cls, request_id: str, index: int, tenant: str, usage: types_pb2.Usage, *, is_error: bool
    ) -> "LedgerRecord":
        """A sequence that ended, however."""
        times = [round(1000 * seconds) for seconds in (usage.queue_s, usage.prefill_s, usage.decode_s)]
        values = (
            # The prompt, and the request, are the first sequence's.
            int(index == 0), 0, int(is_error), usage.prompt_tokens if index == 0 else 0, usage.cached_tokens,
            usage.completion_tokens, usage.computed_tokens, usage.recomputed_tokens, usage.preemptions, *times,
        )  # fmt: skip
        return cls(f"{request_id}:{index}", tenant, values)

    @classmethod
    def of_refusal(cls, request_id: str, tenant: str) -> "LedgerRecord":
        """A request that was not let in."""
        return cls(f"{request_id}:refused", tenant, (0, 1) + (0,) * (len(COUNTED) - 2))


class Settlement:
    """Records wait in memory, at most MAX_UNSETTLED of them, until Redis has them."""

    def __init__(self, client: redis.Redis) -> None:
        self._script = client.register_script(_SETTLE)
        self._unsettled: deque[LedgerRecord] = deque(maxlen=MAX_UNSETTLED)
        self._wake = asyncio.Event()

    def add(self, record: LedgerRecord) -> None:
        """Have a record settled soon. The oldest is lost if Redis has been away for too long."""
        if len(self._unsettled) == MAX_UNSETTLED:
            metrics.ledger_lost.inc()
        self._unsettled.append(record)
        self._wake.set()

    async def run(self) -> None:
        """Settle until cancelled, one write for all that came together."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_INTERVAL_S)
            self._wake.clear()
            try:
                await self.flush()
            except RedisFailure as error:
                log.warning("the ledger waits for redis", records=len(self._unsettled), error=str(error))
                self._wake.set()
                await asyncio.sleep(1.0)

    async def flush(self) -> None:
        """Settle all there is. Raises one of `RedisFailure`; nothing is lost then."""
        while self._unsettled:
            batch = [self._unsettled[i] for i in range(min(_BATCH, len(self._unsettled)))]
            arguments: list[str | int] = [SETTLED_S, len(COUNTED), *COUNTED]
            for record in batch:
                arguments += [record.sequence, record.tenant, *record.values]
            await self._script(args=arguments)
            for record in batch:
                # Unless the oldest were pushed out meanwhile.
                if self._unsettled and self._unsettled[0] is record:
                    self._unsettled.popleft()
