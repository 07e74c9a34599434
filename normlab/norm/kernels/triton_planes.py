"""Triton kernels over the activation: moments, affine, sums, input_gradient (normlab.norm.ops defines them).

One tile serves both layouts. x is seen as samples of planes of positions; a tile, (PLANES, BLOCK), lies in one sample:

    contiguous      one sample of N*C planes, whose positions lie side by side
    channels last   N samples of C planes, whose planes lie side by side

Moments and sums read x once. Each lane of the tile has accumulators of its own along the positions (Welford's, for the
moments), which are joined at the end (Chan's formula). Where there are too few tiles to fill a GPU the positions are
cut into chunks, and a second, small launch joins these in a fixed order. No atomics: results repeat bit by bit.

affine and input_gradient visit the tiles backwards, and so find in the cache what was read last before them.
"""

import triton
import triton.language as tl

# Numbers that a kernel is not compiled anew for. `iterations` is not among them: for 1 the loop is left out.
SIZES = ["num_samples", "num_planes", "num_positions", "num_stats", "num_chunks", "chunk_size"]


@triton.jit
def _place(num_planes, num_chunks, LAST: tl.constexpr, BACKWARDS: tl.constexpr, PLANES: tl.constexpr):
    """This program's sample, first plane and chunk; neighbours in the grid are neighbours in memory."""
    program = tl.program_id(0)
    if BACKWARDS:
        program = tl.num_programs(0) - 1 - program
    tiles = tl.cdiv(num_planes, PLANES)
    if LAST:
        return program // (tiles * num_chunks), program % tiles * PLANES, program // tiles % num_chunks
    else:
        return program * 0, program // num_chunks * PLANES, program % num_chunks


@triton.jit
def _origin(sample, plane, position, num_planes, num_positions, LAST: tl.constexpr):
    """Where the tile begins; in 64 bits, as x may hold more than 2^31 values."""
    if LAST:
        return (sample.to(tl.int64) * num_positions + position) * num_planes + plane
    else:
        return plane.to(tl.int64) * num_positions + position


