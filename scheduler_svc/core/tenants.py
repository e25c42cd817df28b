"""Who has been served how much: virtual token counters.

Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: each tenant's counter grows by the weighted
tokens that it is served, divided by its share; whoever has the lowest counter is served next. A tenant that
comes back from idleness is lifted to the lowest counter of those active, so that nobody saves up credit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from quire.v1 import types_pb2

# What a token costs: an output token holds a row for a step of its own, a prompt token shares its step.
PROMPT_TOKEN_COST = 1.0
OUTPUT_TOKEN_COST = 2.0

RECENTLY_S = 10.0
_FORGET_ABOVE = 1024


@dataclass(slots=True, eq=False)
class Tenant:
    """One tenant's share and what it has had."""

    name: str
    index: int
    """Small and stable while the tenant is known: its place in columns."""
    weight: float = 1.0
    kv_floor: float = 0.0
    """Share of each replica's blocks that others never take from it."""
    kv_ceiling: float = 1.0
    """Share of each replica's blocks that it may hold."""
    service: float = 0.0
    """The virtual counter."""
    num_active: int = 0
    """Its sequences that have not ended."""
    num_pending: int = 0
    """Prompt tokens of its placed sequences that no command has asked for yet: service that is promised."""
    num_waiting_tokens: int = 0
    """Tokens of its sequences that wait for a row."""

    @property
    def promised(self) -> float:
        """The counter as it will be when what is placed is computed."""
        return self.service + self.num_pending * PROMPT_TOKEN_COST / self.weight


class Tenants:
    """The tenants that have something to do, and those that are remembered for their counter or floor."""

    def __init__(self) -> None:
        self._by_name: dict[str, Tenant] = {}
        self._by_index: list[Tenant | None] = []
        self._free_indices: list[int] = []
        self._num_active = 0
        self._latest: Tenant | None = None
        self._latest_at = -inf
        self._second_at = -inf
        """When anybody but the latest tenant asked last."""
        self._level = 0.0
        """The lowest counter that a tenant coming back is given, while nobody is active."""

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._by_name.values())

    def get(self, name: str, policy: types_pb2.TenantPolicy | None = None) -> Tenant:
        """The tenant of this name, made if it is new; `policy` replaces what held for it before."""
        tenant = self._by_name.get(name)
        if tenant is None:
            self._forget_idle()
            index = self._free_indices.pop() if self._free_indices else len(self._by_index)
            tenant = self._by_name[name] = Tenant(name, index)
            if index == len(self._by_index):
                self._by_index.append(tenant)
            else:
                self._by_index[index] = tenant
        if policy is not None:
            tenant.weight = policy.weight or 1.0
            tenant.kv_floor = policy.kv_floor
            tenant.kv_ceiling = policy.kv_ceiling or 1.0
        return tenant

    def note_request(self, tenant: Tenant, now: float) -> None:
        """The tenant asks for something at `now` (seconds)."""
        if tenant is not self._latest:
            self._latest, self._second_at = tenant, self._latest_at
        self._latest_at = now

    def are_several(self, now: float) -> bool:
        """Whether more than one tenant has work, or asked for some a moment ago."""
        if self._num_active > 1 or now - self._second_at < RECENTLY_S:
            return True
        is_anothers = self._latest is not None and not self._latest.num_active
        return self._num_active == 1 and is_anothers and now - self._latest_at < RECENTLY_S

    def enter(self, tenant: Tenant) -> None:
        """One more of the tenant's sequences is active."""
        if tenant.num_active == 0:
            self._num_active += 1
            active = [other.service for other in self._by_name.values() if other.num_active]
            self._level = min(active) if active else self._level
            tenant.service = max(tenant.service, self._level)
        tenant.num_active += 1

    def leave(self, tenant: Tenant) -> None:
        """One of the tenant's sequences has ended."""
        tenant.num_active -= 1
        assert tenant.num_active >= 0, f"tenant {tenant.name!r} left more often than it came"
        if tenant.num_active == 0:
            self._num_active -= 1
            self._level = max(self._level, tenant.service)

    def charge(self, tenant: Tenant, cost: float) -> None:
        """Count `cost` weighted tokens as served."""
        tenant.service += cost / tenant.weight

    def charge_output(self, indices: NDArray[np.int64], counts: NDArray[np.integer] | None) -> None:
        """Count output tokens: `counts[i]` (None: one each) of the tenant with index `indices[i]`, [n]."""
        if len(indices) == 0:
            return
        tokens = np.bincount(indices, weights=counts)
        for index in np.flatnonzero(tokens).tolist():
            tenant = self._by_index[index]
            assert tenant is not None
            self.charge(tenant, float(tokens[index]) * OUTPUT_TOKEN_COST)

    def active_weight(self) -> float:
        """Sum of the weights of those active."""
        return sum(tenant.weight for tenant in self._by_name.values() if tenant.num_active)

    def check_integrity(self) -> None:
        """Assert that names and indices agree."""
        assert self._num_active == sum(tenant.num_active > 0 for tenant in self)
        known = {tenant.index: tenant for tenant in self._by_name.values()}
        assert {i: t for i, t in enumerate(self._by_index) if t is not None} == known
        assert all(t.num_pending >= 0 and t.num_waiting_tokens >= 0 for t in self._by_name.values())

    def _forget_idle(self) -> None:
        """Bound memory: who is idle, at or below the level, without floor or ceiling, comes back the same."""
        if len(self._by_name) < _FORGET_ABOVE:
            return
        idle = [
            tenant
            for tenant in self._by_name.values()
            if not tenant.num_active
            and tenant.service <= self._level
            and not tenant.kv_floor
            and tenant.kv_ceiling >= 1.0
        ]
        for tenant in idle:
            del self._by_name[tenant.name]
            self._by_index[tenant.index] = None
            self._free_indices.append(tenant.index)
