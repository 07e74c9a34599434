"""Switchable Normalization as its released code computes it (norm.profile=official); the papers' own is the default.

The code divides the variance of a map by its positions less one where the papers divide by their number, and derives
those of LN and BN from it (SN, Eq. 2 and 5, against the code). What else differs is in docs/deviations.md.
Torch's autograd differentiates them, with `plain` of normalize.py behind them: no kernel knows these moments.
"""

import torch
from torch import Tensor

from normlab.norm.ops import accumulation_dtype


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the positions: x (N, C, *L) -> mean_NC, var_NC in the accumulation dtype."""
    var_NC, mean_NC = torch.var_mean(x.to(accumulation_dtype(x)), tuple(range(2, x.ndim)), correction=1)
    return mean_NC, var_NC
