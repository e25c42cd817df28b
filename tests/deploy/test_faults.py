"""Greedy streams under steady load while parts of the composed fleet die, hang, leave and come."""

from pathlib import Path

import openai
import pytest

from tests.deploy.composed_fleet import ComposedFleet
from tests.deploy.faults import FAULTS, Allowed, Fault
from tests.deploy.greedy_streams import HEADER, NUM_KINDS, NUM_TOKENS, Outcome, SteadyLoad, row, stream

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(7200)]

AT_ONCE = 12
TABLE = Path("out") / "deploy" / "faults.md"


async def outcome_of(
    fault: Fault, fleet: ComposedFleet, client: openai.AsyncOpenAI, undisturbed: list[list[int]]
) -> Outcome:
    """Load first, then the fault in its midst, and load for a while after it."""
    load = SteadyLoad(client, AT_ONCE)
    await load.ended(AT_ONCE // 2)
    await fault.inflict(fleet)
    await load.ended(AT_ONCE)
    return Outcome.of(fault.name, await load.finish(), undisturbed)


def is_allowed(outcome: Outcome, allowed: Allowed) -> bool:
    """Whether no token is lost or repeated, and no stream ended worse than it may."""
    may_be_told = allowed is not Allowed.NOTHING
    may_break = allowed is Allowed.BROKEN_CONNECTIONS
    return (
        not (outcome.lost or outcome.repeated)
        and (may_be_told or not outcome.errors)
        and (may_break or not outcome.failures)
    )


async def test_streams_have_the_tokens_of_an_undisturbed_run_whatever_dies(
    fleet: ComposedFleet, client: openai.AsyncOpenAI
) -> None:
    undisturbed = [(await stream(client, kind)).token_ids for kind in range(NUM_KINDS)]
    assert [len(tokens) for tokens in undisturbed] == [NUM_TOKENS] * NUM_KINDS
    table = HEADER
    wrong = []
    for fault in FAULTS:
        outcome = await outcome_of(fault, fleet, client, undisturbed)
        table += row(outcome)
        print(row(outcome), end="", flush=True)
        for error in sorted({*outcome.errors, *outcome.failures}):
            print(f"    {error}")
        if not is_allowed(outcome, fault.allowed):
            wrong.append(fault.name)
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(table)
    assert not wrong, table
