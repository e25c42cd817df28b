"""Runs a Gluon kernel for Hopper on a CPU, which Triton's own interpreter does not: program after program, in numpy.

What the hardware does at a time of its own choosing is done at one extreme or the other: a copy to shared memory when
it is asked for or not before it is waited for, a product when it is issued or not before it is waited for. A kernel
that reads too early or overwrites too soon gives other numbers in one of the four. What barriers between warps guard
is not seen: all threads go in step.
"""

import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
ORDERS = list(itertools.product([False, True], repeat=2))
"""Whether copies are late, and products."""


class _Numbers(np.ndarray[Any, Any]):
    """An array as a kernel sees a tensor."""

    @property
    def type(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(layout=None)

    def to(self, dtype: object) -> "_Numbers":
        return self


def _numbers(values: Any) -> _Numbers:
    return np.asarray(values).view(_Numbers)


class _Pointer:
    """Elements of a tensor's storage."""

    def __init__(self, storage: Array, offsets: Any) -> None:
        self.storage, self.offsets = storage, offsets
        self.dtype = types.SimpleNamespace(element_ty=None)

    def __add__(self, offsets: Any) -> "_Pointer":
        return _Pointer(self.storage, self.offsets + offsets)

    def load(self, mask: Any = None) -> _Numbers:
        if mask is None:
            return _numbers(self.storage[self.offsets])
        mask = np.broadcast_to(mask, np.shape(self.offsets))
        return _numbers(np.where(mask, self.storage[np.where(mask, self.offsets, 0)], 0))

    def store(self, values: Any, mask: Any) -> None:
        mask = np.broadcast_to(mask, np.shape(self.offsets))
        self.storage[self.offsets[mask]] = values[mask]


class _Shared:
    """A buffer in shared memory, of which nothing is known at first."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.shape = values.shape
        self.dtype = None

    def index(self, number: int) -> "_Shared":
        return _Shared(self.values[number])

    def permute(self, order: tuple[int, ...]) -> "_Shared":
        return _Shared(self.values.transpose(order))

    def store(self, values: Any) -> None:
        self.values[...] = values

    def load(self, layout: object) -> _Numbers:
        return _numbers(self.values.copy())


class _Product:
    """A product under way; until it is done nothing but a wait may look at it."""

    def __init__(self, work: Callable[[], Array]) -> None:
        self.work = work
        self.result: _Numbers | None = None

    def finish(self) -> None:
        if self.result is None:
            self.result = _numbers(self.work())


class _Device:
    """The operations of one program, by the names that kernels know them by."""

    def __init__(self, program: tuple[int, int], *, late_copies: bool, late_products: bool) -> None:
        self.program, self.late_copies, self.late_products = program, late_copies, late_products
        self.asked: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []
        self.products: list[_Product] = []

    def copy(self, shared: _Shared, pointer: _Pointer, mask: Any = None) -> None:
        def work() -> None:
            shared.values[...] = pointer.load(mask)

        self.asked.append(work)
        if not self.late_copies:
            work()

    def commit_group(self) -> None:
        self.groups.append(self.asked)
        self.asked = []

    def wait_group(self, outstanding: int) -> None:
        while len(self.groups) > outstanding:
            for work in self.groups.pop(0):
                if self.late_copies:
                    work()

    def multiply(self, a: Any, b: _Shared, acc: Any, *, use_acc: bool = True, is_async: bool = False) -> Any:
        def work() -> Array:
            left = a.values if isinstance(a, _Shared) else a
            return np.asarray(left @ b.values + (acc if use_acc else 0))

        product = _Product(work)
        if not (is_async and self.late_products):
            product.finish()
        if not is_async:
            return product.result
        self.products.append(product)
        return product

    def wait_products(self, outstanding: int, deps: list[_Product]) -> Any:
        while len(self.products) > outstanding:
            self.products.pop(0).finish()
        assert not any(product in self.products for product in deps), "looked at before it is done"
        found = [product.result for product in deps]
        return found[0] if len(found) == 1 else found

    def names(self) -> dict[str, Any]:
        language = types.SimpleNamespace(
            program_id=lambda axis: self.program[axis], float32=None, int64=None, bfloat16=None, constexpr=None,
            arange=lambda start, end, layout: _numbers(np.arange(start, end)), static_range=range,
            load=lambda pointer, mask=None, other=0: pointer.load(mask),
            store=lambda pointer, values, mask: pointer.store(values, mask),
            maximum=lambda a, b: _numbers(np.maximum(a, b)), minimum=lambda a, b: _numbers(np.minimum(a, b)),
            where=lambda mask, a, b: _numbers(np.where(mask, a, b)), exp2=lambda x: _numbers(np.exp2(x)),
            max=lambda x, axis: _numbers(x.max(axis=axis)), sum=lambda x, axis: _numbers(x.sum(axis=axis)),
            zeros=lambda shape, dtype, layout: _numbers(np.zeros(shape, np.float32)),
            full=lambda shape, value, dtype, layout: _numbers(np.full(shape, value, np.float32)),
            allocate_shared_memory=lambda dtype, shape, layout, value=np.nan: _Shared(
                np.full(shape, value, np.float32)
            ),
            convert_layout=lambda x, layout: x, static_assert=lambda holds: None,
            inline_asm_elementwise=lambda asm, constraints, args, **options: args[0],
            BlockedLayout=lambda *parts: None, SliceLayout=lambda *parts: None, DotOperandLayout=lambda *parts: None,
            NVMMADistributedLayout=lambda *parts: None, SwizzledSharedLayout=lambda *parts: None,
            NVMMASharedLayout=types.SimpleNamespace(get_default_for=lambda shape, dtype: None),
        )  # fmt: skip
        copies = types.SimpleNamespace(
            async_copy_global_to_shared=self.copy, commit_group=self.commit_group, wait_group=self.wait_group
        )
        return {
            "gl": language, "async_copy": copies, "fence_async_shared": lambda: None, "warpgroup_mma": self.multiply,
            "warpgroup_mma_wait": self.wait_products, "_barrier": lambda: None,
            "pdl": types.SimpleNamespace(wait=lambda enabled: None),
        }  # fmt: skip


class Interpreted:
    """Stands for a kernel of a module where it is launched; every tensor is float32 or of integers, on the CPU."""

    def __init__(
        self, kernel: Any, module: types.ModuleType, *, late_copies: bool, late_products: bool
    ) -> None:
        self.kernel, self.module = kernel, module
        self.late_copies, self.late_products = late_copies, late_products

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            constants.pop("launch_pdl")
            for program in itertools.product(*(range(size) for size in grid)):
                given = [_pointer(a) if isinstance(a, torch.Tensor) else a for a in arguments]
                with np.errstate(all="ignore"):
                    self._function(program)(*given, **constants)

        return launch

    def _function(self, program: tuple[int, ...]) -> Callable[..., None]:
        device = _Device(
            (program[0], program[1]), late_copies=self.late_copies, late_products=self.late_products
        )
        names = dict(vars(self.module)) | device.names()
        for name, function in _functions(self.module):
            names[name] = types.FunctionType(function.__code__, names, name)
        return types.FunctionType(self.kernel.fn.__code__, names)


def _functions(module: types.ModuleType) -> Iterator[tuple[str, types.FunctionType]]:
    for name, value in vars(module).items():
        if hasattr(value, "fn") and value.__module__ == module.__name__:
            yield name, value.fn


def _pointer(tensor: torch.Tensor) -> _Pointer:
    """To a tensor's first element; views reach what lies behind it in their storage."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return _Pointer(whole.numpy(), tensor.storage_offset())
