"""Runs Gluon kernels of this repository on the CPU, where Triton's interpreter does not: what they compute, not how.

Every program is a thread, every partition another; tensors are numpy arrays, layouts nothing. Barriers count arrivals
and bytes as the hardware does, so that a kernel that waits for what never comes is found by the timeout.
"""

import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

_TIMEOUT_S = 60.0
_DTYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.int32: np.int32}


class Tensor(np.ndarray):
    """A numpy array with the few methods of Gluon's tensors that numpy lacks, and like them never changed in place."""

    def __iadd__(self, other: Any) -> "Tensor":  # type: ignore[misc]
        return self + other

    def __ior__(self, other: Any) -> "Tensor":  # type: ignore[misc]
        return self | other

    @property
    def type(self) -> Any:
        return types.SimpleNamespace(layout=None)

    def permute(self, order: Sequence[int]) -> "Tensor":
        return self.transpose(order)

    def to(self, dtype: Any, bitcast: bool = False) -> "Tensor":
        if bitcast:
            return np.ascontiguousarray(self).view(dtype).view(Tensor)
        return self.astype(dtype).view(Tensor)


def _tensor(values: Any) -> Tensor:
    return np.asarray(values).view(Tensor)


class Pointer:
    """Elements of a flat array, at an offset or at many."""

    def __init__(self, flat: np.ndarray[Any, Any], offset: Any = 0) -> None:
        self.flat, self.offset = flat, offset
        self.dtype = types.SimpleNamespace(element_ty=flat.dtype.type)

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.flat, self.offset + other)


class Barrier:
    """An mbarrier that one arrival and the bytes expected complete."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.completed, self.pending, self.bytes = 0, 1, 0

    def change(self, arrivals: int, num_bytes: int) -> None:
        with self.changed:
            self.pending -= arrivals
            self.bytes += num_bytes
            if self.pending == 0 and self.bytes == 0:
                self.completed, self.pending = self.completed + 1, 1
                self.changed.notify_all()

    def wait(self, phase: int) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.completed % 2 != phase, _TIMEOUT_S):
                raise TimeoutError("a barrier was never completed")


class Shared:
    """Shared memory of several stages, or a view of one."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values, self.dtype = values, values.dtype.type

    def index(self, number: int) -> "Shared":
        return Shared(self.values[number])

    def permute(self, order: Sequence[int]) -> "Shared":
        return Shared(self.values.transpose(order))

    def _reinterpret(self, dtype: Any, shape: Sequence[int], layout: None) -> "Shared":
        return Shared(self.values.reshape(shape))


class _Barriers:
    """Barriers in shared memory."""

    def __init__(self, count: int) -> None:
        self.all = [Barrier() for _ in range(count)]

    def index(self, number: int) -> Barrier:
        return self.all[number]


