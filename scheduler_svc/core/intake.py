"""From what a client asked to a request with its sequences; nothing of it is queued yet."""

from quire.v1 import scheduler_pb2
from scheduler_svc.core.abilities import Abilities
from scheduler_svc.core.block_hash import public_root, root_hash
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.sequence import Request, Sequence
from scheduler_svc.core.tenants import Tenant
from scheduler_svc.core.validation import plan_sequences


def make_request(
    client: int,
    handle: int,
    asked: scheduler_pb2.TokenRequest,
    tenant: Tenant,
    seed: int,
    now: float,
    first_order: int,
    abilities: Abilities,
    limits: Limits,
) -> Request:
    """Check a request and build it; its sequences have the arrival numbers from `first_order` on.

    `seed` (uint64) is used if the request has none. Raises InvalidRequest.
    """
    num_prompt_tokens, plans = plan_sequences(asked, seed, abilities, limits)
    revision = abilities.model.revision
    request = Request(
        client=client,
        handle=handle,
        request_id=asked.request_id,
        ledger_id=asked.ledger_id,
        tenant=tenant,
        priority=asked.priority,
        arrived_at=now,
        deadline=now + asked.timeout_s if asked.HasField("timeout_s") else None,
        trace=asked.trace if asked.HasField("trace") else None,
        cache_root=root_hash(revision, asked.tenant, asked.cache_salt),
        public_root=public_root(revision),
        num_public_tokens=asked.public_prefix_tokens,
        num_unfinished=len(plans),
    )
    request.sequences = [
        Sequence(
            request,
            index,
            first_order + index,
            token_ids=plan.token_ids,
            num_prompt_tokens=num_prompt_tokens,
            max_total_tokens=plan.max_total_tokens,
            sampling=plan.sampling,
            stop_token_ids=plan.stop_token_ids,
        )
        for index, plan in enumerate(plans)
    ]
    return request
