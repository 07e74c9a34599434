"""The papers' formulas written plainly: each statistic straight from its pixels, autograd for the gradients.

Nothing here goes through (N, C) moments or comes from normlab. Meant for float64. Scopes are named as in the configs,
with the groups that fit spelled out: "gn4", "en8"; a bare "gn" or "en" is one group.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Statistics = tuple[Tensor, Tensor]  # mean and biased variance, (N, C, 1) each


def pixel_set_statistics(x_NCL: Tensor, scope: str) -> Statistics:
    """Of the set each pixel belongs to, among the samples of one replica (SN, Eq. 2; HN, Table 1)."""
    N, C, _ = x_NCL.shape
    kind, number = re.fullmatch(r"([a-z]+)(\d*)", scope).groups()
    groups = {"in": C, "bn": C, "ln": 1}.get(kind, int(number or 1))
    x_NGKL = x_NCL.unflatten(1, (groups, C // groups))
    axes = (0, 2, 3) if kind in ("bn", "en") else (2, 3)
    mean = x_NGKL.mean(axes, keepdim=True)
    var = ((x_NGKL - mean) ** 2).mean(axes, keepdim=True)
    per_pixel = (t.expand(N, groups, C // groups, 1).reshape(N, C, 1) for t in (mean, var))
    return next(per_pixel), next(per_pixel)


def mixture(terms: Sequence[Tensor], logits: Tensor | None, hard: bool) -> Tensor:
    """Sum of (N, C, 1) terms, weighted by the softmax of (S,) logits, or of (G, S): a row for each channel group."""
    if logits is None:
        return terms[0]
    C = terms[0].shape[1]
    ratio_GS = torch.softmax(logits.reshape(-1, len(terms)), dim=1)
    if hard:
        ratio_GS = (ratio_GS == ratio_GS.max(1, keepdim=True).values).to(ratio_GS.dtype)
    ratio_CS = torch.stack([ratio_GS[c * len(ratio_GS) // C] for c in range(C)])
    return sum(ratio_CS[:, k].reshape(1, C, 1) * term for k, term in enumerate(terms))


def per_channel(t_C: Tensor | None) -> Tensor | float:
    return 1.0 if t_C is None else t_C.reshape(1, -1, 1)


def normalize(
    x: Tensor,
    *,
    mean: Sequence[str],
    var: Sequence[str],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean_logits: Tensor | None = None,
    var_logits: Tensor | None = None,
    mix: str = "var",
    hard: bool = False,
    replicas: int = 1,
    stored: Mapping[str, Statistics] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """SN over any two lists of scopes (SN, Eq. 3), replica by replica; with one scope each, HN's Eq. 1-2.

    `mix="std"` mixes standard deviations (Distinct, Eq. 1). `stored` (scope -> mean, variance) replaces the statistics
    of these scopes, as in evaluation. Tied ratios: the same logits twice.
    """
    normalized = []
    for x_NCL in x.reshape(*x.shape[:2], -1).split(len(x) // replicas):
        found = {scope: pixel_set_statistics(x_NCL, scope) for scope in {*mean, *var}}
        found |= stored or {}
        mu = mixture([found[scope][0] for scope in mean], mean_logits, hard)
        if mix == "std":
            sigma = mixture([torch.sqrt(found[scope][1] + eps) for scope in var], var_logits, hard)
        else:
            sigma = torch.sqrt(mixture([found[scope][1] for scope in var], var_logits, hard) + eps)
        normalized.append((x_NCL - mu) / sigma)
    y_NCL = torch.cat(normalized) * per_channel(weight)
    return (y_NCL if bias is None else y_NCL + per_channel(bias)).reshape(x.shape)