def _flat(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """All elements of the memory that a tensor begins in, from its first on."""
    length = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    return torch.as_strided(tensor, (length,), (1,)).numpy()


class Descriptor:
    """A tensor descriptor, as a kernel sees it."""

    def __init__(self, made: TensorDescriptor) -> None:
        self.made, self.flat = made, _flat(made.base)
        self.dtype, self.layout = self.flat.dtype.type, None

    def box(self, at: Sequence[int]) -> np.ndarray[Any, Any]:
        """A box, zero outside of the tensor."""
        offset: Any = 0
        inside: Any = True
        for number, (first, size, length, stride) in enumerate(
            zip(at, self.made.block_shape, self.made.shape, self.made.strides, strict=True)
        ):
            index = first + np.arange(size).reshape([-1] + [1] * (len(at) - number - 1))
            inside = inside & (index >= 0) & (index < length)
            offset = offset + index * stride
        return np.where(inside, self.flat[np.where(inside, offset, 0)], 0)


def _load(pointer: Pointer, mask: Any = True, other: Any = 0, **_: Any) -> Tensor:
    offset, mask = np.broadcast_arrays(pointer.offset, mask)
    return _tensor(np.where(mask, pointer.flat[np.where(mask, offset, 0)], other).astype(pointer.flat.dtype))


def _store(pointer: Pointer, values: Any, mask: Any = True) -> None:
    offset, mask, values = np.broadcast_arrays(pointer.offset, mask, values)
    pointer.flat[offset[mask]] = values[mask]


def _copy(descriptor: Descriptor, at: Sequence[int], barrier: Barrier, target: Shared) -> None:
    target.values[...] = descriptor.box(at)
    # In 16 bits an element, as on the GPU, whatever stands for it here.
    barrier.change(0, -2 * target.values.size)


def _multiply_add(a: Shared, b: Shared, sums: Any, **_: Any) -> Tensor:
    return _tensor(sums + a.values.astype(np.float32) @ b.values.astype(np.float32))


class Emulated:
    """Stands for a kernel: `kernel[grid](...)` runs it before it returns."""

    def __init__(self, kernel: Any) -> None:
        self._local = threading.local()
        self._errors: list[BaseException] = []
        self._kernel = self._translated(kernel, {})

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, launch_pdl: bool, maxnreg: int, **constants: Any) -> None:
            given = [self._given(argument) for argument in arguments]
            self._errors.clear()
            programs = [
                threading.Thread(target=self._guarded, args=(number, grid[0], self._kernel, given, constants))
                for number in range(grid[0])
            ]
            for program in programs:
                program.start()
            for program in programs:
                program.join()
            if self._errors:
                raise self._errors[0]

        return launch

    @staticmethod
    def _given(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return Pointer(_flat(argument))
        return Descriptor(argument) if isinstance(argument, TensorDescriptor) else argument

    def _guarded(
        self, number: int, count: int, function: Callable[..., Any], arguments: Any, constants: Any
    ) -> None:
        self._local.program, self._local.programs = number, count
        try:
            with np.errstate(all="ignore"):
                function(*arguments, **constants)
        except BaseException as error:
            self._errors.append(error)

    def _specialize(self, partitions: Sequence[tuple[Callable[..., Any], Any]], *_: Any) -> None:
        here = self._local.program, self._local.programs
        threads = [
            threading.Thread(target=self._guarded, args=(*here, function, arguments, {}))
            for function, arguments in partitions
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _allocate(self, dtype: Any, shape: Sequence[int], layout: Any) -> Any:
        return _Barriers(shape[0]) if dtype is np.int64 else Shared(np.zeros(shape, dtype))

    def _language(self) -> types.SimpleNamespace:
        def nothing(*_: Any, **__: Any) -> None:
            return None

        return types.SimpleNamespace(
            float32=np.float32, int32=np.int32, int64=np.int64, static_range=range, minimum=min, exp=np.exp,
            load=_load, store=_store, allocate_shared_memory=self._allocate, warp_specialize=self._specialize,
            program_id=lambda _: self._local.program, num_programs=lambda _: self._local.programs,
            num_warps=nothing, SliceLayout=nothing, NVMMADistributedLayout=nothing, NVMMASharedLayout=nothing,
            arange=lambda start, end, layout: _tensor(np.arange(start, end)),
            zeros=lambda shape, dtype, layout: _tensor(np.zeros(shape, dtype)),
            full=lambda shape, value, dtype, layout: _tensor(np.full(shape, value, dtype)),
            max=lambda values, axis: int(np.max(values)), convert_layout=lambda values, layout: values,
            split=lambda values: (values[..., 0], values[..., 1]),
            join=lambda first, second: _tensor(np.stack([first, second], axis=-1)),
        )  # fmt: skip

    def _translated(self, function: Any, known: dict[Any, Any]) -> Callable[..., Any]:
        """The Python function behind a Gluon one, with everything that it names replaced by what is here."""
        if function in known:
            return known[function]  # type: ignore[no-any-return]
        python = function.fn
        names: dict[str, Any] = {"__builtins__": __builtins__}
        known[function] = translated = types.FunctionType(
            python.__code__, names, python.__name__, python.__defaults__
        )
        translated.__kwdefaults__ = python.__kwdefaults__
        replaced = {
            "gl": self._language(),
            "mbarrier": types.SimpleNamespace(
                init=lambda barrier, count: None, MBarrierLayout=lambda: None,
                expect=lambda barrier, size: barrier.change(1, size),
                arrive=lambda barrier, pred=True: barrier.change(1, 0) if pred else None,
                wait=lambda barrier, phase: barrier.wait(phase),
            ),
            "tma": types.SimpleNamespace(async_copy_global_to_shared=_copy),
            "warpgroup_mma": _multiply_add,
            "warpgroup_mma_wait": lambda outstanding, deps: deps[0],
        }  # fmt: skip
        for name, value in python.__globals__.items():
            if name in python.__code__.co_names:
                is_gluon = hasattr(value, "is_gluon")
                value = getattr(value, "value", value)
                names[name] = replaced.get(name, self._translated(value, known) if is_gluon else value)
        return translated
