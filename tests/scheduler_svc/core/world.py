"""A world for the pure core: schedulers, workers that check the protocol, clients that check their tokens, a clock.

Each worker is leased to one scheduler at a time, which may not know yet that it no longer is. What a scheduler that
takes a worker over believes of its blocks goes through the service's own `adoption`, with an index as bad as can be.
"""

from itertools import count

from quire.errors import QuireError
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.looks import find_prefix, num_blocks_needed, obstacle
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.routing import cost
from scheduler_svc.core.sequence import QueueCause, Sequence
from scheduler_svc.flight_recorder import RecordedScheduler
from tests.scheduler_svc.core.clients import Asked, Clients, new_request
from tests.scheduler_svc.core.fake_index import FakeIndex, RedisState
from tests.scheduler_svc.core.fake_worker import FakeWorker, description
from tests.scheduler_svc.core.shell import Shell

# Turns without a token or an end, while everybody has a worker, after which none will come.
_PATIENCE = 300


class World:
    """Schedulers s0, s1, …; workers w0, w1, …; two clients. Every method is an event."""

    def __init__(
        self,
        *,
        num_blocks: int = 24,
        max_rows: int = 5,
        num_workers: int = 1,
        num_schedulers: int = 1,
        pipeline_depth: int = 2,
        max_decode_steps: int = 4,
    ) -> None:
        self.now = 0.0
        self._limits = Limits(
            max_queue_sequences=64,
            short_prompt_tokens=8,
            max_step_tokens=16,
            pipeline_depth=pipeline_depth,
            max_decode_steps=max_decode_steps,
            decode_burst_s=1.0,
            worker_return_s=2.0,
        )
        self._sizes = {"num_blocks": num_blocks, "max_rows": max_rows}
        self._epoch = 0
        self.index = FakeIndex()
        self.shells: dict[str, Shell] = {}
        for number in range(num_schedulers):
            self.start_scheduler(f"s{number}")
        self.clients = Clients(self.shells)
        self.workers: dict[str, FakeWorker] = {}
        self.lessees: dict[str, str] = {}
        """Who has the lease of each worker."""
        for number in range(num_workers):
            self._start_worker(f"w{number}")
            self.lessees[f"w{number}"] = f"s{number % num_schedulers}"
            self.connect(f"w{number}")

    @property
    def scheduler(self) -> RecordedScheduler:
        """The first."""
        return self.shells["s0"].scheduler

    @property
    def asked(self) -> dict[int, Asked]:
        """What clients asked for, by key."""
        return self.clients.asked

    def start_scheduler(self, name: str) -> None:
        """A new process, which knows nothing."""
        self.shells[name] = Shell(name, self._limits, self.index)

    def _start_worker(self, name: str) -> None:
        self._epoch += 1
        # Some hold more than others.
        sizes = self._sizes | {"num_blocks": self._sizes["num_blocks"] + 8 * int(name[1:])}
        self.workers[name] = FakeWorker(description(self._epoch, **sizes, worker_id=name))

    # -- workers

    def connect(self, name: str, *, answers: bool = True) -> None:
        """Whoever has the worker's lease opens its stream; `answers`: the worker says what its blocks are."""
        self._epoch += 1
        self.shells[self.lessees[name]].open(self.workers[name], self._epoch, self.now, answers=answers)

    def disconnect(self, name: str, *, restart: bool, is_noticed: bool = True) -> None:
        """The stream breaks, with what is in flight; `restart`: the process too, with its blocks."""
        self.workers[name].close()
        if restart:
            self._start_worker(name)
        if is_noticed:
            self.hear()

    def hear(self) -> None:
        """Schedulers notice which of their streams have broken, and which workers are no longer theirs."""
        for shell in self.shells.values():
            for name, stream in list(shell.streams.items()):
                if not stream.is_open:
                    shell.hear(name, self.now)
            for name in list(shell.scheduler.replicas):
                if self.lessees[name] != shell.name and name not in shell.streams:
                    shell.let_go(name, self.now)

    def is_connected(self, name: str) -> bool:
        """Whether a worker has a stream that nobody has closed."""
        stream = self.workers[name].stream
        return stream is not None and stream.is_open

    def feed(self, name: str) -> None:
        """Every scheduler that thinks that it drives a worker sends what it has for it."""
        for shell in self.shells.values():
            shell.feed(name, self.now)
            if name in shell.leaving and shell.is_rid_of(name):
                shell.let_go(name, self.now)

    def work(self, name: str, times: int = 99) -> None:
        """The worker executes what it was sent, up to so many commands."""
        self.workers[name].work(times)

    def answer(self, name: str) -> None:
        """Deliver the oldest result."""
        worker = self.workers[name]
        if not worker.results:
            worker.work(1)
        if not worker.results:
            return
        (shell,) = (s for s in self.shells.values() if s.streams.get(name) is worker.stream)
        shell.take(name, worker.results.popleft(), self.now)

    # -- leases

    def hand_over(self, name: str, to: str) -> None:
        """A scheduler is to give a worker to another, when its sequences have moved; or keeps it, if that is itself."""
        holder, taker = self.shells[self.lessees[name]], self.shells[to]
        if holder is taker:
            return
        self.lessees[name] = to
        if name in holder.streams:
            holder.leaving.add(name)
            holder.scheduler.drain(name, self.now)
        if name in taker.leaving:
            taker.leaving.discard(name)
            if not self.workers[name].is_draining:
                taker.scheduler.keep(name)

    def take_over(self, name: str, to: str) -> None:
        """A lease expires unnoticed, and another scheduler takes the worker."""
        self.lessees[name] = to
        self.connect(name)

    def kill_scheduler(self, name: str) -> None:
        """A scheduler process dies and is started again."""
        self.shells[name].die()
        for worker in self.workers.values():
            if worker.stream is not None and not worker.stream.is_open:
                worker.close()
        self.clients.lose(name)
        self.start_scheduler(name)

    # -- the clients

    def ask(
        self,
        key: int,
        prompt: list[int],
        *,
        n: int = 1,
        max_tokens: int = 8,
        home: str = "s0",
        **fields: object,
    ) -> bool:
        """Submit a request; false if it was refused."""
        asked = new_request(key, prompt, n, max_tokens, self.now, fields)
        return self.clients.ask(key, self._best(asked, home), asked, self.now)

    def _best(self, asked: Asked, home: str) -> str:
        """Where a request is sent on to: asking what a scheduler could do for it changes nothing there."""
        costs = {}
        for name, shell in self.shells.items():
            try:
                _, offers = shell.scheduler.offers(asked.request)
            except QuireError:
                return home
            if offers:
                costs[name] = min(map(cost, offers))
        return min(costs, key=lambda name: (costs[name], name != home), default=home)

    def rehouse(self) -> None:
        """Requests without a scheduler look for one."""
        self.clients.rehouse([name for name, shell in self.shells.items() if shell.streams], self.now)

    def receive(self) -> None:
        """Take what the schedulers have for each client, and check it."""
        self.clients.receive()

    # -- the end of the world

    def settle(self) -> None:
        """Let everything run to its end, and check that nothing is left behind and the ledgers add up."""
        self.index.state = RedisState.WELL
        self._give_everybody_a_worker()
        told, last_news = 0, 0
        for turn in count():
            for name in self.workers:
                self.feed(name)
                self.answer(name)
            self.receive()
            self.rehouse()
            living = [asked for asked in self.asked.values() if not asked.is_over]
            if not living and not self._is_busy():
                break
            if living and not any(asked.home for asked in living):
                # Who was refused, since there is too little time left for it, asks again until there is none.
                self.now += 1.0
            if self.clients.num_told != told:
                told, last_news = self.clients.num_told, turn
            elif turn - last_news > _PATIENCE:
                break
        assert all(asked.is_over for asked in self.asked.values()), "a request never ended"
        self.check()
        for worker in self.workers.values():
            assert int(worker.rows.used.sum()) == 0
        for shell in self.shells.values():
            shell.check_at_rest()

    def _give_everybody_a_worker(self) -> None:
        """As leases come to be; the requests of a scheduler for which there is none go elsewhere."""
        self.hear()
        for number, name in enumerate(sorted(self.workers)):
            worker, to = self.workers[name], f"s{number % len(self.shells)}"
            if worker.is_draining:
                self.disconnect(name, restart=True)
            # A worker that is being handed over is still with who gives it away.
            is_there = self.shells[to].streams.get(name) is worker.stream and self.lessees[name] == to
            if not self.is_connected(name) or not is_there:
                self.take_over(name, to)
        self.hear()
        for shell in self.shells.values():
            if not shell.streams:
                self.kill_scheduler(shell.name)

    def _is_busy(self) -> bool:
        return any(
            replica.in_flight or replica.num_rows_taken
            for shell in self.shells.values()
            for replica in shell.scheduler.replicas.values()
        )

    # -- what always holds

    def check(self) -> None:
        """The invariants that hold after every event."""
        for shell in self.shells.values():
            scheduler = shell.scheduler
            scheduler.check_integrity()
            entitled = [s for s in scheduler.queue.in_order() if s.request.tenant.kv_floor]
            for replica in scheduler.replicas.values():
                _check_sharing(replica)
                _check_ceilings(replica)
                for sequence in entitled:
                    _check_entitlement(replica, sequence)


