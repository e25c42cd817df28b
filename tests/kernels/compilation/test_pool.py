"""Processes that compile: what they cannot compile is told, and the next thing is asked of them all the same."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from triton import knobs

from kernels.compilation import pool as pool_module
from kernels.compilation.pool import CompilerPool


def ask(module: str) -> bool:
    """What Triton does before it compiles; whether it then leaves it to others."""
    return knobs.runtime.jit_cache_hook(
        key="", repr="", fn=SimpleNamespace(module=module, name="kernel"), is_manual_warmup=False,
        compile={"specialization_data": module}, already_compiled=False,
    )  # fmt: skip


def test_what_cannot_be_compiled_is_told_and_the_next_is_tried() -> None:
    shares: list[float] = []
    with CompilerPool(1, 90) as pool:
        with pool.rehearsal():
            assert all([ask("kernels.nothing"), ask("kernels.nothing"), ask("kernels.pdl")])
        problems = pool.finish(shares.append)
    assert pool.num_kernels == 2
    assert pool._process.returncode == 0
    assert [problem.partition(":")[0] for problem in problems] == ["ModuleNotFoundError", "AttributeError"]
    assert shares == [0.5, 1.0]


def test_compilers_that_died_are_no_reason_to_wait() -> None:
    with CompilerPool(2, 90) as pool:
        pool.end_processes()
        with pool.rehearsal():
            ask("kernels.nothing")
        problems = pool.finish(lambda _: None)
    assert len(problems) == 1
    assert problems[0].startswith("a compiler died over")


def test_one_compiler_that_died_leaves_what_is_wanted_to_the_others() -> None:
    with CompilerPool(2, 90) as pool:
        pool._compilers[0].ask = lambda request: None  # type: ignore[method-assign]
        with pool.rehearsal():
            for number in range(6):
                ask(f"kernels.nothing{number}")
        problems = pool.finish(lambda _: None)
    assert len(problems) == 6
    assert sum(problem.startswith("a compiler died over") for problem in problems) <= 1


def test_compilers_that_hang_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_PATIENCE_S", 0.0)
    with CompilerPool(2, 90) as pool:
        os.killpg(pool._process.pid, signal.SIGSTOP)
        with pool.rehearsal():
            ask("kernels.nothing")
        assert pool.finish(lambda _: None) == ["no compiler answered within 0 s"]
    assert pool._process.returncode == -signal.SIGKILL


def test_in_a_rehearsal_alone_new_memory_is_zeros() -> None:
    before = knobs.runtime.jit_cache_hook
    with CompilerPool(1, 90) as pool, pool.rehearsal():
        made = torch.empty(1000, dtype=torch.int64)
        like, new = torch.empty_like(made), made.new_empty(7)
    for tensor in (made, like, new):
        assert not tensor.any()
    assert knobs.runtime.jit_cache_hook is before
