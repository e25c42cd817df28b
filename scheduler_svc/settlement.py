"""The ledger in Redis: what each tenant has had, counted once and only once.

Keys: `quire:usage:{tenant}` is a hash of totals (the fields of COUNTED, all integers). `quire:settled:{sequence}`
(ledger id and index) has the tokens counted of a sequence and, of each scheduler process that had it, the number of
its last record; it expires SETTLED_S after the last. `quire:computed:{scheduler}` is a hash from worker to the token
positions that it told this scheduler process it computed; it expires COMPUTED_S after the last write.

One Lua script counts a record and notes that it did, so that a write that is repeated because its answer was lost
counts nothing twice: a process writes its records in the order of their numbers. A sequence that was lost and went on,
at another scheduler or the same, has a record of each stay: the work of all is added up, the request is counted once,
and its completion as far as it got. So over all tenants `computed_tokens` is the sum of `quire:computed:*`, but for
what a scheduler had under way when it was killed: that is in the workers' own counters alone.
"""

import asyncio
from collections import deque
from itertools import islice
from typing import Literal, NamedTuple

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure
from quire.v1 import types_pb2
from scheduler_svc import metrics

log = structlog.get_logger()

SETTLED_S = 3600
COMPUTED_S = 86_400
MAX_UNSETTLED = 100_000
_BATCH = 128
_INTERVAL_S = 0.05

Rule = Literal["once", "most", "each"]
COUNTED: dict[str, Rule] = {
    "requests": "once", "refusals": "once", "errors": "each", "prompt_tokens": "once", "cached_tokens": "once",
    "completion_tokens": "most", "computed_tokens": "each", "recomputed_tokens": "each", "preemptions": "each",
    "queue_ms": "each", "prefill_ms": "each", "decode_ms": "each",
}  # fmt: skip
"""Field, and what becomes of it when a sequence has several records: the first one's, the most, or the sum."""

# ARGV: seconds that marks are kept, the scheduler, number of fields, then for each its name and rule, then for each
# record its sequence, tenant, and in one argument its number, completion tokens and the fields' values: arguments cost
# more than their bytes. A sequence's mark is `tokens;scheduler=number;scheduler=number`.
_SETTLE = """
local scheduler, width, first = ARGV[2], tonumber(ARGV[3]), 4 + 2 * tonumber(ARGV[3])
local keys, marks, totals, counted = {}, {}, {}, 0
for at = first, #ARGV, 3 do
  keys[#keys + 1] = 'quire:settled:' .. ARGV[at]
end
for i, mark in ipairs(redis.call('MGET', unpack(keys))) do
  marks[keys[i]] = mark
end
for at = first, #ARGV, 3 do
  local key, tenant, numbers = 'quire:settled:' .. ARGV[at], ARGV[at + 1], {}
  for number in string.gmatch(ARGV[at + 2], '%S+') do
    numbers[#numbers + 1] = tonumber(number)
  end
  local number, tokens = numbers[1], numbers[2]
  local mark, is_new, before, others = marks[key], true, 0, ''
  if mark then
    before = tonumber(string.match(mark, '^%d+') or '0')
    for other, last in string.gmatch(mark, ';([^=;]+)=(%d+)') do
      if other == scheduler then
        is_new = number > tonumber(last)
      else
        others = others .. ';' .. other .. '=' .. last
      end
    end
  end
  if is_new then
    counted = counted + 1
    local most = string.format('%.0f', math.max(before, tokens))
    marks[key] = most .. ';' .. scheduler .. '=' .. string.format('%.0f', number) .. others
    redis.call('SETEX', key, ARGV[1], marks[key])
    totals[tenant] = totals[tenant] or {}
    for i = 1, width do
      local value, rule = numbers[2 + i], ARGV[3 + 2 * i]
      if rule == 'most' then
        value = math.max(0, value - before)
      elseif rule == 'once' and mark then
        value = 0
      end
      totals[tenant][i] = (totals[tenant][i] or 0) + value
    end
  end
end
for tenant, values in pairs(totals) do
  for i = 1, width do
    if values[i] ~= 0 then
      redis.call('HINCRBY', 'quire:usage:' .. tenant, ARGV[2 + 2 * i], string.format('%.0f', values[i]))
    end
  end
end
return counted
"""