def _check_sharing(replica: Replica) -> None:
    """A block is in two tables only as what its hash says, in the same place of both."""
    contents = {block: block_hash for block_hash, block in replica.pool.contents().items()}
    for sequence in replica.rows.sequences:
        if sequence is None:
            continue
        for place, block in enumerate(sequence.block_ids):
            if block in contents:
                hashes = sequence.hash_blocks(place + 1, replica.block_size)
                assert hashes[place] == contents[block], "a block is shared as what it is not"
            else:
                assert replica.pool.ref_count(block) == 1, "a block that cannot be found is shared"


def _check_ceilings(replica: Replica) -> None:
    """Nobody holds more than it may."""
    for index, ceiling in replica.ceilings.items():
        assert replica.pool.held.get(index, 0) <= ceiling, "a tenant above its ceiling"


def _check_entitlement(replica: Replica, sequence: Sequence) -> None:
    """Nobody waits for blocks that its tenant's floor keeps for it."""
    prefix = find_prefix(replica, sequence)
    needed = num_blocks_needed(replica, sequence, prefix)
    if not replica.connected or needed > replica.pool.reserved(sequence.request.tenant.index):
        return
    is_short = obstacle(replica, sequence, prefix) is QueueCause.BLOCKS
    # Unless others had the blocks before the floor was set; they are being taken back then.
    assert not is_short or replica.pool.spare < 0, "a tenant below its floor while it has demand"
