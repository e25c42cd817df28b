"""Who is remembered, what is counted, and who starts where."""

from quire.v1 import types_pb2
from scheduler_svc.core.tenants import Tenants


def test_who_comes_back_starts_at_the_level_of_those_that_are_active() -> None:
    tenants = Tenants()
    busy, late = tenants.get("busy"), tenants.get("late")
    tenants.enter(busy)
    tenants.charge(busy, 100.0)
    tenants.enter(late)
    assert late.service == busy.service


def test_a_weight_makes_what_is_served_count_less() -> None:
    tenants = Tenants()
    heavy = tenants.get("heavy", types_pb2.TenantPolicy(weight=4.0))
    tenants.charge(heavy, 100.0)
    assert heavy.service == 25.0


def test_of_the_idle_only_those_with_a_floor_or_a_ceiling_are_remembered_for_ever() -> None:
    tenants = Tenants()
    entitled = [
        tenants.get("floor", types_pb2.TenantPolicy(kv_floor=0.1)),
        tenants.get("ceiling", types_pb2.TenantPolicy(kv_ceiling=0.5)),
    ]
    for number in range(3000):
        tenants.get(f"passing {number}")
    assert len(list(tenants)) <= 1100
    assert [tenants.get(tenant.name) for tenant in entitled] == entitled
    # Nobody gets the place, and so the ceiling, of one that has one.
    assert {tenant.index for tenant in entitled}.isdisjoint(t.index for t in tenants if t not in entitled)
    tenants.check_integrity()


def test_two_tenants_are_several_for_a_while() -> None:
    tenants = Tenants()
    tenants.note_request(tenants.get("a"), 0.0)
    assert not tenants.are_several(1.0)
    tenants.note_request(tenants.get("b"), 1.0)
    assert tenants.are_several(5.0)
    assert not tenants.are_several(60.0)


def test_who_has_work_is_beside_who_asked_a_moment_ago_and_is_done() -> None:
    tenants = Tenants()
    flood, light = tenants.get("flood"), tenants.get("light")
    tenants.note_request(flood, 0.0)
    tenants.enter(flood)
    for now in (30.0, 60.0):
        assert not tenants.are_several(now - 1.0)
        tenants.note_request(light, now)
        tenants.enter(light)
        tenants.leave(light)
        assert tenants.are_several(now + 5.0)
        assert not tenants.are_several(now + 15.0)
