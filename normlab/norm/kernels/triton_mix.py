"""Triton kernels of normlab.norm.algebra.mix: one launch, or two (triton_scopes.py: how scopes are declared).

mix_rows      a program for a row and a scope of channel groups (ln, gn, en): pools within the groups of that row
mix_columns   a program for some channels of a replica: pools over its rows for scopes across samples (bn, en: for en
              what mix_rows has pooled), then mixes; it holds all that it needs, and waits for no other program
"""

import triton
import triton.language as tl

from normlab.norm.kernels.triton_scopes import (
    SIZES,
    layout,
    pooled_in_rows,
    pooled_start,
    ratio_at,
    share_of,
    statistic,
)


@triton.jit(do_not_specialize=SIZES)
def mix_rows(
    mean_ptr,
    var_ptr,
    pooled_ptr,
    statistics_ptr,
    replicas,
    samples,
    num_channels,
    ACROSS: tl.constexpr,
    GROUPS: tl.constexpr,
    STORED: tl.constexpr,
    SETS: tl.constexpr,
    MEMBERS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Program (row, k): mean and variance of scope k's groups of channels in a row."""
    row, rows = tl.program_id(0), replicas * samples
    for k in tl.static_range(len(GROUPS)):
        if GROUPS[k] > 0 and not (ACROSS[k] and STORED):  # noqa: SIM102  known when compiled, unlike the next
            if tl.program_id(1) == k:
                if ACROSS[k]:  # half of the way
                    out_ptr = pooled_ptr + pooled_start(k, rows, GROUPS)
                    num_stats = rows * GROUPS[k]
                else:
                    start, num_stats = layout(k, replicas, samples, num_channels, ACROSS, GROUPS)
                    out_ptr = statistics_ptr + start
                SETS_K: tl.constexpr = SETS[k]
                MEMBERS_K: tl.constexpr = MEMBERS[k]
                size = num_channels // GROUPS[k]
                for first in range(0, GROUPS[k], SETS_K):
                    sets = first + tl.arange(0, SETS_K)
                    inside = sets < GROUPS[k]
                    index = row * num_channels + sets * size
                    pivot = tl.load(mean_ptr + index, inside, 0)
                    total = tl.zeros([SETS_K, MEMBERS_K], ACC)
                    for member in range(0, size, MEMBERS_K):
                        members = member + tl.arange(0, MEMBERS_K)[None, :]
                        mask = inside[:, None] & (members < size)
                        mean = tl.load(mean_ptr + index[:, None] + members, mask, 0)
                        total += tl.where(mask, mean - pivot[:, None], 0)
                    center = pivot + tl.sum(total, 1) / size.to(ACC)
                    total = tl.zeros([SETS_K, MEMBERS_K], ACC)
                    for member in range(0, size, MEMBERS_K):
                        members = member + tl.arange(0, MEMBERS_K)[None, :]
                        mask = inside[:, None] & (members < size)
                        distance = tl.load(mean_ptr + index[:, None] + members, mask, 0) - center[:, None]
                        var = tl.load(var_ptr + index[:, None] + members, mask, 0)
                        total += tl.where(mask, var + distance * distance, 0)
                    tl.store(out_ptr + row * GROUPS[k] + sets, center, inside)
                    tl.store(out_ptr + num_stats + row * GROUPS[k] + sets, tl.sum(total, 1) / size.to(ACC), inside)


@triton.jit
def _over_samples(
    mean_ptr,
    var_ptr,
    pooled_ptr,
    k: tl.constexpr,
    first_row,
    channels,
    replicas,
    samples,
    num_channels,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Mean and variance over the rows of a replica, for each of the channels."""
    inside, rows = channels < num_channels, replicas * samples
    first = pooled_in_rows(mean_ptr, var_ptr, pooled_ptr, k, first_row, channels, inside, rows, num_channels, GROUPS)
    pivot = first[0]
    total = tl.zeros([ROWS, COLS], ACC)
    for start in range(0, samples, ROWS):
        sample = start + tl.arange(0, ROWS)[:, None]
        mask = (sample < samples) & inside[None, :]
        mean, var = pooled_in_rows(
            *(mean_ptr, var_ptr, pooled_ptr, k, first_row + sample, channels[None, :], mask, rows, num_channels, GROUPS)
        )
        total += tl.where(mask, mean - pivot[None, :], 0)
    center = pivot + tl.sum(total, 0) / samples.to(ACC)
    total = tl.zeros([ROWS, COLS], ACC)
    for start in range(0, samples, ROWS):
        sample = start + tl.arange(0, ROWS)[:, None]
        mask = (sample < samples) & inside[None, :]
        mean, var = pooled_in_rows(
            *(mean_ptr, var_ptr, pooled_ptr, k, first_row + sample, channels[None, :], mask, rows, num_channels, GROUPS)
        )
        distance = mean - center[None, :]
        total += tl.where(mask, var + distance * distance, 0)
    return center, tl.sum(total, 0) / samples.to(ACC)


@triton.jit(do_not_specialize=SIZES)
def mix_columns(
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    weight_stride,
    mean_logits_ptr,
    var_logits_ptr,
    ratio_groups,
    stored_ptr,
    pooled_ptr,
    scale_ptr,
    shift_ptr,
    mu_ptr,
    rstd_ptr,
    statistics_ptr,
    replicas,
    samples,
    num_channels,
    ACROSS: tl.constexpr,
    GROUPS: tl.constexpr,
    MEAN_AT: tl.constexpr,
    VAR_AT: tl.constexpr,
    NUM_MEAN: tl.constexpr,
    NUM_VAR: tl.constexpr,
    STD: tl.constexpr,
    HARD: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Program (channels, replica)."""
    channels, replica = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.program_id(1)
    inside = channels < num_channels
    first_row = replica * samples

    # The ratios sum to 1, so means can be taken as distances, which keeps the digits in which they differ: those of
    # scopes across samples from the first row's own, all others from each row's own.
    anchor = tl.load(mean_ptr + first_row * num_channels + channels, inside, 0)
    anchor = tl.where(tl.abs(anchor) < float("inf"), anchor, 0)
    across_distance = tl.zeros([COLS], ACC)
    across_share = tl.zeros([COLS], ACC)
    across_var = tl.zeros([COLS], ACC)
    stored_start = replicas * 0
    for k in tl.static_range(len(ACROSS)):
        if ACROSS[k]:
            width = num_channels if GROUPS[k] == 0 else num_channels * 0 + GROUPS[k]
            size = num_channels // width
            sets = channels // size
            if stored_ptr is not None:
                mean = tl.load(stored_ptr + stored_start + sets, inside, 0)
                var = tl.load(stored_ptr + stored_start + width + sets, inside, 0)
                stored_start += 2 * width
            else:
                mean, var = _over_samples(
                    *(mean_ptr, var_ptr, pooled_ptr, k, first_row, channels, replicas, samples, num_channels),
                    *(GROUPS, ROWS, COLS, ACC),
                )
            start, num_stats = layout(k, replicas, samples, num_channels, ACROSS, GROUPS)
            out_ptr = statistics_ptr + start + replica * width + sets
            first_of_set = inside & (channels % size == 0)
            tl.store(out_ptr, mean, first_of_set)
            tl.store(out_ptr + num_stats, var, first_of_set)
            if MEAN_AT[k] >= 0:
                ratio = ratio_at(mean_logits_ptr, MEAN_AT[k], channels, num_channels, ratio_groups, NUM_MEAN, HARD)
                across_distance += share_of(mean - anchor, ratio, HARD)
                across_share += ratio
            if VAR_AT[k] >= 0:
                ratio = ratio_at(var_logits_ptr, VAR_AT[k], channels, num_channels, ratio_groups, NUM_VAR, HARD)
                across_var += share_of(tl.sqrt(var + EPS) if STD else var, ratio, HARD)

    weight = tl.full([COLS], 1, ACC)
    bias = tl.zeros([COLS], ACC)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + replica * weight_stride + channels, inside, 0)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + replica * weight_stride + channels, inside, 0)
    columns = channels[None, :]
    for start in range(0, samples, ROWS):
        sample = start + tl.arange(0, ROWS)[:, None]
        row = first_row + sample
        mask = (sample < samples) & inside[None, :]
        index = row * num_channels + columns
        own = tl.load(mean_ptr + index, mask, 0)
        distance = across_distance[None, :] + share_of(anchor[None, :] - own, across_share[None, :], HARD)
        mixed = across_var[None, :] + tl.zeros([ROWS, COLS], ACC)
        for k in tl.static_range(len(ACROSS)):
            if MEAN_AT[k] >= 0 and not ACROSS[k]:
                share = ratio_at(mean_logits_ptr, MEAN_AT[k], columns, num_channels, ratio_groups, NUM_MEAN, HARD)
                row_mean = statistic(
                    *(statistics_ptr, mean_ptr, False, k, row, columns, mask, replicas, samples, num_channels),
                    *(ACROSS, GROUPS),
                )
                distance += share_of(row_mean - own, share, HARD)
            if VAR_AT[k] >= 0 and not ACROSS[k]:
                share = ratio_at(var_logits_ptr, VAR_AT[k], columns, num_channels, ratio_groups, NUM_VAR, HARD)
                row_var = statistic(
                    *(statistics_ptr, var_ptr, True, k, row, columns, mask, replicas, samples, num_channels),
                    *(ACROSS, GROUPS),
                )
                mixed += share_of(tl.sqrt(row_var + EPS) if STD else row_var, share, HARD)
        rstd = 1 / (mixed if STD else tl.sqrt(mixed + EPS))
        scale = rstd * weight[None, :]
        tl.store(scale_ptr + index, scale, mask)
        tl.store(shift_ptr + index, bias[None, :] - distance * scale, mask)
        tl.store(mu_ptr + index, own + distance, mask)
        tl.store(rstd_ptr + index, rstd, mask)
