"""Runs the Gluon kernel of long chunks on a CPU, which Triton's own interpreter does not: program after program, in
numpy, its warp groups as threads of which one runs at a time.

What the hardware does at a time of its own choosing is done at one extreme or the other: a copy when it is asked for or
not before it is waited for, a product when it is issued or not before it is waited for; and groups go on in an order
drawn at random. A kernel that reads too early, overwrites too soon or counts an arrival wrong gives other numbers in
one of them, or comes to a standstill, which is an error. Numbers are float32; within a group threads go in step.
"""

import itertools
import random
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon import language as gl

Array = np.ndarray[Any, Any]
ORDERS = list(itertools.product([False, True], repeat=2))
"""Whether copies are late, and products."""
_COLUMNS = 64


class Numbers(np.ndarray[Any, Any]):
    """An array as a kernel sees a tensor; also one number."""

    def __array_wrap__(self, found: Any, context: Any = None, return_scalar: bool = False) -> "Numbers":
        return numbers(found)

    @property
    def type(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(layout=None)


def numbers(values: Any) -> Numbers:
    return np.asarray(values).view(Numbers)


class Pointer:
    """Elements of a tensor's storage."""

    dtype = types.SimpleNamespace(element_ty="bfloat16")

    def __init__(self, storage: Array, offsets: Any) -> None:
        self.storage, self.offsets = storage, offsets

    def __add__(self, offsets: Any) -> "Pointer":
        return Pointer(self.storage, self.offsets + offsets)

    def load(self, mask: Any = None, other: Any = 0) -> Numbers:
        mask = np.broadcast_to(True if mask is None else mask, np.shape(self.offsets))
        return numbers(np.where(mask, self.storage[np.where(mask, self.offsets, 0)], other))

    def store(self, values: Any, mask: Any) -> None:
        mask = np.broadcast_to(mask, np.shape(self.offsets))
        self.storage[self.offsets[mask]] = values[mask]


class Rows:
    """A tensor [rows, columns] as the copy engine knows it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.values: Array = tensor.numpy()


class Shared:
    """A buffer in shared memory, of which nothing is known at first."""

    dtype = "bfloat16"

    def __init__(self, values: Array) -> None:
        self.values = values
        self.shape = values.shape

    def index(self, number: Any) -> "Shared":
        return Shared(self.values[int(number)])

    def slice(self, start: int, length: int) -> "Shared":
        return Shared(self.values[start : start + length])

    def permute(self, order: tuple[int, ...]) -> "Shared":
        return Shared(self.values.transpose(order))

    def load(self, layout: object) -> Numbers:
        return numbers(self.values.copy())

    def store(self, values: Any) -> None:
        self.values[...] = values

    def _reinterpret(self, dtype: object, shape: list[int], layout: object) -> "Strips":
        return Strips(self.values, shape)


class Strips:
    """Pieces [of stage, strip and rows, rows, 64] as operands [stage, rows, strips * 64], as the tensor cores do."""

    dtype = "bfloat16"

    def __init__(self, pieces: Array, shape: list[int]) -> None:
        self.shape = shape
        stages, rows, columns = shape
        self._strips = pieces.reshape(stages, columns // _COLUMNS, rows, _COLUMNS)

    def index(self, stage: Any) -> "Operand":
        return Operand(self._strips[int(stage)].transpose(1, 0, 2))


class Operand:
    """One stage [rows, strips, 64]; what it holds is looked at when the product is done."""

    dtype = "bfloat16"

    def __init__(self, strips: Array, transposed: bool = False) -> None:
        self._strips, self._transposed = strips, transposed

    def slice(self, start: int, length: int) -> "Operand":
        return Operand(self._strips[start : start + length])

    def permute(self, order: tuple[int, int]) -> "Operand":
        assert order == (1, 0)
        return Operand(self._strips, transposed=True)

    @property
    def values(self) -> Array:
        whole = self._strips.reshape(len(self._strips), -1)
        return whole.T if self._transposed else whole


class Barrier:
    """Of shared memory: a phase is over when all have arrived and all bytes are there."""

    def __init__(self) -> None:
        self.count = self.missing = self.bytes = self.phase = 0
        self.late: list[Callable[[], None]] = []

    def arrive(self, count: int = 1) -> None:
        self.missing -= count
        assert self.missing >= 0, "more arrivals than a phase has"
        self.advance()

    def advance(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.missing = self.count
            self.phase += 1

    def is_over(self, parity: int) -> bool:
        for work in self.late:
            work()
        self.late = []
        return self.phase & 1 != parity


class Barriers(Shared):
    """An array of them."""

    def __init__(self, number: int) -> None:
        self.all = [Barrier() for _ in range(number)]

    def index(self, number: Any) -> Any:
        return self.all[int(number)]


class Product:
    """A product under way; until it is done nothing but a wait may look at it."""

    def __init__(self, work: Callable[[], Array]) -> None:
        self.work = work
        self.result: Numbers | None = None

    def finish(self) -> None:
        if self.result is None:
            self.result = numbers(self.work())


class Groups:
    """Warp groups in turns: one runs until it waits for what is not there, or chance has it that another goes on."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._turn = threading.Condition()
        self._alive = 0
        self._waits: dict[int, tuple[Barrier, int]] = {}
        self._errors: list[BaseException] = []

    def run(self, works: list[Callable[[], None]]) -> None:
        self._alive = len(works)
        threads = [threading.Thread(target=self._run, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _run(self, work: Callable[[], None]) -> None:
        with self._turn:
            try:
                work()
            except BaseException as error:  # for the thread that started this one
                self._errors.append(error)
            self._alive -= 1
            self._turn.notify_all()

    def pause(self) -> None:
        if self._draw.random() < 0.3:
            self._turn.notify_all()
            self._turn.wait(0)

    def wait(self, barrier: Barrier, parity: int) -> None:
        self.pause()
        while not barrier.is_over(parity):
            self._waits[threading.get_ident()] = (barrier, parity)
            if self._errors or (
                len(self._waits) == self._alive and not any(b.is_over(p) for b, p in self._waits.values())
            ):
                raise RuntimeError("every group waits")
            self._turn.notify_all()
            self._turn.wait()
            del self._waits[threading.get_ident()]


class Device:
    """The operations of one program, by the names that kernels know them by."""

    def __init__(
        self, program: int, programs: int, seed: int, *, late_copies: bool, late_products: bool
    ) -> None:
        self.program, self.programs = program, programs
        self.late_copies, self.late_products = late_copies, late_products
        self.groups = Groups(seed)
        self.local = threading.local()

    def allocate(self, dtype: Any, shape: list[int], layout: object) -> Shared:
        if dtype is gl.int64:
            return Barriers(shape[0])
        return Shared(np.full(shape, np.nan, np.float32))

    def init(self, barrier: Barrier, count: int) -> None:
        barrier.count = barrier.missing = count

    def wait(self, barrier: Barrier, phase: Any, pred: Any = True) -> None:
        if pred:
            self.groups.wait(barrier, int(phase))

    def arrive(self, barrier: Barrier, pred: Any = True) -> None:
        if pred:
            barrier.arrive()
        self.groups.pause()

    def expect(self, barrier: Barrier, num_bytes: Any) -> None:
        barrier.bytes += int(num_bytes)
        barrier.arrive()

    def copy_box(self, tensor: Rows, at: list[Any], barrier: Barrier, piece: Shared) -> None:
        """The copy engine: zeros for rows past the end."""
        row, column = (int(place) for place in at)
        rows, columns = piece.shape

        def work() -> None:
            piece.values[...] = 0.0
            found = tensor.values[row : row + rows, column : column + columns]
            piece.values[: len(found)] = found
            barrier.bytes -= 2 * rows * columns
            barrier.advance()

        self._copy(work, barrier)

    def _copy(self, work: Callable[[], None], barrier: Barrier) -> None:
        if self.late_copies:
            barrier.late.append(work)
        else:
            work()

    def copy(self, piece: Shared, pointer: Pointer, mask: Any) -> None:
        self.local.__dict__.setdefault("asked", []).append((piece, pointer, mask))

    def arrive_copied(self, barrier: Barrier, increment_count: bool) -> None:
        asked, self.local.asked = self.local.asked, []

        def work() -> None:
            for piece, pointer, mask in asked:
                piece.values[...] = pointer.load(mask)
            barrier.arrive(32)

        self._copy(work, barrier)

    def multiply(self, a: Any, b: Operand, acc: Any, *, use_acc: bool = True, is_async: bool) -> Product:
        def work() -> Array:
            left = a.values if isinstance(a, Operand) else np.asarray(a)
            return np.asarray(left @ b.values + (np.asarray(acc) if use_acc else 0))

        product = Product(work)
        if not self.late_products:
            product.finish()
        self.local.__dict__.setdefault("products", []).append(product)
        return product

    def wait_products(self, outstanding: int, deps: list[Any]) -> Any:
        products = self.local.products
        while len(products) > outstanding:
            products.pop(0).finish()
        assert not any(dep in products for dep in deps if isinstance(dep, Product)), (
            "looked at before it is done"
        )
        found = [dep.result if isinstance(dep, Product) else dep for dep in deps]
        return found[0] if len(found) == 1 else found

    def specialize(self, works: list[tuple[Callable[..., None], tuple[Any, ...]]], *sizes: Any) -> None:
        self.groups.run([lambda f=function, a=arguments: f(*a) for function, arguments in works])  # type: ignore[misc]

    def names(self) -> dict[str, Any]:
        def nothing(*parts: Any, **options: Any) -> None:
            return None

        language = types.SimpleNamespace(
            program_id=lambda axis: self.program, num_programs=lambda axis: self.programs,
            constexpr=lambda value: value,
            float32=None, bfloat16="bfloat16", float16="float16", int64=gl.int64, static_range=range,
            arange=lambda start, end, layout: numbers(np.arange(start, end)), cast=lambda x, dtype: numbers(x),
            load=lambda pointer, mask=None, other=0: pointer.load(mask, other), cdiv=lambda a, b: (a + b - 1) // b,
            store=lambda pointer, values, mask: pointer.store(values, mask),
            maximum=lambda a, b: numbers(np.maximum(a, b)), minimum=lambda a, b: numbers(np.minimum(a, b)),
            where=lambda mask, a, b: numbers(np.where(mask, a, b)), exp2=lambda x: numbers(np.exp2(x)),
            max=lambda x, axis: numbers(x.max(axis=axis)), sum=lambda x, axis: numbers(x.sum(axis=axis)),
            zeros=lambda shape, dtype, layout: numbers(np.zeros(shape, np.float32)), zeros_like=np.zeros_like,
            full=lambda shape, value, dtype, layout: numbers(np.full(shape, value, np.float32)),
            allocate_shared_memory=self.allocate, convert_layout=lambda x, layout: x, static_assert=nothing,
            inline_asm_elementwise=lambda asm, constraints, args, **options: args[0], warp_specialize=self.specialize,
            BlockedLayout=nothing, SliceLayout=nothing, DotOperandLayout=nothing,
        )  # fmt: skip
        barriers = types.SimpleNamespace(
            init=self.init, wait=self.wait, arrive=self.arrive, expect=self.expect, MBarrierLayout=nothing
        )
        copies = types.SimpleNamespace(
            async_copy_global_to_shared=self.copy, mbarrier_arrive=self.arrive_copied
        )
        return {
            "gl": language, "mbarrier": barriers, "async_copy": copies, "fence_async_shared": nothing,
            "_barrier": nothing,
            "tma": types.SimpleNamespace(async_copy_global_to_shared=self.copy_box), "warpgroup_mma": self.multiply,
            "warpgroup_mma_wait": self.wait_products, "pdl": types.SimpleNamespace(wait=nothing),
            "_product_layout": nothing, "_row_layout": nothing,
        }  # fmt: skip


class Emulated:
    """Stands for a kernel where it is launched; `modules` hold its functions. Tensors are float32 or of integers."""

    def __init__(self, kernel: Any, modules: list[types.ModuleType], seed: int, **late: bool) -> None:
        self.kernel, self.modules, self.seed, self.late = kernel, modules, seed, late

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, launch_pdl: bool, **constants: Any) -> None:
            given = [_given(argument) for argument in arguments]
            for program in range(grid[0]):
                device = Device(program, grid[0], self.seed + program, **self.late)
                with np.errstate(all="ignore"):
                    self._function(device)(*given, **constants)

        return launch

    def _function(self, device: Device) -> Callable[..., None]:
        names: dict[str, Any] = {}
        for module in self.modules:
            for name, value in vars(module).items():
                if isinstance(value, gl.constexpr):
                    names[name] = value.value
                elif hasattr(value, "fn") and hasattr(value.fn, "__code__"):
                    names[name] = types.FunctionType(value.fn.__code__, names, name)
                else:
                    names.setdefault(name, value)
        names.update(device.names())
        return types.FunctionType(self.kernel.fn.__code__, names)


def _given(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        whole = torch.empty(0, dtype=argument.dtype).set_(argument.untyped_storage())
        return Pointer(whole.numpy(), argument.storage_offset())
    return argument
