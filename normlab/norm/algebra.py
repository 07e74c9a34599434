"""The algebra of a normalizer: from the moments of every sample and channel to the affine map that normalizes them.

Pixel set k has mean_k and var_k (pooled from the moments, or stored); with ratios a and b that each sum to 1

    mu = sum_k a_k mean_k        1 / rstd = sqrt(sum_k b_k var_k + eps), or sum_k b_k sqrt(var_k + eps)
    scale = weight * rstd        shift = (anchor - mu) * scale + bias        y = (x - anchor) * scale + shift

and the moments' own mean is the anchor. Pooling is an average over a set, so its transpose is the same average: that is
the whole of the backward pass. This is the definition, in torch operations; kernels/ has it as single kernels.

Shapes: rows R*N (R virtual replicas of N samples, replica by replica), C channels; S scopes in a list, K rows of ratios
(channel groups); W values of a scope's compact statistics. All tensors in the accumulation dtype, float32 or float64.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from normlab.norm.pooling import Pair, pool, spread, statistics


class Algebra(NamedTuple):
    """What is pooled, and how it is mixed.

    Attributes:
        across: for each scope, whether its sets reach across the samples of a replica (bn, en).
        widths: for each scope, its sets in a row: C (in, bn), 1 (ln), or the number of groups (gn, en).
        mean, var: the scopes, by number, that are mixed for the mean and for the variance.
        std: mix standard deviations, not variances.
        hard: the ratio of the largest logit is 1, and the logits are constants; scopes of ratio 0 have no part in what
            the others give, be they infinite or NaN.
        eps: added to the variance.
    """

    across: tuple[bool, ...]
    widths: tuple[int, ...]
    mean: tuple[int, ...]
    var: tuple[int, ...]
    std: bool
    hard: bool
    eps: float

    def layout(
        self, replicas: int, rows: int, num_channels: int
    ) -> Iterator[tuple[slice, slice, tuple[int, int, int]]]:
        """Where each scope's mean and variance lie in the flat statistics, and their compact shape (R|1, N|1, W).

        A scope that pools nothing (in) takes no room: the moments are its statistics.
        """
        start = 0
        for across, width in zip(self.across, self.widths, strict=True):
            shape = (replicas, 1 if across else rows // replicas, width)
            size = 0 if width == num_channels and not across else shape[0] * shape[1] * width
            yield slice(start, start + size), slice(start + size, start + 2 * size), shape
            start += 2 * size

    def unpack(self, flat: Tensor, mean_NC: Tensor, var_NC: Tensor, replicas: int) -> list[Pair]:
        """The statistics of every scope, compact."""
        rows, C = mean_NC.shape
        return [
            (flat[mean].view(shape), flat[var].view(shape))
            if mean.stop > mean.start
            else (mean_NC.view(shape), var_NC.view(shape))
            for mean, var, shape in self.layout(replicas, rows, C)
        ]


class Mixed(NamedTuple):
    """What `mix` gives; all (R*N, C) but `statistics`, which is flat (see Algebra.layout)."""

    scale_NC: Tensor
    shift_NC: Tensor
    mu_NC: Tensor
    rstd_NC: Tensor
    statistics: Tensor


class Gradients(NamedTuple):
    """What `mix_backward` gives; empty where there is no such parameter."""

    mean_NC: Tensor
    var_NC: Tensor
    weight: Tensor
    bias: Tensor
    mean_logits: Tensor
    var_logits: Tensor


def ratios(logits: Tensor | None, hard: bool) -> Tensor | None:
    """(S,) or (K, S) logits -> (K, S) ratios: softmax, or one-hot; None for a single scope."""
    if logits is None:
        return None
    logits_KS = logits.reshape(-1, logits.shape[-1])
    if hard:
        return torch.nn.functional.one_hot(logits_KS.argmax(-1), logits_KS.shape[-1]).to(logits.dtype)
    return logits_KS.softmax(-1)


def mix(
    algebra: Algebra,
    replicas: int,
    mean_NC: Tensor,
    var_NC: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_logits: Tensor | None,
    var_logits: Tensor | None,
    stored: Tensor | None = None,
    sync: bool = False,
) -> Mixed:
    """The affine map that normalizes rows with these moments.

    Args:
        algebra: what is pooled and mixed.
        replicas: R, which the rows are stacks of.
        mean_NC, var_NC: moments, (R*N, C).
        weight, bias: (C,), or (R, C) with values of their own for each replica.
        mean_logits, var_logits: (S,), or (K, S) for K groups of channels.
        stored: takes the place of what scopes across samples would pool: the flat statistics of these scopes alone,
            with R = 1.
        sync: scopes across samples join all ranks (and replicas: R is 1 then).
    """
    rows, C = mean_NC.shape
    m, v = (t.view(replicas, -1, C) for t in (mean_NC, var_NC))
    own = iter(stored.split(_stored_sizes(algebra)) if stored is not None else ())
    a_SC, b_SC = (_per_channel(ratios(t, algebra.hard), C) for t in (mean_logits, var_logits))
    pairs: list[Pair] = []
    for k, (across, width) in enumerate(zip(algebra.across, algebra.widths, strict=True)):
        if across and stored is not None:
            pairs.append((next(own).view(1, 1, width), next(own).view(1, 1, width)))
        elif algebra.hard and torch.is_grad_enabled():
            pairs.append(_statistics_of_chosen(m, v, across, width, sync, _chosen(algebra, k, a_SC, b_SC, m)))
        else:
            pairs.append(statistics(m, v, across, width, sync))
    means = _kept([spread(pairs[k][0], C) for k in algebra.mean], a_SC, algebra.hard)
    variances = _kept([spread(pairs[k][1], C) for k in algebra.var], b_SC, algebra.hard)
    # The ratios sum to 1, so a constant can be taken out: what is left keeps the digits in which means differ.
    mu = means[0] if a_SC is None else means[0] + _weighted([t - means[0] for t in means], a_SC)
    if algebra.std:
        rstd = 1 / _weighted([torch.sqrt(t + algebra.eps) for t in variances], b_SC)
    else:
        rstd = torch.rsqrt(_weighted(variances, b_SC) + algebra.eps)
    scale = rstd if weight is None else rstd * weight.view(-1, 1, C)
    shift = (m - mu) * scale
    if bias is not None:
        shift = shift + bias.view(-1, 1, C)
    scale, shift, mu, rstd = (
        t.expand(replicas, rows // replicas, C).reshape(rows, C).contiguous() for t in (scale, shift, mu, rstd)
    )
    pooled = [
        t.expand(shape).reshape(-1)
        for (mean, _, shape), pair in zip(algebra.layout(replicas, rows, C), pairs, strict=True)
        if mean.stop > mean.start
        for t in pair
    ]
    return Mixed(scale, shift, mu, rstd, torch.cat(pooled) if pooled else mean_NC.new_empty(0))


def mix_backward(
    algebra: Algebra,
    replicas: int,
    dscale_NC: Tensor,
    dshift_NC: Tensor,
    mean_NC: Tensor,
    var_NC: Tensor,
    mixed: Mixed,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_logits: Tensor | None,
    var_logits: Tensor | None,
    stored: bool = False,
    sync: bool = False,
) -> Gradients:
    """The gradients of `mix`, with the anchor in `shift` a constant (its own gradient is zero)."""
    C = mean_NC.shape[1]
    dscale, dshift, m, scale, mu, rstd = (
        t.view(replicas, -1, C) for t in (dscale_NC, dshift_NC, mean_NC, mixed.scale_NC, mixed.mu_NC, mixed.rstd_NC)
    )
    pairs = algebra.unpack(mixed.statistics, mean_NC, var_NC, replicas)
    a, b = (ratios(t, algebra.hard) for t in (mean_logits, var_logits))
    a_SC, b_SC = _per_channel(a, C), _per_channel(b, C)
    none = mean_NC.new_empty(0)

    total = dscale + dshift * (m - mu)
    dweight = none if weight is None else _like((total * rstd).sum(1), weight)
    dbias = none if bias is None else _like(dshift.sum(1), bias)
    drstd = total if weight is None else total * weight.view(-1, 1, C)
    dmu = -dshift * scale
    dmeans = _shares(dmu, a_SC, algebra.hard)
    variances = _kept([spread(pairs[k][1], C) for k in algebra.var], b_SC, algebra.hard)
    # Of the variance, or with `std` of the mixed deviation, whose terms are sqrt(var_k + eps).
    dmixed = -drstd * rstd.square() if algebra.std else -0.5 * drstd * rstd**3
    terms = [torch.sqrt(t + algebra.eps) for t in variances] if algebra.std else variances
    dvars = _shares(dmixed, b_SC, algebra.hard)
    if algebra.std:
        dvars = [d / (2 * t) for d, t in zip(dvars, terms, strict=True)]

    dm, dv = torch.zeros_like(m), torch.zeros_like(m)
    for k, (across, width) in enumerate(zip(algebra.across, algebra.widths, strict=True)):
        if across and stored:
            continue
        if k in algebra.mean:
            dm = dm + spread(pool(dmeans[algebra.mean.index(k)], across, width, sync), C)
        if k in algebra.var:
            pooled = spread(pool(dvars[algebra.var.index(k)], across, width, sync), C)
            dv = dv + pooled
            (distance,) = _kept([m - spread(pairs[k][0], C)], pooled[None], algebra.hard)
            dm = dm + 2 * distance * pooled
    means = [spread(pairs[k][0], C) for k in algebra.mean]
    return Gradients(
        dm.reshape(mean_NC.shape),
        dv.reshape(mean_NC.shape),
        dweight,
        dbias,
        _logits_gradient(dmu, [t - means[0] for t in means], mean_logits, a, algebra.hard),
        _logits_gradient(dmixed, terms, var_logits, b, algebra.hard),
    )


def _stored_sizes(algebra: Algebra) -> list[int]:
    batch = (width for across, width in zip(algebra.across, algebra.widths, strict=True) if across)
    return list(itertools.chain.from_iterable((width, width) for width in batch))


def _per_channel(ratio_KS: Tensor | None, num_channels: int) -> Tensor | None:
    """(S, 1 or C), which broadcasts over the channels."""
    return None if ratio_KS is None else spread(ratio_KS.T, num_channels)


def _weighted(terms: list[Tensor], ratio_SC: Tensor | None) -> Tensor:
    if ratio_SC is None:
        return terms[0]
    total = ratio_SC[0] * terms[0]
    for k, term in enumerate(terms[1:], start=1):
        total = total + ratio_SC[k] * term
    return total


def _kept(terms: list[Tensor], share_SC: Tensor | None, hard: bool) -> list[Tensor]:
    """Each term where it has a share; with hard ratios 0 elsewhere, as 0 times infinity or NaN is not."""
    if share_SC is None or not hard:
        return terms
    return [torch.where(share == 0, 0, term) for share, term in zip(share_SC, terms, strict=True)]


def _shares(d: Tensor, ratio_SC: Tensor | None, hard: bool) -> list[Tensor]:
    """What of a gradient reaches each scope."""
    if ratio_SC is None:
        return [d]
    kept = _kept([d] * len(ratio_SC), ratio_SC, hard)
    return [ratio * t for ratio, t in zip(ratio_SC, kept, strict=True)]


def _chosen(algebra: Algebra, k: int, a_SC: Tensor | None, b_SC: Tensor | None, like_RNC: Tensor) -> Tensor:
    """Which channels choose scope k, for mean or variance: (1 or C,) of 0 and 1."""
    none = like_RNC.new_zeros(1)
    shares = [
        none if k not in mixed else none + 1 if ratio_SC is None else ratio_SC[mixed.index(k)]
        for mixed, ratio_SC in ((algebra.mean, a_SC), (algebra.var, b_SC))
    ]
    return torch.maximum(*shares)


def _statistics_of_chosen(m: Tensor, v: Tensor, across: bool, width: int, sync: bool, chosen_C: Tensor) -> Pair:
    """`statistics`, whose gradient leaves out the sets that no channel chose: 0 times infinity or NaN is not 0."""
    C = m.shape[-1]
    set_W = pool(chosen_C.expand(1, 1, C), False, width) > 0
    left_out_C = ~spread(set_W, C)
    kept = statistics(m.masked_fill(left_out_C, 0), v.masked_fill(left_out_C, 0), across, width, sync)
    constant = statistics(m.detach(), v.detach(), across, width, sync)
    return torch.where(set_W, kept[0], constant[0]), torch.where(set_W, kept[1], constant[1])


def _like(sum_RC: Tensor, parameter: Tensor) -> Tensor:
    return sum_RC.sum(0).view_as(parameter) if parameter.numel() == sum_RC.shape[1] else sum_RC.view_as(parameter)


def _logits_gradient(
    dmixed: Tensor, terms: list[Tensor], logits: Tensor | None, ratio_KS: Tensor | None, hard: bool
) -> Tensor:
    """Through the softmax: ratio * (g - sum(ratio * g)), where g_k is the sum of dmixed * term_k over a group."""
    if logits is None or ratio_KS is None:
        return dmixed.new_empty(0)
    if hard:
        return torch.zeros_like(logits)
    K = len(ratio_KS)
    g_KS = torch.stack([(dmixed * t).sum((0, 1)).view(K, -1).sum(1) for t in terms], 1)
    return (ratio_KS * (g_KS - (ratio_KS * g_KS).sum(1, keepdim=True))).view_as(logits)