@triton.jit
def _within(num_planes, num_positions, LAST: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a tile's elements from its origin, in 32 bits: (PLANES, BLOCK)."""
    plane, position = tl.arange(0, PLANES)[:, None], tl.arange(0, BLOCK)[None, :]
    if LAST:
        return plane + position * num_planes
    else:
        return plane * num_positions + position


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["iterations"])
def moments(
    x_ptr,
    mean_ptr,
    var_ptr,
    num_samples,
    num_planes,
    num_positions,
    num_chunks,
    iterations,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Of each plane and chunk; (chunks, samples * planes)."""
    if LAST:
        num_planes = num_planes * ALIGN
    else:
        num_positions = num_positions * ALIGN
    sample, plane, chunk = _place(num_planes, num_chunks, LAST, False, PLANES)
    planes = plane + tl.arange(0, PLANES)
    inside = planes < num_planes
    first = chunk * iterations * BLOCK
    x_ptr += _origin(sample, plane, first, num_planes, num_positions, LAST)
    within = _within(num_planes, num_positions, LAST, PLANES, BLOCK)
    step = BLOCK * num_planes.to(tl.int64) if LAST else BLOCK

    # Near the mean, most likely: distances from it are small, and exact. (What is not finite would spoil all others.)
    pivot = tl.load(x_ptr + tl.arange(0, PLANES) * (1 if LAST else num_positions), inside, 0).to(ACC)
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0)
    mean = tl.zeros([PLANES, BLOCK], ACC)
    m2 = tl.zeros([PLANES, BLOCK], ACC)
    count = tl.zeros([BLOCK], ACC)
    for i in range(iterations):
        valid = first + i * BLOCK + tl.arange(0, BLOCK) < num_positions
        mask = inside[:, None] & valid[None, :]
        value = tl.load(x_ptr + within, mask, 0).to(ACC) - pivot[:, None]
        delta = tl.where(mask, value - mean, 0)
        count += valid.to(ACC)
        mean += delta * (1 / tl.maximum(count, 1))[None, :]
        m2 += delta * (value - mean)
        x_ptr += step
    size = tl.sum(count, 0)
    center = tl.sum(mean * count[None, :], 1) / size
    distance = mean - center[:, None]
    m2 = tl.sum(m2 + count[None, :] * distance * distance, 1)
    index = chunk.to(tl.int64) * num_samples * num_planes + sample * num_planes + planes
    tl.store(mean_ptr + index, pivot + center, inside)
    tl.store(var_ptr + index, m2 / size, inside)


@triton.jit(do_not_specialize=SIZES)
def join_moments(
    means_ptr,
    vars_ptr,
    mean_ptr,
    var_ptr,
    num_stats,
    num_positions,
    num_chunks,
    chunk_size,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(chunks, stats) -> (stats,), weighted by the positions of each chunk."""
    stats = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunks = tl.arange(0, CHUNKS)[:, None]
    mask = (chunks < num_chunks) & (stats < num_stats)[None, :]
    index = chunks.to(tl.int64) * num_stats + stats[None, :]
    mean, var = tl.load(means_ptr + index, mask, 0), tl.load(vars_ptr + index, mask, 0)
    pivot = tl.load(means_ptr + stats, stats < num_stats, 0)
    sizes = tl.minimum(num_positions - chunks * chunk_size, chunk_size)
    share = tl.where(chunks < num_chunks, sizes, 0).to(mean.dtype) / num_positions
    mean = tl.where(mask, mean - pivot[None, :], 0)
    center = tl.sum(mean * share, 0)
    distance = mean - center[None, :]
    tl.store(mean_ptr + stats, pivot + center, stats < num_stats)
    tl.store(var_ptr + stats, tl.sum((var + distance * distance) * share, 0), stats < num_stats)


@triton.jit(do_not_specialize=SIZES)
def affine(
    x_ptr,
    anchor_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    num_planes,
    num_positions,
    num_chunks,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    if LAST:
        num_planes = num_planes * ALIGN
    else:
        num_positions = num_positions * ALIGN
    sample, plane, chunk = _place(num_planes, num_chunks, LAST, True, PLANES)
    planes = plane + tl.arange(0, PLANES)
    inside = planes < num_planes
    first = chunk * BLOCK
    offset = _origin(sample, plane, first, num_planes, num_positions, LAST)
    within = _within(num_planes, num_positions, LAST, PLANES, BLOCK)
    mask = inside[:, None] & (first + tl.arange(0, BLOCK) < num_positions)[None, :]
    index = sample * num_planes + planes
    anchor = tl.load(anchor_ptr + index, inside, 0)[:, None]
    scale = tl.load(scale_ptr + index, inside, 0)[:, None]
    shift = tl.load(shift_ptr + index, inside, 0)[:, None]
    x = tl.load(x_ptr + offset + within, mask, 0, eviction_policy="evict_first").to(ACC)
    y = (x - anchor) * scale + shift
    tl.store(y_ptr + offset + within, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["iterations"])
def sums(
    dy_ptr,
    x_ptr,
    anchor_ptr,
    plain_ptr,
    weighted_ptr,
    num_samples,
    num_planes,
    num_positions,
    num_chunks,
    iterations,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Of each plane and chunk; (chunks, samples * planes)."""
    if LAST:
        num_planes = num_planes * ALIGN
    else:
        num_positions = num_positions * ALIGN
    sample, plane, chunk = _place(num_planes, num_chunks, LAST, False, PLANES)
    planes = plane + tl.arange(0, PLANES)
    inside = planes < num_planes
    first = chunk * iterations * BLOCK
    offset = _origin(sample, plane, first, num_planes, num_positions, LAST)
    x_ptr += offset
    dy_ptr += offset
    within = _within(num_planes, num_positions, LAST, PLANES, BLOCK)
    step = BLOCK * num_planes.to(tl.int64) if LAST else BLOCK

    anchor = tl.load(anchor_ptr + sample * num_planes + planes, inside, 0)[:, None]
    plain = tl.zeros([PLANES, BLOCK], ACC)
    weighted = tl.zeros([PLANES, BLOCK], ACC)
    for i in range(iterations):
        mask = inside[:, None] & (first + i * BLOCK + tl.arange(0, BLOCK) < num_positions)[None, :]
        dy = tl.load(dy_ptr + within, mask, 0).to(ACC)
        x = tl.load(x_ptr + within, mask, 0).to(ACC)
        plain += dy
        weighted += tl.where(mask, dy * (x - anchor), 0)
        x_ptr += step
        dy_ptr += step
    index = chunk.to(tl.int64) * num_samples * num_planes + sample * num_planes + planes
    tl.store(plain_ptr + index, tl.sum(plain, 1), inside)
    tl.store(weighted_ptr + index, tl.sum(weighted, 1), inside)


@triton.jit(do_not_specialize=SIZES)
def join_sums(
    plains_ptr,
    weighteds_ptr,
    plain_ptr,
    weighted_ptr,
    num_stats,
    num_chunks,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(chunks, stats) -> (stats,)."""
    stats = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunks = tl.arange(0, CHUNKS)[:, None]
    mask = (chunks < num_chunks) & (stats < num_stats)[None, :]
    index = chunks.to(tl.int64) * num_stats + stats[None, :]
    tl.store(plain_ptr + stats, tl.sum(tl.load(plains_ptr + index, mask, 0), 0), stats < num_stats)
    tl.store(weighted_ptr + stats, tl.sum(tl.load(weighteds_ptr + index, mask, 0), 0), stats < num_stats)


@triton.jit(do_not_specialize=SIZES)
def input_gradient(
    dy_ptr,
    x_ptr,
    mean_ptr,
    scale_ptr,
    dmean_ptr,
    dvar_ptr,
    dx_ptr,
    num_planes,
    num_positions,
    num_chunks,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    if LAST:
        num_planes = num_planes * ALIGN
    else:
        num_positions = num_positions * ALIGN
    sample, plane, chunk = _place(num_planes, num_chunks, LAST, True, PLANES)
    planes = plane + tl.arange(0, PLANES)
    inside = planes < num_planes
    first = chunk * BLOCK
    offset = _origin(sample, plane, first, num_planes, num_positions, LAST)
    within = _within(num_planes, num_positions, LAST, PLANES, BLOCK)
    mask = inside[:, None] & (first + tl.arange(0, BLOCK) < num_positions)[None, :]
    index = sample * num_planes + planes
    size = num_positions.to(ACC)
    mean = tl.load(mean_ptr + index, inside, 0)[:, None]
    scale = tl.load(scale_ptr + index, inside, 0)[:, None]
    constant = (tl.load(dmean_ptr + index, inside, 0) / size)[:, None]
    slope = (tl.load(dvar_ptr + index, inside, 0) * 2 / size)[:, None]
    dy = tl.load(dy_ptr + offset + within, mask, 0, eviction_policy="evict_first").to(ACC)
    x = tl.load(x_ptr + offset + within, mask, 0, eviction_policy="evict_first").to(ACC)
    dx = constant + (x - mean) * slope + dy * scale
    tl.store(dx_ptr + offset + within, dx.to(dx_ptr.dtype.element_ty), mask)
