"""Processes that compile kernels, and the rehearsal that tells them which."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from triton import knobs

_PATIENCE_S = 120.0
"""A kernel takes a second or two."""
_UNWRITTEN = (torch.empty, torch.empty_like, torch.Tensor.new_empty)


class _Zeros(TorchFunctionMode):
    """What kernels would fill is zeros: what lies in new memory could be no index of anything."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func in _UNWRITTEN else made


class _Compiler:
    """This side of one process: requests and answers, a line each."""

    def __init__(self) -> None:
        their_requests, requests = os.pipe()
        answers, their_answers = os.pipe()
        self.theirs = (their_requests, their_answers)
        self._requests, self._answers = os.fdopen(requests, "w"), os.fdopen(answers)

    def ask(self, request: str) -> str | None:
        """Waits for the answer; None if the process is no more."""
        try:
            print(request, file=self._requests, flush=True)
            answer = self._answers.readline()
        except OSError:
            return None
        return answer.strip() if answer else None

    def close(self) -> None:
        with suppress(OSError):  # of what was still to be written
            self._requests.close()
        self._answers.close()


class CompilerPool:
    """`num_processes` compilers for GPUs of a capability such as 90; leaving the context ends them."""

    def __init__(self, num_processes: int, capability: int) -> None:
        self._compilers = [_Compiler() for _ in range(num_processes)]
        theirs = [descriptor for compiler in self._compilers for descriptor in compiler.theirs]
        # A session of their own, to end them together.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kernels.compilation.compiler", str(capability), *map(str, theirs)],
            env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
            pass_fds=theirs, start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        for descriptor in theirs:
            os.close(descriptor)
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._seen: set[tuple[str, str]] = set()
        self._num_answered = 0
        self._num_alive = num_processes
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._feed, args=(each,), daemon=True) for each in self._compilers
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "CompilerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._num_answered < len(self._seen):
            self.end_processes()
        for _ in self._threads:
            self._wanted.put(None)
        for thread, compiler in zip(self._threads, self._compilers, strict=True):
            thread.join()
            compiler.close()
        # With their requests they end by themselves, and are waited for by the process that made them.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        self.end_processes()

    def end_processes(self) -> None:
        """Whatever they do."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Within it no kernel is launched by this thread's work: what its launch would need is compiled by the pool."""
        before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, self._take
        try:
            with _Zeros():
                yield
        finally:
            knobs.runtime.jit_cache_hook = before

    def finish(self, on_progress: Callable[[float], None]) -> list[str]:
        """Wait for all that was asked for, told the share done; returns what went wrong."""
        problems: list[str] = []
        while self._num_answered < len(self._seen):
            try:
                problem = self._answers.get(timeout=_PATIENCE_S)
            except queue.Empty:
                return [*problems, f"no compiler answered within {_PATIENCE_S:g} s"]
            if problem:
                problems.append(problem)
            self._num_answered += 1
            on_progress(self._num_answered / len(self._seen))
        return problems

    @property
    def num_kernels(self) -> int:
        """Kernels asked for, each form of one counted."""
        return len(self._seen)

    def _take(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        """Triton's hook before it compiles; True keeps it from compiling and launching."""
        wanted = (fn.module, fn.name, compile["specialization_data"])
        if wanted[1:] not in self._seen:
            self._seen.add(wanted[1:])
            names = ("module", "name", "specialization")
            self._wanted.put(json.dumps(dict(zip(names, wanted, strict=True))))
        return True

    def _feed(self, compiler: _Compiler) -> None:
        """One thread per process: a kernel at a time, so that a long one keeps none waiting.

        The thread of a process that died leaves what is wanted to others; the last one says of all that it failed.
        """
        is_alive = True
        while (request := self._wanted.get()) is not None:
            answer = compiler.ask(request) if is_alive else None
            self._answers.put(f"a compiler died over {request[:100]}" if answer is None else answer)
            if is_alive and answer is None:
                is_alive = False
                if self._others_left() > 0:
                    return

    def _others_left(self) -> int:
        with self._lock:
            self._num_alive -= 1
            return self._num_alive
