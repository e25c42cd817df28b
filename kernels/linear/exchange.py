# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Sums that several programs have a part of: each sends the others their columns and adds up its own.

There are no flags: what is sent is read again and again until it is there, and its place left empty for the next
launch. Programs wait for each other, so all of a launch must fit on the GPU at once, and no other process may have
such kernels on it at the same time (as under MPS). Everything is added up in the same order each time.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

EMPTY = -1
"""What is in every place before and after a launch: a NaN that no arithmetic makes."""
_EMPTY = gl.constexpr(EMPTY)


@gluon.jit
def flat(sums):
    """sums [BLOCK, columns], as wgmma leaves them, in an order in which each thread has four in a row."""
    BLOCK: gl.constexpr = sums.shape[0]
    COLUMNS: gl.constexpr = sums.shape[1]
    parts = sums.reshape([BLOCK // 16, 2, 8, COLUMNS // 8, 4, 2]).permute([3, 0, 2, 4, 1, 5])
    return parts.reshape([BLOCK * COLUMNS])


@gluon.jit
def unflat(values, BLOCK: gl.constexpr, COLUMNS: gl.constexpr):
    """The opposite of `flat`."""
    parts = values.reshape([COLUMNS // 8, BLOCK // 16, 8, 4, 2, 2]).permute([1, 4, 2, 0, 3, 5])
    return parts.reshape([BLOCK, COLUMNS])


@gluon.jit
def _halves(sums):
    BLOCK: gl.constexpr = sums.shape[0]
    COLUMNS: gl.constexpr = sums.shape[1]
    return gl.split(sums.reshape([BLOCK, 2, COLUMNS // 2]).permute([0, 2, 1]))


@gluon.jit
def _own(sums, number, COUNT: gl.constexpr):
    """Part `number` of COUNT, flat. Registers have no addresses, so it is chosen among all."""
    if COUNT == 1:
        return flat(sums)
    else:
        first, second = _halves(sums)
        if number < COUNT // 2:
            own = _own(first, number, COUNT // 2)
        else:
            own = _own(second, number - COUNT // 2, COUNT // 2)
        return own


@gluon.jit
def _send(sums, number, at_ptr, used, COUNT: gl.constexpr, STEP: gl.constexpr):
    """All of COUNT parts but that of a number, STEP from each to the next."""
    SIZE: gl.constexpr = sums.shape[0] * sums.shape[1] // COUNT
    if COUNT == 1:
        if number != 0:
            values = flat(sums)
            place = gl.arange(0, SIZE, layout=values.type.layout)
            gl.store(at_ptr + place, values.to(gl.int32, bitcast=True), mask=place < used)
    else:
        HALF: gl.constexpr = COUNT // 2
        first, second = _halves(sums)
        _send(first, number, at_ptr, used, HALF, STEP)
        _send(second, number - HALF, at_ptr + HALF * STEP, used - HALF * SIZE, HALF, STEP)


@gluon.jit
def _receive(own, at_ptr, used, number, COUNT: gl.constexpr):
    """own [size] and what COUNT - 1 others have sent."""
    SIZE: gl.constexpr = own.shape[0]
    layout: gl.constexpr = own.type.layout
    place = gl.arange(0, SIZE, layout=layout)
    mask = place < used
    sums = own
    missing = 1
    while missing != 0:
        sums = own
        lacks = gl.zeros([SIZE], gl.int32, layout)
        for other in gl.static_range(1, COUNT):
            at = at_ptr + (number + other) % COUNT * SIZE
            bits = gl.load(at + place, mask=mask, other=0, volatile=True)
            lacks |= (bits == _EMPTY).to(gl.int32)
            sums += bits.to(gl.float32, bitcast=True)
        missing = gl.max(lacks, axis=0)
    for other in gl.static_range(1, COUNT):
        at = at_ptr + (number + other) % COUNT * SIZE
        gl.store(at + place, gl.full([SIZE], _EMPTY, gl.int32, layout), mask=mask)
    return sums


@gluon.jit
def exchange(sums, number, at_ptr, num_columns, COUNT: gl.constexpr):
    """The total of COUNT programs' sums [BLOCK, columns], of which program `number` gets its share of the columns.

    Of no more than num_columns. at_ptr: COUNT * BLOCK * columns int32, by who reads, then by who sends.
    """
    BLOCK: gl.constexpr = sums.shape[0]
    COLUMNS: gl.constexpr = sums.shape[1] // COUNT
    SIZE: gl.constexpr = BLOCK * COLUMNS
    used = (num_columns + 7) // 8 * (8 * BLOCK)
    _send(sums, number, at_ptr + number * SIZE, used, COUNT, COUNT * SIZE)
    own = _own(sums, number, COUNT)
    total = _receive(own, at_ptr + number * (COUNT * SIZE), used - number * SIZE, number, COUNT)
    return unflat(total, BLOCK, COLUMNS)
