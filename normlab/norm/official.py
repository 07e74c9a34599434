"""Switchable Normalization as its released code computes it (norm.profile=official); the papers' own is the default.

The code divides the variance of a map by its positions less one where the papers divide by their number, and derives
those of LN and BN from it (seed 001, Eq. 2 and 5, against the code). What else differs is in docs/deviations.md.
These two stand in for those of normalize.py, in torch operations that autograd differentiates: no kernel knows them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from normlab.norm.algebra import Algebra, mix
from normlab.norm.ops import accumulation_dtype, affine


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the positions: x (N, C, *L) -> mean_NC, var_NC in the accumulation dtype."""
    var_NC, mean_NC = torch.var_mean(x.to(accumulation_dtype(x)), tuple(range(2, x.ndim)), correction=1)
    return mean_NC, var_NC


def normalize(
    x: Tensor,
    mean_NC: Tensor,
    var_NC: Tensor,
    parameters: Sequence[Tensor | None],
    algebra: Algebra,
    replicas: int,
    stored: Tensor | None = None,
    sync: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalize x by moments that gradients flow through; arguments and results as in normalize.normalize."""
    weight, bias, mean_logits, var_logits = parameters
    mixed = mix(algebra, replicas, mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored, sync)
    return affine(x, mean_NC, mixed.scale_NC, mixed.shift_NC), mixed.statistics.detach()
