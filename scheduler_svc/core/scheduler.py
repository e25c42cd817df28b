"""The scheduler: requests come in, replicas get commands, results become tokens for clients.

Everything here is deterministic: the same events with the same times give the same commands, byte for byte.
The shell calls `add`, `cancel`, `attach`, `detach` and `apply` as things happen, then `schedule` for each
replica until it gives no command, then `take_updates` and `take_endings`. Times are seconds of one monotonic
clock.
"""

from collections.abc import Iterable, Iterator
from math import inf

import numpy as np

from quire.errors import InvalidRequest, NotReady
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core import looks, step_tokens
from scheduler_svc.core.abilities import Abilities, check_worker
from scheduler_svc.core.admission import Backlog, admit
from scheduler_svc.core.commands import next_command
from scheduler_svc.core.deadlines import Deadlines
from scheduler_svc.core.intake import make_request
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.live_requests import Ending, LiveRequests
from scheduler_svc.core.pace import decode_at
from scheduler_svc.core.placement import Placement
from scheduler_svc.core.queue import WaitingQueue
from scheduler_svc.core.recent_prompts import RecentPrompts
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.routing import Offer, Route, cheapest
from scheduler_svc.core.sequence import LeaveReason, Request, Sequence, SequenceState
from scheduler_svc.core.step_tokens import StepStats, StepTokens
from scheduler_svc.core.tenants import Tenant, Tenants
from scheduler_svc.core.validation import check_policy

# A worker takes seconds to load.
_RETRY_S = 5.0


def _no_worker() -> NotReady:
    return NotReady("the last worker was lost and none came in time; try again", retry_after_s=_RETRY_S)


