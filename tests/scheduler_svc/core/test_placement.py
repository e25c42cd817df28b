"""What waits holds up nobody whom it should not: lanes, floors, ceilings, priorities, awaited prefixes."""

import pytest

from quire.errors import InvalidRequest
from quire.v1 import types_pb2
from tests.scheduler_svc.core.timed_fleet import TimedFleet

HALF_FLOOR = types_pb2.TenantPolicy(kv_floor=0.5)
LOW_CEILING = types_pb2.TenantPolicy(kv_ceiling=0.05)


@pytest.mark.parametrize("num_long", [16, 100])
def test_long_prompts_of_its_own_tenant_do_not_hold_up_a_short_one(num_long: int) -> None:
    fleet = TimedFleet(20000)
    fleet.add(1, 2000)
    fleet.ttft(1)
    for handle in range(num_long):
        fleet.add(100 + handle, 4000)
    fleet.step()
    fleet.add(2, 30)
    assert fleet.ttft(2) < 0.2


def test_long_prompts_that_wait_for_blocks_do_not_hold_up_a_short_one() -> None:
    fleet = TimedFleet(3000)
    for handle in range(40):
        fleet.add(100 + handle, 20000, max_tokens=400)
    for _ in range(10):
        fleet.step()
    fleet.add(2, 30)
    assert fleet.ttft(2) < 0.2


def test_prompts_that_only_a_busy_worker_holds_do_not_keep_short_ones_from_an_idle_worker() -> None:
    fleet = TimedFleet(200, 3000)
    for handle in range(40):
        fleet.add(100 + handle, 20000, max_tokens=400)
    for _ in range(6):
        fleet.step()
    fleet.add(2, 30)
    assert fleet.ttft(2) < 0.1


def test_a_long_prompt_on_one_worker_does_not_keep_its_tenants_others_from_an_idle_one() -> None:
    fleet = TimedFleet(10000, 10000, max_model_len=131072)
    fleet.add(1, 120000)
    fleet.step()
    for handle in range(10):
        fleet.add(100 + handle, 600)
    assert fleet.ttft(109) < 1.0


def test_requests_that_wait_for_one_prefix_do_not_hold_up_a_short_one() -> None:
    fleet = TimedFleet(20000, max_model_len=131072)
    prefix = fleet.prompt(50000)
    for handle in range(40):
        fleet.add(100 + handle, [*prefix, handle])
    fleet.step()
    fleet.add(2, 30)
    assert fleet.ttft(2) < 0.5


def test_nobody_waits_for_a_prefix_that_a_lower_priority_computes() -> None:
    fleet = TimedFleet(20000)
    prefix = fleet.prompt(8000)
    fleet.add(1, [*prefix, 1], priority=9)
    fleet.step()
    for handle in range(60):
        fleet.add(100 + handle, 8000, priority=5)
    fleet.add(2, [*prefix, 2], priority=-5)
    assert fleet.ttft(2) < 1.0


@pytest.mark.parametrize("priority", [0, -1])
def test_a_tenant_at_its_ceiling_does_not_keep_others_from_rows(priority: int) -> None:
    fleet = TimedFleet(4000, max_model_len=2048)
    for handle in range(40):
        fleet.add(100 + handle, 800, max_tokens=800, tenant="a", tenant_policy=LOW_CEILING, priority=priority)
    for _ in range(20):
        fleet.step()
    fleet.add(2, 30, tenant="b")
    assert fleet.ttft(2) < 0.1


def test_a_tenant_at_its_ceiling_does_not_halt_others_decoding() -> None:
    policy = types_pb2.TenantPolicy(kv_ceiling=0.3)
    fleet = TimedFleet(300, max_model_len=512, max_decode_steps=1)
    for handle in range(60):
        tenant = "a" if handle % 2 else "b"
        fleet.add(handle, 60, max_tokens=300, tenant=tenant, tenant_policy=policy if tenant == "a" else None)
    for _ in range(600):
        fleet.step()
    without = [command for command in fleet.commands[5:] if not command.decode_steps]
    assert len(without) <= 3


def test_a_tenant_below_its_floor_waits_behind_nobody_for_blocks_that_are_kept_for_it() -> None:
    fleet = TimedFleet(200, max_model_len=201, block_size=4, max_rows=16, max_step_tokens=640)
    fleet.add(1, 1, tenant="floor", tenant_policy=HALF_FLOOR)
    fleet.ttft(1)
    for handle in range(2):
        fleet.add(50 + handle, 150, max_tokens=50, tenant="other", priority=-5)
    for _ in range(4):
        fleet.step()
    fleet.add(77, 120, tenant="blocked", priority=-1)
    fleet.step()
    fleet.add(2, 160, tenant="floor", tenant_policy=HALF_FLOOR)
    assert fleet.ttft(2) < 0.1


def test_rows_of_lower_priority_leave_no_margin_against_a_higher_one() -> None:
    fleet = TimedFleet(400, max_model_len=4096, max_rows=64)
    for handle in range(50):
        fleet.add(100 + handle, 60, max_tokens=1500, priority=5)
    for _ in range(5):
        fleet.step()
    fleet.add(2, 2080, priority=-5)
    assert fleet.ttft(2) < 0.2


@pytest.mark.parametrize("policy", [{"kv_ceiling": 0.25}, {"kv_floor": 0.25}])
def test_public_blocks_that_others_still_use_bring_nobody_to_a_stop(policy: dict[str, float]) -> None:
    fleet = TimedFleet(40, max_model_len=41, block_size=4)
    entitled, public = types_pb2.TenantPolicy(**policy), fleet.prompt(20)
    fleet.add(1, [*public, 1], max_tokens=6, tenant="a", tenant_policy=entitled, public_prefix_tokens=20)
    for _ in range(3):
        fleet.step()
    fleet.add(2, [*public, 2], max_tokens=19, tenant="b", public_prefix_tokens=20)
    while 1 not in fleet.ended:
        assert fleet.step()
    fleet.add(3, 16, max_tokens=24, tenant="a", tenant_policy=entitled)
    while fleet.step():
        pass
    assert fleet.ended == {1, 2, 3}


def test_what_only_a_lost_worker_could_hold_is_given_up_in_time_and_refused_from_then_on() -> None:
    fleet = TimedFleet(200, 3000)
    fleet.add(1, 20000)
    fleet.step()
    fleet.scheduler.detach("w1", fleet.now)
    fleet.queues["w1"].clear()
    fleet.now = fleet.scheduler.wake_at(fleet.now)
    fleet.scheduler.expire(fleet.now)
    fleet.step()
    assert fleet.ended == {1}
    with pytest.raises(InvalidRequest, match="at most 3201 tokens"):
        fleet.add(2, 20000)


def test_of_a_burst_under_a_new_prompt_nobody_is_told_the_time_of_computing_it_again() -> None:
    """A hundred come at once with 4,000 tokens in common and 30 of their own: 0.2 s of work, not 8."""
    fleet = TimedFleet(4000, max_rows=8)
    fleet.add(1000, 3000)
    while fleet.step():
        pass
    system = fleet.prompt(4000)
    for handle in range(100):
        fleet.add(handle, system + fleet.prompt(30), timeout_s=3.0)
    predicted = [request.predicted_ttft_s for request in fleet.scheduler._requests]
    assert max(predicted) < 1.0
    while fleet.step():
        pass
    assert set(range(100)) <= fleet.ended
    assert max(fleet.first_token_at[handle] for handle in range(100)) < fleet.now < 3.0
