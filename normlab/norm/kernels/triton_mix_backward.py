"""Triton kernels of normlab.norm.algebra.mix_backward, as triton_mix.py has the forward ones: one launch, or two.

    gradient_rows      pools what reaches each scope of channel groups, in a row; and sums a row for the logits
    gradient_columns   pools over the rows of a replica and adds up; sums over rows for weight and bias, and the logits

Gradients are pooled by the averages that pooled the statistics. The order of every sum is fixed by the shape.
"""

import triton
import triton.language as tl

from normlab.norm.kernels.triton_scopes import SIZES, pooled_in_rows, pooled_start, ratio_at, share_of, statistic


@triton.jit
def _upstream(
    dscale_ptr,
    dshift_ptr,
    mean_ptr,
    scale_ptr,
    mu_ptr,
    rstd_ptr,
    weight_ptr,
    weight_stride,
    row,
    channels,
    mask,
    samples,
    num_channels,
    STD: tl.constexpr,
):
    """The gradients of mu, and of the mixed variance (STD: deviation), at each row and channel."""
    index = row * num_channels + channels
    dshift, rstd = tl.load(dshift_ptr + index, mask, 0), tl.load(rstd_ptr + index, mask, 0)
    dmu = -dshift * tl.load(scale_ptr + index, mask, 0)
    distance = tl.load(mean_ptr + index, mask, 0) - tl.load(mu_ptr + index, mask, 0)
    drstd = tl.load(dscale_ptr + index, mask, 0) + dshift * distance
    if weight_ptr is not None:
        drstd *= tl.load(weight_ptr + row // samples * weight_stride + channels, mask, 0)
    return dmu, -drstd * rstd * rstd * (1.0 if STD else 0.5 * rstd)


@triton.jit
def _of_scope(
    dmu,
    dmixed,
    statistics_ptr,
    var_ptr,
    mean_logits_ptr,
    var_logits_ptr,
    ratio_groups,
    k: tl.constexpr,
    row,
    channels,
    mask,
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
):
    """What reaches scope k's mean and variance of the gradients of mu and of the mixed variance; 0 in masked places."""
    dmean, dvar = tl.zeros_like(dmu), tl.zeros_like(dmu)
    if MEAN_AT[k] >= 0:
        ratio = ratio_at(mean_logits_ptr, MEAN_AT[k], channels, num_channels, ratio_groups, NUM_MEAN, HARD)
        dmean = tl.where(mask, share_of(dmu, ratio, HARD), 0)
    if VAR_AT[k] >= 0:
        ratio = ratio_at(var_logits_ptr, VAR_AT[k], channels, num_channels, ratio_groups, NUM_VAR, HARD)
        dvar = share_of(dmixed, ratio, HARD)
        if STD:
            var = statistic(
                *(statistics_ptr, var_ptr, True, k, row, channels, mask, replicas, samples, num_channels),
                *(ACROSS, GROUPS),
            )
            if HARD:
                var = tl.where(ratio == 0.0, 0.0, var)
            dvar = dvar / (2 * tl.sqrt(var + EPS))
        dvar = tl.where(mask, dvar, 0)
    return dmean, dvar


@triton.jit(do_not_specialize=SIZES)
def gradient_rows(
    dscale_ptr,
    dshift_ptr,
    mean_ptr,
    var_ptr,
    scale_ptr,
    mu_ptr,
    rstd_ptr,
    statistics_ptr,
    weight_ptr,
    weight_stride,
    mean_logits_ptr,
    var_logits_ptr,
    ratio_groups,
    pooled_ptr,
    sums_ptr,
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
    STORED: tl.constexpr,
    SETS: tl.constexpr,
    MEMBERS: tl.constexpr,
    RATIO_MEMBERS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Program (row, k): scope k's gradients, pooled in its groups; program (row, scopes + k): sums for its logits."""
    row, rows = tl.program_id(0), replicas * samples
    for k in tl.static_range(len(GROUPS)):
        if GROUPS[k] > 0 and not (ACROSS[k] and STORED):  # noqa: SIM102  known when compiled, unlike the next
            if tl.program_id(1) == k:
                SETS_K: tl.constexpr = SETS[k]
                MEMBERS_K: tl.constexpr = MEMBERS[k]
                size = num_channels // GROUPS[k]
                out_ptr = pooled_ptr + pooled_start(k, rows, GROUPS) + row * GROUPS[k]
                for first in range(0, GROUPS[k], SETS_K):
                    sets = first + tl.arange(0, SETS_K)
                    inside = sets < GROUPS[k]
                    dmean_total = tl.zeros([SETS_K, MEMBERS_K], ACC)
                    dvar_total = tl.zeros([SETS_K, MEMBERS_K], ACC)
                    for member in range(0, size, MEMBERS_K):
                        members = member + tl.arange(0, MEMBERS_K)[None, :]
                        mask = inside[:, None] & (members < size)
                        channels = sets[:, None] * size + members
                        dmu, dmixed = _upstream(
                            *(dscale_ptr, dshift_ptr, mean_ptr, scale_ptr, mu_ptr, rstd_ptr, weight_ptr, weight_stride),
                            *(row, channels, mask, samples, num_channels, STD),
                        )
                        dmean, dvar = _of_scope(
                            *(dmu, dmixed, statistics_ptr, var_ptr, mean_logits_ptr, var_logits_ptr, ratio_groups, k),
                            *(row, channels, mask, replicas, samples, num_channels, ACROSS, GROUPS, MEAN_AT, VAR_AT),
                            *(NUM_MEAN, NUM_VAR, STD, HARD, EPS),
                        )
                        dmean_total += dmean
                        dvar_total += dvar
                    tl.store(out_ptr + sets, tl.sum(dmean_total, 1) / size.to(ACC), inside)
                    tl.store(out_ptr + rows * GROUPS[k] + sets, tl.sum(dvar_total, 1) / size.to(ACC), inside)
        if (NUM_MEAN > 1 and MEAN_AT[k] >= 0) or (NUM_VAR > 1 and VAR_AT[k] >= 0):  # noqa: SIM102
            if tl.program_id(1) == len(GROUPS) + k:
                size = num_channels // ratio_groups
                for group in range(ratio_groups):
                    mean_total = tl.zeros([RATIO_MEMBERS], ACC)
                    var_total = tl.zeros([RATIO_MEMBERS], ACC)
                    for member in range(0, size, RATIO_MEMBERS):
                        members = member + tl.arange(0, RATIO_MEMBERS)
                        mask = members < size
                        channels = group * size + members
                        dmu, dmixed = _upstream(
                            *(dscale_ptr, dshift_ptr, mean_ptr, scale_ptr, mu_ptr, rstd_ptr, weight_ptr, weight_stride),
                            *(row, channels, mask, samples, num_channels, STD),
                        )
                        if MEAN_AT[k] >= 0:  # the mean as its distance from the row's own, as in `mix_columns`
                            mean = statistic(
                                *(statistics_ptr, mean_ptr, False, k, row, channels, mask, replicas, samples),
                                *(num_channels, ACROSS, GROUPS),
                            )
                            own = tl.load(mean_ptr + row * num_channels + channels, mask, 0)
                            mean_total += tl.where(mask, dmu * (mean - own), 0)
                        if VAR_AT[k] >= 0:
                            var = statistic(
                                *(statistics_ptr, var_ptr, True, k, row, channels, mask, replicas, samples),
                                *(num_channels, ACROSS, GROUPS),
                            )
                            var_total += tl.where(mask, dmixed * (tl.sqrt(var + EPS) if STD else var), 0)
                    out_ptr = sums_ptr + (row * ratio_groups + group) * (NUM_MEAN + NUM_VAR)
                    if MEAN_AT[k] >= 0:
                        tl.store(out_ptr + MEAN_AT[k], tl.sum(mean_total, 0))
                    if VAR_AT[k] >= 0:
                        tl.store(out_ptr + NUM_MEAN + VAR_AT[k], tl.sum(var_total, 0))


@triton.jit
def _logits_gradient(
    sums_ptr,
    logits_ptr,
    out_ptr,
    group,
    ratio_groups,
    rows,
    OFFSET: tl.constexpr,
    STRIDE: tl.constexpr,
    NUM: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Through the softmax of one group of channels: ratio * (g - sum(ratio * g)), where g sums over the rows."""
    places = tl.arange(0, PLACES)
    total = tl.zeros([ROWS, PLACES], ACC)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        index = (row * ratio_groups + group) * STRIDE + OFFSET + places[None, :]
        total += tl.load(sums_ptr + index, (row < rows) & (places < NUM)[None, :], 0)
    g = tl.sum(total, 0)
    logits = tl.load(logits_ptr + group * NUM + places, places < NUM, float("-inf"))
    ratio = tl.exp(logits - tl.max(logits, 0))
    ratio = ratio / tl.sum(ratio, 0)
    tl.store(out_ptr + group * NUM + places, ratio * (g - tl.sum(ratio * g, 0)), places < NUM)


@triton.jit(do_not_specialize=SIZES)
def gradient_columns(
    dscale_ptr,
    dshift_ptr,
    mean_ptr,
    var_ptr,
    scale_ptr,
    mu_ptr,
    rstd_ptr,
    statistics_ptr,
    weight_ptr,
    weight_stride,
    mean_logits_ptr,
    var_logits_ptr,
    ratio_groups,
    pooled_ptr,
    sums_ptr,
    dmean_ptr,
    dvar_ptr,
    dweight_ptr,
    dbias_ptr,
    dmean_logits_ptr,
    dvar_logits_ptr,
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
    STORED: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Program (channels, y): y < replicas: dmean, dvar; then one for each row of weight and bias; then the logits."""
    channels, y = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.program_id(1)
    inside, rows = channels < num_channels, replicas * samples
    columns = channels[None, :]
    if y < replicas:
        first_row = y * samples
        # d mean = sum_k pooled dmean_k + 2 (mean - mean_k) pooled dvar_k, and its parts across samples do not vary in a
        # replica but for `mean`; means again as distances, from the first row's.
        anchor = tl.load(mean_ptr + first_row * num_channels + channels, inside, 0)
        anchor = tl.where(tl.abs(anchor) < float("inf"), anchor, 0)
        across_dmean = tl.zeros([COLS], ACC)
        across_dvar = tl.zeros([COLS], ACC)
        for k in tl.static_range(len(ACROSS)):
            if ACROSS[k] and not STORED:
                dmean_total = tl.zeros([ROWS, COLS], ACC)
                dvar_total = tl.zeros([ROWS, COLS], ACC)
                for start in range(0, samples, ROWS):
                    sample = start + tl.arange(0, ROWS)[:, None]
                    mask = (sample < samples) & inside[None, :]
                    if GROUPS[k] > 0:
                        dmean, dvar = pooled_in_rows(
                            *(pooled_ptr, pooled_ptr, pooled_ptr, k, first_row + sample, columns, mask, rows),
                            *(num_channels, GROUPS),
                        )
                    else:
                        dmu, dmixed = _upstream(
                            *(dscale_ptr, dshift_ptr, mean_ptr, scale_ptr, mu_ptr, rstd_ptr, weight_ptr, weight_stride),
                            *(first_row + sample, columns, mask, samples, num_channels, STD),
                        )
                        dmean, dvar = _of_scope(
                            *(dmu, dmixed, statistics_ptr, var_ptr, mean_logits_ptr, var_logits_ptr, ratio_groups, k),
                            *(first_row + sample, columns, mask, replicas, samples, num_channels, ACROSS, GROUPS),
                            *(MEAN_AT, VAR_AT, NUM_MEAN, NUM_VAR, STD, HARD, EPS),
                        )
                    dmean_total += dmean
                    dvar_total += dvar
                across_mean = statistic(
                    *(statistics_ptr, mean_ptr, False, k, first_row, channels, inside, replicas, samples, num_channels),
                    *(ACROSS, GROUPS),
                )
                pooled_dvar = tl.sum(dvar_total, 0) / samples.to(ACC)
                across_dvar += pooled_dvar
                by_var = share_of(2 * (anchor - across_mean), pooled_dvar, HARD)
                across_dmean += tl.sum(dmean_total, 0) / samples.to(ACC) + by_var
        for start in range(0, samples, ROWS):
            sample = start + tl.arange(0, ROWS)[:, None]
            row = first_row + sample
            mask = (sample < samples) & inside[None, :]
            index = row * num_channels + columns
            own = tl.load(mean_ptr + index, mask, 0)
            dmean_total = across_dmean[None, :] + share_of(2 * (own - anchor[None, :]), across_dvar[None, :], HARD)
            dvar_total = across_dvar[None, :] + tl.zeros([ROWS, COLS], ACC)
            for k in tl.static_range(len(ACROSS)):
                if GROUPS[k] > 0 and not ACROSS[k]:
                    dmean, dvar = pooled_in_rows(
                        *(pooled_ptr, pooled_ptr, pooled_ptr, k, row, columns, mask, rows, num_channels, GROUPS)
                    )
                    mean = statistic(
                        *(statistics_ptr, mean_ptr, False, k, row, columns, mask, replicas, samples, num_channels),
                        *(ACROSS, GROUPS),
                    )
                    dmean_total += dmean + share_of(2 * (own - mean), dvar, HARD)
                    dvar_total += dvar
                elif not ACROSS[k]:
                    dmu, dmixed = _upstream(
                        *(dscale_ptr, dshift_ptr, mean_ptr, scale_ptr, mu_ptr, rstd_ptr, weight_ptr, weight_stride),
                        *(row, columns, mask, samples, num_channels, STD),
                    )
                    dmean, dvar = _of_scope(
                        *(dmu, dmixed, statistics_ptr, var_ptr, mean_logits_ptr, var_logits_ptr, ratio_groups, k),
                        *(row, columns, mask, replicas, samples, num_channels, ACROSS, GROUPS, MEAN_AT, VAR_AT),
                        *(NUM_MEAN, NUM_VAR, STD, HARD, EPS),
                    )
                    dmean_total += dmean
                    dvar_total += dvar
            tl.store(dmean_ptr + index, dmean_total, mask)
            tl.store(dvar_ptr + index, dvar_total, mask)
    elif y < tl.num_programs(1) - 1:
        line = y - replicas
        first_row = line * samples
        num_rows = samples if weight_stride > 0 else rows
        dweight = tl.zeros([ROWS, COLS], ACC)
        dbias = tl.zeros([ROWS, COLS], ACC)
        for start in range(0, num_rows, ROWS):
            sample = start + tl.arange(0, ROWS)[:, None]
            mask = (sample < num_rows) & inside[None, :]
            index = (first_row + sample) * num_channels + columns
            dshift = tl.load(dshift_ptr + index, mask, 0)
            distance = tl.load(mean_ptr + index, mask, 0) - tl.load(mu_ptr + index, mask, 0)
            total = tl.load(dscale_ptr + index, mask, 0) + dshift * distance
            dweight += total * tl.load(rstd_ptr + index, mask, 0)
            dbias += dshift
        if dweight_ptr is not None:
            tl.store(dweight_ptr + line * num_channels + channels, tl.sum(dweight, 0), inside)
        if dbias_ptr is not None:
            tl.store(dbias_ptr + line * num_channels + channels, tl.sum(dbias, 0), inside)
    else:
        for group in range(tl.program_id(0), ratio_groups, tl.num_programs(0)):
            if NUM_MEAN > 1 and not HARD:
                _logits_gradient(
                    *(sums_ptr, mean_logits_ptr, dmean_logits_ptr, group, ratio_groups, rows),
                    *(0, NUM_MEAN + NUM_VAR, NUM_MEAN, PLACES, ROWS, ACC),
                )
            if NUM_VAR > 1 and not HARD:
                _logits_gradient(
                    *(sums_ptr, var_logits_ptr, dvar_logits_ptr, group, ratio_groups, rows),
                    *(NUM_MEAN, NUM_MEAN + NUM_VAR, NUM_VAR, PLACES, ROWS, ACC),
                )
