"""A running worker's work is traced on request, and its answers stay what they are."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
from pathlib import Path

from quire.packing import pack_uint32, unpack_int32
from tests.gpu_worker.test_server import PROMPT, first_command, loaded, run, worker
from tests.support.checkpoints import checkpoint
from tests.support.transformers_reference import greedy_tokens
from tests.support.until import until


def names_in(trace: Path) -> set[str]:
    return {event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}


def finished_traces(directory: Path) -> list[Path]:
    return list(directory.glob("quire-steps-*.json.gz"))


def unfinished_traces(directory: Path) -> list[Path]:
    return [path for path in directory.glob("quire-steps-*") if path.suffix != ".gz"]


async def test_sigusr2_writes_a_trace_of_the_steps_that_run_meanwhile(tmp_path: Path) -> None:
    expected = greedy_tokens(checkpoint(), PROMPT, 3)
    # Long enough for a step on a busy machine.
    async with worker(tmp_path, profile_dir=str(tmp_path), profile_s=1.0) as (stub, _):
        os.kill(os.getpid(), signal.SIGUSR2)  # too early: nothing has been loaded
        await loaded(stub)
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)  # one is being recorded
        call, command = run(stub), first_command()
        for _ in range(3):
            await call.write(command)
            assert unpack_int32((await anext(aiter(call))).token_ids).tolist() == expected
            command.step_id += 1
            command.remove_rows = pack_uint32([0])
        await until(lambda: finished_traces(tmp_path))
        call.cancel()
    (trace,) = finished_traces(tmp_path)
    assert "aten::embedding" in names_in(trace)
    assert not unfinished_traces(tmp_path)


async def test_a_directory_that_is_not_there_is_no_harm(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    async with worker(tmp_path, profile_dir=str(missing), profile_s=0.001) as (stub, _):
        await loaded(stub)
        os.kill(os.getpid(), signal.SIGUSR2)
        while not any(task.get_name() == "profile" for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
        while any(task.get_name() == "profile" for task in asyncio.all_tasks()):
            await asyncio.sleep(0.01)
        call = run(stub)
        await call.write(first_command())
        assert (await anext(aiter(call))).step_id == 1
        call.cancel()