class LedgerRecord(NamedTuple):
    """What one sequence, or one refused request, adds to its tenant's totals."""

    sequence: str
    tenant: str
    completion_tokens: int
    values: tuple[int, ...]
    """In the order of COUNTED."""

    @classmethod
    def of_end(
        cls, ledger_id: str, index: int, tenant: str, usage: types_pb2.Usage, *, is_error: bool
    ) -> "LedgerRecord":
        """A sequence that ended here, however."""
        # The request and its prompt are the first sequence's, as in the answer's `usage`.
        prompt = (usage.prompt_tokens, usage.cached_tokens) if index == 0 else (0, 0)
        times = [round(1000 * seconds) for seconds in (usage.queue_s, usage.prefill_s, usage.decode_s)]
        values = (
            int(index == 0), 0, int(is_error), *prompt,
            usage.completion_tokens, usage.computed_tokens, usage.recomputed_tokens, usage.preemptions, *times,
        )  # fmt: skip
        return cls(f"{ledger_id}:{index}", tenant, usage.completion_tokens, values)

    @classmethod
    def of_refusal(cls, ledger_id: str, tenant: str) -> "LedgerRecord":
        """A request that was not let in."""
        return cls(f"{ledger_id}:refused", tenant, 0, (0, 1) + (0,) * (len(COUNTED) - 2))


class Settlement:
    """Records wait in memory, at most MAX_UNSETTLED of them, until Redis has them.

    `scheduler` names this process, and none before it of the same address; without `=` and `;`.
    """

    def __init__(self, client: redis.Redis, scheduler: str) -> None:
        self._client = client
        self._scheduler = scheduler
        self._num_records = 0
        self._unsettled: deque[tuple[int, LedgerRecord]] = deque(maxlen=MAX_UNSETTLED)
        """Each with its number."""
        self._computed: dict[str, int] = {}
        """Positions that each worker computed for this process."""
        self._wake = asyncio.Event()

    def add(self, record: LedgerRecord) -> None:
        """Have a record settled soon. The oldest is lost if Redis has been away for too long."""
        if len(self._unsettled) == MAX_UNSETTLED:
            metrics.ledger_lost.inc()
        self._num_records += 1
        self._unsettled.append((self._num_records, record))
        metrics.ledger_unsettled.set(len(self._unsettled))
        self._wake.set()

    @property
    def num_unsettled(self) -> int:
        """Records that Redis does not have yet."""
        return len(self._unsettled)

    def note_computed(self, worker: str, num_tokens: int) -> None:
        """A worker has answered a command; written with the next records."""
        self._computed[worker] = self._computed.get(worker, 0) + num_tokens

    async def run(self) -> None:
        """Settle until cancelled: at once, and then one write for all that came within the interval."""
        is_away = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
                is_away = False
            except RedisFailure as error:
                if not is_away:
                    log.warning("the ledger waits for redis", records=len(self._unsettled), error=str(error))
                is_away = True
                self._wake.set()
                await asyncio.sleep(1.0)
            await asyncio.sleep(_INTERVAL_S)

    async def flush(self) -> None:
        """Settle all that there is when it begins. Raises one of `RedisFailure`; nothing is lost then."""
        fields = [part for field in COUNTED.items() for part in field]
        newest = self._num_records
        # What comes meanwhile waits for the next write: else an embedded server would get one for each step's ends.
        while self._unsettled and self._unsettled[0][0] <= newest:
            batch = list(islice(self._unsettled, _BATCH))
            arguments: list[str] = [str(SETTLED_S), self._scheduler, str(len(COUNTED)), *fields]
            for number, record in batch:
                numbers = (number, record.completion_tokens, *record.values)
                arguments += [record.sequence, record.tenant, " ".join(map(str, numbers))]
            totals = [part for entry in self._computed.items() for part in entry]
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.eval(_SETTLE, 0, *arguments)
                if self._computed:
                    # Totals, not differences: to write them twice is to write them once.
                    pipeline.hset(f"quire:computed:{self._scheduler}", items=totals)
                    pipeline.expire(f"quire:computed:{self._scheduler}", COMPUTED_S)
                # The embedded server drops what has expired only when it counts its keys.
                pipeline.dbsize()
                await pipeline.execute()
            last = batch[-1][0]
            # The oldest may have been pushed out meanwhile.
            while self._unsettled and self._unsettled[0][0] <= last:
                self._unsettled.popleft()
            metrics.ledger_unsettled.set(len(self._unsettled))
