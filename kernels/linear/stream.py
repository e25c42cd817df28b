# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Some rows times a matrix on Hopper's tensor cores, as fast as the weights come from memory.

A program has one tile of weight rows times one of x's, or its share of the sum. One warp has tiles copied into shared
memory, as many at a time as there is room for, and those of weights before the kernel that makes x is done; the other
warps multiply. Weight rows are the longer side of a product, so that few rows of x are not padded to many. They are
put in such an order that one thread gets two outputs that belong together: gate and up, or neighbours in memory.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.linear.exchange import exchange


@gluon.jit
def _produce(
    weight_desc, x_desc, weights, xs, full, empty, group, column, first, last, BYTES: gl.constexpr,
    BLOCK_K: gl.constexpr, STAGES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Copy tiles first to last of the sum, each into the stage that is free next."""
    early = gl.minimum(last - first, STAGES)
    for stage in range(early):
        mbarrier.expect(full.index(stage), BYTES)
        at = [group, 0, 0, (first + stage) * BLOCK_K]
        tma.async_copy_global_to_shared(weight_desc, at, full.index(stage), weights.index(stage))
    if PDL:
        gdc_wait()
    for stage in range(early):
        at = [column, (first + stage) * BLOCK_K]
        tma.async_copy_global_to_shared(x_desc, at, full.index(stage), xs.index(stage))
    stage, phase = 0, 0
    for k in range(first + early, last):
        mbarrier.wait(empty.index(stage), phase)
        mbarrier.expect(full.index(stage), BYTES)
        at = [group, 0, 0, k * BLOCK_K]
        tma.async_copy_global_to_shared(weight_desc, at, full.index(stage), weights.index(stage))
        at = [column, k * BLOCK_K]
        tma.async_copy_global_to_shared(x_desc, at, full.index(stage), xs.index(stage))
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1
    # Not before: the next kernel's first weights come while the last of these are multiplied.
    if PDL:
        gdc_launch_dependents()


@gluon.jit
def _multiply(
    weights, xs, full, empty, count, BLOCK: gl.constexpr, COLUMNS: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Sums [BLOCK, COLUMNS] over `count` tiles; one product is under way while the next one's tile is waited for."""
    warps: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, COLUMNS, 16])
    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    sums = gl.zeros([BLOCK, COLUMNS], gl.float32, layout)
    stage, phase, before = 0, 0, 0
    for done in range(count):
        mbarrier.wait(full.index(stage), phase)
        tile = weights.index(stage)._reinterpret(weights.dtype, [BLOCK, BLOCK_K], matrix)
        sums = warpgroup_mma(tile, xs.index(stage).permute([1, 0]), sums, is_async=True)
        sums = warpgroup_mma_wait(1, deps=[sums])
        mbarrier.arrive(empty.index(before), pred=done > 0)
        before = stage
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1
    return warpgroup_mma_wait(0, deps=[sums])


