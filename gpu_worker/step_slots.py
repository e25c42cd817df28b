"""Buffers of the commands in flight: one copy to the device before a command's steps, one back after them.

On a GPU both run beside the steps, on streams of their own. A slot is taken by one command at a time, from before its
upload until its results were read, so that no buffer is written while a copy of it is in flight. On a CPU the same
buffers are read in place.
"""

import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 16
_FIRST_CAPACITY = 1 << 20

_TORCH_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


class StepStreams:
    """The stream that computes, the current one of whoever makes this, and those beside it; none on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        if self.is_cuda:
            self.compute = torch.cuda.current_stream(device)
            self.upload = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.download = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def on(self, stream: torch.cuda.Stream) -> Iterator[None]:
        """Context, within that of the stream that computes, in which work is queued on one of those beside."""
        # Not `torch.cuda.stream`, nor events without a stream: these ask for the devices each time.
        torch.cuda.set_stream(stream)
        try:
            yield
        finally:
            torch.cuda.set_stream(self.compute)


class StepSlot:
    """One command's buffers; `results` int32 [most steps, 2, max_rows] is on the device."""

    def __init__(self, index: int, results: torch.Tensor, streams: StepStreams) -> None:
        self.index = index
        self._streams = streams
        self._results = results
        self._host_results = torch.empty(results.shape, dtype=torch.int32, pin_memory=streams.is_cuda)
        self._host = torch.empty(0, dtype=torch.uint8)
        self._device = self._host
        self._cpu_started = self._cpu_s = 0.0
        if streams.is_cuda:
            self._uploaded = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._started = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._finished = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            # Waited for by a thread, which sleeps meanwhile.
            self._downloaded = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def upload(self, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, torch.Tensor]:
        """The arrays (int32, int64, float32) on the device, by one copy; valid until the slot is taken again."""
        offsets, size = {}, 0
        for name, array in arrays.items():
            offsets[name] = size
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._reserve(size)
        target = self._host.numpy()
        for name, array in arrays.items():
            place = target[offsets[name] : offsets[name] + array.nbytes].view(array.dtype)
            place.reshape(array.shape)[...] = array
        if self._streams.is_cuda:
            with self._streams.on(self._streams.upload):
                self._device[:size].copy_(self._host[:size], non_blocking=True)
            self._uploaded.record(self._streams.upload)
            self._uploaded.wait(self._streams.compute)
        return {
            name: self._device[offsets[name] : offsets[name] + array.nbytes]
            .view(_TORCH_DTYPES[array.dtype])
            .view(array.shape)
            for name, array in arrays.items()
        }

    def _reserve(self, size: int) -> None:
        if size <= len(self._host):
            return
        capacity = max(_FIRST_CAPACITY, 1 << (size - 1).bit_length())
        self._host = torch.empty(capacity, dtype=torch.uint8, pin_memory=self._streams.is_cuda)
        self._device = self._host
        if self._streams.is_cuda:
            # Memory of the stream that writes it first: the other stream's allocator may hand out what is still read.
            with self._streams.on(self._streams.upload):
                self._device = torch.empty(capacity, dtype=torch.uint8, device=self._streams.device)

    def start(self) -> None:
        """The command's work begins here."""
        self._cpu_started = time.perf_counter()
        if self._streams.is_cuda:
            self._started.record(self._streams.compute)

    def finish(self, num_steps: int, others: list[torch.Tensor]) -> list[torch.Tensor]:
        """The command's work ends here: results of `num_steps`, and `others`, which are returned, go to the host."""
        if not self._streams.is_cuda:
            self._host_results[:num_steps] = self._results[:num_steps]
            self._cpu_s = time.perf_counter() - self._cpu_started
            return others
        self._finished.record(self._streams.compute)
        self._finished.wait(self._streams.download)
        with self._streams.on(self._streams.download):
            self._host_results[:num_steps].copy_(self._results[:num_steps], non_blocking=True)
            found = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in others]
            for target, tensor in zip(found, others, strict=True):
                target.copy_(tensor, non_blocking=True)
        self._downloaded.record(self._streams.download)
        return found

    def wait(self) -> tuple[NDArray[np.int32], float]:
        """Block until the results are here: int32 [most steps, 2, max_rows], and the seconds that the device worked."""
        if not self._streams.is_cuda:
            return self._host_results.numpy(), self._cpu_s
        self._downloaded.synchronize()
        return self._host_results.numpy(), self._started.elapsed_time(self._finished) / 1e3


class SlotRing:
    """As many slots as commands may be in flight; `results` int32 [slots * most steps, 2, max_rows] is theirs."""

    def __init__(self, num_slots: int, max_steps: int, max_rows: int, device: torch.device) -> None:
        self._max_steps = max_steps
        self.results = torch.zeros((num_slots * max_steps, 2, max_rows), dtype=torch.int32, device=device)
        self._free: queue.SimpleQueue[StepSlot] = queue.SimpleQueue()
        streams = StepStreams(device)
        for index, results in enumerate(torch.split(self.results, max_steps)):
            self._free.put(StepSlot(index, results, streams))

    def take(self) -> StepSlot:
        """A free slot; blocks while all commands in flight have theirs."""
        return self._free.get()

    def first_step(self, slot: StepSlot) -> int:
        """Index into `results` of the slot's first step."""
        return slot.index * self._max_steps

    def give_back(self, slot: StepSlot) -> None:
        """The slot's results were read."""
        self._free.put(slot)
