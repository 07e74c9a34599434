"""What the Triton kernels of the algebra share: where the statistics of each scope lie, and its ratio.

Scope k is declared by four constants: ACROSS[k], GROUPS[k] (0: no pooling in a row), MEAN_AT[k] and VAR_AT[k] (its
place among the ratios of the mean and of the variance; -1: not mixed there). Rows are replicas * samples; the rows and
channels of a tile are given as tensors that broadcast, and offsets fit 32 bits.
"""

import triton
import triton.language as tl

SIZES = ["replicas", "samples", "num_channels", "weight_stride", "ratio_groups"]  # not compiled anew for each


@triton.jit
def layout(k: tl.constexpr, replicas, samples, num_channels, ACROSS: tl.constexpr, GROUPS: tl.constexpr):
    """Where the means of scope k begin in the flat statistics, and their number (Algebra.layout)."""
    start = replicas * 0
    size = replicas * 0
    for j in tl.static_range(k + 1):
        start += 2 * size
        if ACROSS[j]:
            size = replicas * (GROUPS[j] if GROUPS[j] > 0 else num_channels)
        else:
            size = replicas * samples * GROUPS[j]
    return start, size


@triton.jit
def pooled_start(k: tl.constexpr, rows, GROUPS: tl.constexpr):
    """Where what was pooled in rows for scope k begins in the scratch: (rows, GROUPS[k]), twice."""
    start = rows * 0
    for j in tl.static_range(k):
        start += 2 * rows * GROUPS[j]
    return start


@triton.jit
def statistic(
    statistics_ptr,
    moments_ptr,
    SECOND: tl.constexpr,
    k: tl.constexpr,
    row,
    channels,
    mask,
    replicas,
    samples,
    num_channels,
    ACROSS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The mean of scope k (SECOND: its variance) for each row and channel: the moments, if it pools nothing."""
    start, size = layout(k, replicas, samples, num_channels, ACROSS, GROUPS)
    start += size * SECOND
    line = row // samples if ACROSS[k] else row
    if GROUPS[k] > 0:
        return tl.load(statistics_ptr + start + line * GROUPS[k] + channels // (num_channels // GROUPS[k]), mask, 0)
    elif ACROSS[k]:
        return tl.load(statistics_ptr + start + line * num_channels + channels, mask, 0)
    else:
        return tl.load(moments_ptr + line * num_channels + channels, mask, 0)


@triton.jit
def pooled_in_rows(
    first_ptr, second_ptr, pooled_ptr, k: tl.constexpr, row, channels, mask, rows, num_channels, GROUPS: tl.constexpr
):
    """What a scope across samples pools over the rows: the two values themselves, or what its groups have pooled."""
    if GROUPS[k] > 0:
        index = pooled_start(k, rows, GROUPS) + row * GROUPS[k] + channels // (num_channels // GROUPS[k])
        return tl.load(pooled_ptr + index, mask, 0), tl.load(pooled_ptr + rows * GROUPS[k] + index, mask, 0)
    else:
        index = row * num_channels + channels
        return tl.load(first_ptr + index, mask, 0), tl.load(second_ptr + index, mask, 0)


@triton.jit
def ratio_at(logits_ptr, at: tl.constexpr, channels, num_channels, ratio_groups, NUM: tl.constexpr, HARD: tl.constexpr):
    """The ratio at this place, for each channel: softmax, or one-hot (the first of equals); 1 if it is alone."""
    if NUM == 1:
        return 1.0
    else:
        inside = channels < num_channels
        ptr = logits_ptr + channels // (num_channels // ratio_groups) * NUM
        best = tl.load(ptr, inside, 0)
        which = channels * 0
        for j in tl.static_range(1, NUM):
            logit = tl.load(ptr + j, inside, 0)
            which = tl.where(logit > best, j, which)
            best = tl.maximum(best, logit)
        if HARD:
            return (which == at).to(best.dtype)
        else:
            total = best * 0
            for j in tl.static_range(NUM):
                total += tl.exp(tl.load(ptr + j, inside, 0) - best)
            return tl.exp(tl.load(ptr + at, inside, 0) - best) / total


@triton.jit
def share_of(value, share, HARD: tl.constexpr):
    """share * value; with hard ratios 0 where the share is 0, which 0 times infinity or NaN would not be."""
    if HARD:
        return tl.where(share == 0.0, 0.0, share * value)
    else:
        return share * value