@gluon.jit
def _arrange(sums, GATED: gl.constexpr):
    """sums [BLOCK, columns] as [columns, outputs], activated if gated."""
    BLOCK: gl.constexpr = sums.shape[0]
    COLUMNS: gl.constexpr = sums.shape[1]
    first, second = gl.split(sums.reshape([BLOCK // 16, 2, 8, COLUMNS]).permute([0, 2, 3, 1]))
    first = first.reshape([BLOCK // 2, COLUMNS])
    second = second.reshape([BLOCK // 2, COLUMNS])
    if GATED:
        return (first / (1.0 + gl.exp(-first)) * second).permute([1, 0])
    else:
        return gl.join(first, second).permute([1, 0, 2]).reshape([COLUMNS, BLOCK])


@gluon.jit
def _consume(
    weights, xs, full, empty, tile, column, split, first, last, partial_ptr, bias_ptr, residual_ptr, out_ptr,
    residual_stride, m, n, GATED: gl.constexpr, HAS_BIAS: gl.constexpr, HAS_RESIDUAL: gl.constexpr,
    BLOCK: gl.constexpr, COLUMNS: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, SPLIT: gl.constexpr,
    PDL: gl.constexpr,
):  # fmt: skip
    """Multiply, and write the columns that are this program's share."""
    if PDL:
        gdc_wait()
    PART: gl.constexpr = COLUMNS // SPLIT
    like: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, PART, 16])
    layout: gl.constexpr = _arrange(gl.zeros([BLOCK, PART], gl.float32, like), GATED).type.layout
    OUTPUTS: gl.constexpr = BLOCK // 2 if GATED else BLOCK
    row = column + split * PART + gl.arange(0, PART, layout=gl.SliceLayout(1, layout))[:, None]
    output = tile * OUTPUTS + gl.arange(0, OUTPUTS, layout=gl.SliceLayout(0, layout))[None, :]
    inside = output < n
    mask = inside & (row < m)
    row = row.to(gl.int64)
    # Asked for first, since it may have a long way and is needed last.
    if HAS_BIAS:
        bias = gl.load(bias_ptr + output, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        residual = gl.load(residual_ptr + row * residual_stride + output, mask=mask, other=0.0)
    sums = _multiply(weights, xs, full, empty, last - first, BLOCK, COLUMNS, BLOCK_K, STAGES)
    if SPLIT > 1:
        at_ptr = partial_ptr + gl.program_id(0) // SPLIT * (SPLIT * BLOCK * COLUMNS)
        sums = exchange(sums, split, at_ptr, m - column, SPLIT)
    result = gl.convert_layout(_arrange(sums, GATED), layout)
    if HAS_BIAS:
        result += bias.to(gl.float32)
    if HAS_RESIDUAL:
        result += residual.to(gl.float32)
    gl.store(out_ptr + row * n + output, result.to(out_ptr.dtype.element_ty), mask=mask)


@gluon.jit(do_not_specialize=["m"])
def stream_kernel(
    weight_desc, x_desc, bias_ptr, residual_ptr, out_ptr, partial_ptr, residual_stride, m, n, k,
    GATED: gl.constexpr, HAS_BIAS: gl.constexpr, HAS_RESIDUAL: gl.constexpr, BLOCK: gl.constexpr,
    COLUMNS: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, SPLIT: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """out [m, n] of x [m, k] and weights [groups, 2, 8, k], with what belongs together in the second dimension.

    BLOCK: weight rows of a tile; COLUMNS: rows of x. A launch has SPLIT programs for each tile, which share its sum;
    partial then has as many elements as the tiles of all programs (see `exchange`).
    """
    weights = gl.allocate_shared_memory(
        weight_desc.dtype, [STAGES, BLOCK // 16, 2, 8, BLOCK_K], weight_desc.layout
    )
    xs = gl.allocate_shared_memory(x_desc.dtype, [STAGES, COLUMNS, BLOCK_K], x_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    split, number = gl.program_id(0) % SPLIT, gl.program_id(0) // SPLIT
    # Neighbours have the same weights.
    columns = (m + COLUMNS - 1) // COLUMNS
    tile, column = number // columns, number % columns * COLUMNS
    k_tiles = (k + BLOCK_K - 1) // BLOCK_K
    first, last = split * k_tiles // SPLIT, (split + 1) * k_tiles // SPLIT
    BYTES: gl.constexpr = (BLOCK + COLUMNS) * BLOCK_K * 2
    gl.warp_specialize(
        [
            (_consume, (
                weights, xs, full, empty, tile, column, split, first, last, partial_ptr, bias_ptr, residual_ptr,
                out_ptr, residual_stride, m, n, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK, COLUMNS, BLOCK_K, STAGES,
                SPLIT, PDL,
            )),
            (_produce, (
                weight_desc, x_desc, weights, xs, full, empty, tile * (BLOCK // 16), column, first, last, BYTES,
                BLOCK_K, STAGES, PDL,
            )),
        ],
        [1],
        [40],
    )  # fmt: skip