class Scheduler:
    """Holds every request and every replica."""

    def __init__(self, limits: Limits, route: Route = cheapest) -> None:
        self.replicas: dict[str, Replica] = {}
        self.queue = WaitingQueue(limits.short_prompt_tokens)
        self.tenants = Tenants()
        self.abilities: Abilities | None = None
        """What the replicas can take; None until a worker has described itself."""
        self._limits = limits
        self._placement = Placement(self.queue, self.replicas, limits, route)
        self._requests = LiveRequests(self.tenants)
        self._deadlines = Deadlines()
        self._recent_prompts = RecentPrompts()
        self._alone_since = inf
        """When the last worker was lost, in seconds; inf while one is connected, or has yet to come."""
        self._num_arrived = 0

    # -- workers

    def attach(
        self,
        name: str,
        description: worker_pb2.WorkerDescription,
        lease_epoch: int,
        now: float,
        adopted: Iterable[tuple[bytes, int, tuple[int, int]]] = (),
    ) -> None:
        """A worker's stream has opened. Raises ProtocolError for one that cannot serve beside the others.

        `adopted`: hash, block, and (lease epoch, step id) of the assigning command, of blocks known to hold their
        content from before.
        """
        others = any(replica.connected and replica.name != name for replica in self.replicas.values())
        check_worker(description, self.abilities if others or self.num_requests else None)
        replica = self.replicas.get(name)
        if replica is None:
            replica = self.replicas[name] = Replica(name, self._limits)
        replica.connect(description, lease_epoch)
        replica.adopt(adopted)
        for tenant in self.tenants:
            replica.set_policy(tenant)
        self._workers_changed(now, description)
        for other in self.replicas.values():
            if other.draining:
                self._move_off(other, now)

    def detach(self, name: str, now: float) -> None:
        """A worker's stream has broken: its sequences wait again, with their tokens so far."""
        replica = self.replicas[name]
        replica.disconnect(now)
        self._settle_released(replica, now)
        self._workers_changed(now)

    def drain(self, name: str, now: float) -> None:
        """A worker is leaving: it gets no more sequences, and its own move, with their tokens so far.

        Those that no other could take now run on, to their end or the worker's, or until another comes.
        """
        replica = self.replicas[name]
        if not replica.draining:
            replica.draining = True
            self._move_off(replica, now)

    def keep(self, name: str) -> None:
        """A worker that was about to leave stays."""
        self.replicas[name].draining = False

    @property
    def serves(self) -> bool:
        """Whether a request would get a row: some worker is connected and stays."""
        return any(self._serving())

    def _serving(self) -> Iterator[Replica]:
        return (replica for replica in self.replicas.values() if replica.connected and not replica.draining)

    def _workers_changed(self, now: float, newest: worker_pb2.WorkerDescription | None = None) -> None:
        """What can be held is what those can that are there, or may come back."""
        held = [r.description for r in self.replicas.values() if r.connected or r.missed_since < inf]
        if held:
            self.abilities = Abilities.of(newest or held[-1], held)
        # While one that leaves is connected, it may run other sequences of a request of which one waits.
        is_alone = not any(replica.connected for replica in self.replicas.values())
        self._alone_since = min(self._alone_since, now) if is_alone else inf

    def _move_off(self, replica: Replica, now: float) -> None:
        for sequence in list(replica.running()):
            if any(other.fits(sequence) for other in self._serving()):
                replica.preempt(sequence)
        self._settle_released(replica, now)

    def forget(self, name: str) -> None:
        """A worker that is detached will not come back under this name."""
        assert not self.replicas[name].connected
        del self.replicas[name]

    # -- requests

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def requests(self) -> Iterator[Request]:
        """Requests that have not ended."""
        return iter(self._requests)

    def add(self, client: int, handle: int, asked: scheduler_pb2.TokenRequest, seed: int, now: float) -> None:
        """Queue a request; its tokens come back under (client, handle).

        `seed` (uint64) is used if the request has none. Raises NotReady, InvalidRequest or Overloaded, and
        then nothing has changed. A handle in use ends its request too: its caller cannot tell the two apart.
        """
        if self.abilities is None:
            raise NotReady("no worker has been connected yet")
        if self._given_up_at <= now:
            raise _no_worker()
        if self._requests.get(client, handle) is not None:
            self.cancel(client, handle, now)
            raise InvalidRequest(f"handle {handle} is in use")
        tenant = self._tenant(asked)
        self.tenants.note_request(tenant, now)
        request = make_request(
            client, handle, asked, tenant, seed, now, self._num_arrived, self.abilities, self._limits
        )
        first, mean_output = request.sequences[0], self._requests.mean_output
        if self.serves:
            self._recent_prompts.hash(first, self.abilities.block_size)
        backlog = Backlog.of(request, self.queue, self.replicas.values(), self.tenants, mean_output, now)
        is_length_known, most = not first.stop_token_ids, first.max_total_tokens - len(first.token_ids)
        request.predicted_ttft_s = admit(
            backlog,
            self._limits,
            output_tokens=most if is_length_known else min(mean_output, most),
            is_length_known=is_length_known,
            timeout_s=asked.timeout_s if asked.HasField("timeout_s") else None,
        )
        self._num_arrived += len(request.sequences)
        self._requests.add(request)
        if request.deadline is not None and request.deadline < inf:
            self._deadlines.watch(request.deadline, request)
        for sequence, num_uncached in zip(request.sequences, backlog.uncached, strict=True):
            sequence.num_uncached = num_uncached
            self._start(sequence, now)

    def _tenant(self, asked: scheduler_pb2.TokenRequest) -> Tenant:
        """Who asks, with what it is entitled to from now on."""
        if not asked.HasField("tenant_policy"):
            return self.tenants.get(asked.tenant)
        check_policy(asked.tenant_policy)
        tenant = self.tenants.get(asked.tenant, asked.tenant_policy)
        for replica in self.replicas.values():
            replica.set_policy(tenant)
        return tenant

    def offers(self, asked: scheduler_pb2.TokenRequest) -> tuple[list[bytes], list[Offer]]:
        """Hashes of a request's full prompt blocks, and what each replica could do for it, the queue counted in.

        Raises InvalidRequest, as `add` would.
        """
        if self.abilities is None:
            return [], []
        request = make_request(
            0, 0, asked, Tenant(asked.tenant, 0), 0, 0.0, self._num_arrived, self.abilities, self._limits
        )
        sequence, block_size = request.sequences[0], self.abilities.block_size
        self._recent_prompts.hash(sequence, block_size)
        connected = list(self._serving())
        waiting = self.queue.num_tokens // max(1, len(connected))
        offers = []
        for replica in connected:
            load = replica.load
            uncached = looks.num_uncached(replica, sequence, looks.find_prefix(replica, sequence))
            offers.append(Offer(replica.name, load._replace(backlog=load.backlog + waiting), uncached))
        return sequence.hash_blocks((len(sequence.token_ids) - 1) // block_size, block_size), offers

    def _start(self, sequence: Sequence, now: float) -> None:
        """Queue a new sequence, unless what it is resumed with is its whole output."""
        if sequence.num_output_tokens and sequence.token_ids[-1] in sequence.stop_token_ids:
            self._requests.end(sequence, types_pb2.FINISH_REASON_STOP, now)
        elif len(sequence.token_ids) >= sequence.max_total_tokens:
            self._requests.end(sequence, types_pb2.FINISH_REASON_LENGTH, now)
        else:
            self.queue.push(sequence)

    def cancel(self, client: int, handle: int, now: float) -> None:
        """Stop a request, in whatever state; nothing more comes back for it. Unknown handles are ignored."""
        request = self._requests.get(client, handle)
        if request is not None:
            self._give_up(request, LeaveReason.CANCELLED, now)
            self._requests.forget(request)

    def finish(self, client: int, handle: int, index: int, now: float) -> None:
        """End one sequence whose output is complete; its end comes back, its further tokens do not."""
        request = self._requests.get(client, handle)
        if request is None or index >= len(request.sequences):
            return
        self._give_up_sequence(request.sequences[index], LeaveReason.STOPPED, now)

    def cancel_client(self, client: int, now: float) -> None:
        """Stop all requests of a client that is gone."""
        for handle in self._requests.handles(client):
            self.cancel(client, handle, now)
        self._requests.drop_updates(client)

    def next_deadline(self) -> float:
        """Time at which `expire` should be called even if nothing happens; inf if never."""
        missed_since = min((replica.missed_since for replica in self.replicas.values()), default=inf)
        return min(
            self._deadlines.next(),
            self._given_up_at if len(self.queue) else inf,
            missed_since + self._limits.worker_return_s,
        )

    @property
    def _given_up_at(self) -> float:
        """When nobody waits any longer for a worker to come back."""
        return self._alone_since + self._limits.worker_return_s

    def wake_at(self, now: float) -> float:
        """Time at which to `expire` and to `schedule` for every replica even if nothing happens; inf if never."""
        sends = (decode_at(replica) for replica in self.replicas.values() if replica.has_room)
        return min(self.next_deadline(), min((at for at in sends if at > now), default=inf))

    def _give_up(self, request: Request, reason: LeaveReason, now: float) -> None:
        """Stop every sequence that has not ended. One that holds a row ends when the row is released."""
        for sequence in request.sequences:
            self._give_up_sequence(sequence, reason, now)

    def _give_up_sequence(self, sequence: Sequence, reason: LeaveReason, now: float) -> None:
        if sequence.state is SequenceState.WAITING:
            self.queue.remove(sequence)
            self._requests.end_given_up(sequence, reason, now)
            return
        if sequence.state is SequenceState.ENDED:
            return
        replica = self.replicas[sequence.replica]
        replica.rows.mute(sequence.row)
        if sequence.state is SequenceState.RUNNING:
            replica.leave(sequence, reason)
            self._settle_released(replica, now)
        elif sequence.leave_reason is LeaveReason.PREEMPTED or reason is LeaveReason.CANCELLED:
            sequence.leave_reason = reason

    def expire(self, now: float) -> None:
        """End the requests whose deadline has passed, and all if no worker has come back in time."""
        for request in self._deadlines.due(now):
            self._give_up(request, LeaveReason.EXPIRED, now)
        if self._given_up_at <= now:
            for sequence in self.queue.in_order():
                self.queue.remove(sequence)
                self._requests.end(sequence, types_pb2.FINISH_REASON_ERROR, now, _no_worker().to_proto())
        missed = [r for r in self.replicas.values() if r.missed_since + self._limits.worker_return_s <= now]
        for replica in missed:
            replica.missed_since = inf
        if missed:
            self._workers_changed(now)
        if missed and self.serves:
            for sequence in self.queue.in_order():
                if not self._placement.could_run(sequence):
                    self._refuse_misfit(sequence, now)

    # -- steps

    def schedule(self, name: str, now: float) -> worker_pb2.StepCommand | None:
        """The next command for a replica, or None if it has enough in flight or nothing to do."""
        self.expire(now)
        replica = self.replicas[name]
        for misfit in self._placement.fill(replica, now):
            self._refuse_misfit(misfit, now)
        command = next_command(
            replica, now, prompts_wait=len(self.queue) > 0, is_shared=self.tenants.are_several(now)
        )
        if command is not None:
            replica.in_flight[-1].sent_at = now
        self._settle_released(replica, now)
        return command

    def _refuse_misfit(self, sequence: Sequence, now: float) -> None:
        """End a sequence that was admitted for a worker that came back smaller."""
        self.queue.remove(sequence)
        error = InvalidRequest(
            f"no worker holds {sequence.max_total_tokens} tokens any more", param="max_tokens"
        )
        self._requests.end(sequence, types_pb2.FINISH_REASON_ERROR, now, error.to_proto())

    def apply(self, name: str, result: worker_pb2.StepResult, now: float) -> StepStats:
        """Take in what a command did. After a ProtocolError the caller gives the stream up (`detach`)."""
        replica = self.replicas[name]
        step = step_tokens.read_result(replica, result)
        record = replica.retire(result, now)
        step_tokens.take_tokens(replica, step)
        intervals_s, interval_tokens = step_tokens.take_times(replica, step, now)
        self.tenants.charge_output(replica.rows.tenants[step.rows], step.counts)
        columns, rows = step_tokens.columns_for_clients(replica, step)
        for client, entries, batch in columns.split():
            if result.logprobs:
                own_rows = rows if entries is None else rows[entries]
                step_tokens.add_logprobs(batch, own_rows, replica, result)
            self._requests.tell(client, batch)
        replica.commit_blocks(sequence for sequence, _ in record.chunks)
        replica.commit_blocks(step_tokens.rows_with_full_blocks(replica, step))
        self._end_finished(replica, step, result, now)
        replica.release_removed(record)
        for _ in record.removed:
            replica.speed.note_release(now, wanted=len(self.queue) > 0)
        self._settle_released(replica, now)
        if result.draining:
            self.drain(name, now)
        return StepStats(
            result.step_s, record.prefill_tokens, len(step.token_ids), intervals_s, interval_tokens
        )

    def _end_finished(
        self, replica: Replica, step: StepTokens, result: worker_pb2.StepResult, now: float
    ) -> None:
        for entry in np.flatnonzero(step.finish_reasons).tolist():
            reason = types_pb2.FinishReason.ValueType(int(step.finish_reasons[entry]))
            self._finish(replica, int(step.rows[entry]), reason, None, now)
        for failure in result.errors:
            if failure.row < replica.rows.max_rows and failure.epoch == int(replica.rows.epochs[failure.row]):
                self._finish(replica, failure.row, types_pb2.FINISH_REASON_ERROR, failure.error, now)

    def _finish(
        self,
        replica: Replica,
        row: int,
        reason: types_pb2.FinishReason.ValueType,
        error: types_pb2.Error | None,
        now: float,
    ) -> None:
        """The worker is done with a row; its removal goes out with the next command."""
        sequence = replica.rows.sequences[row]
        if sequence is None or sequence.state is SequenceState.ENDED:
            return
        if sequence.state is SequenceState.RUNNING:
            replica.leave(sequence, LeaveReason.FINISHED)
        elif sequence.leave_reason is not LeaveReason.PREEMPTED:
            return  # given up, and ends so when its row is released
        sequence.settle()
        self._requests.end(sequence, reason, now, error)

    # -- ends

    def _settle_released(self, replica: Replica, now: float) -> None:
        for sequence in replica.take_released():
            if sequence.state is SequenceState.ENDED:
                continue
            assert sequence.leave_reason is not None
            if sequence.leave_reason is LeaveReason.PREEMPTED:
                sequence.state = SequenceState.WAITING
                sequence.num_uncached = looks.num_uncached(
                    replica, sequence, looks.find_prefix(replica, sequence)
                )
                self.queue.push(sequence)
            else:
                self._requests.end_given_up(sequence, sequence.leave_reason, now)

    # -- what the shell takes away

    def take_updates(self) -> dict[int, scheduler_pb2.TokenBatch]:
        """What each client has to be told since the last call."""
        return self._requests.take_updates()

    def take_endings(self) -> list[Ending]:
        """Sequences that ended since the last call, in order."""
        return self._requests.take_endings()

    def check_integrity(self) -> None:
        """Assert the invariants of everything held."""
        self.queue.check_integrity()
        self.tenants.check_integrity()
        for replica in self.replicas.values():
            replica.check_integrity()
            looks.check_integrity(replica)
        self._requests.check_integrity()
