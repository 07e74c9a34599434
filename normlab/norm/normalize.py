"""A normalizer as one step of autograd: moments, algebra, affine map; and back, with x and (N, C) tensors kept.

Forward reads x twice and writes y; backward reads dy and x twice and writes dx: eight passes over the activation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from normlab.norm import algebra as definition
from normlab.norm import (
    kernels,
    ops,  # noqa: F401  registers torch.ops.normlab
)
from normlab.norm.algebra import Algebra, Mixed
from normlab.norm.pooling import num_ranks

_ops = torch.ops.normlab


class _Normalize(Function):
    @staticmethod
    def forward(ctx: Any, x, mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored, algebra, replicas, sync):
        parameters = (weight, bias, mean_logits, var_logits)
        ctx.settings = (algebra, replicas, sync, stored is not None)
        kernel = None if sync else kernels.direct("forward", x)
        result = (
            NotImplemented if kernel is None else kernel(x, mean_NC, var_NC, *parameters, stored, algebra, replicas)
        )
        ctx.fused = result is not NotImplemented
        if ctx.fused:
            y, *kept = result
            statistics = kept[-1]
        else:
            if mean_NC is None:
                mean_NC, var_NC = _ops.moments(x)
            if sync:
                mixed = definition.mix(algebra, replicas, mean_NC, var_NC, *parameters, stored, sync)
            else:
                mixed = Mixed(*_ops.mix(mean_NC, var_NC, *parameters, stored, *algebra, replicas))
            y = _ops.affine(x, mean_NC, mixed.scale_NC, mixed.shift_NC)
            statistics = mixed.statistics
            kept = [mean_NC, var_NC, mixed.scale_NC, mixed.mu_NC, mixed.rstd_NC, statistics]
        ctx.save_for_backward(x, *kept, *parameters)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, _: None):
        if dy is None:
            return (None,) * 11
        x, mean_NC, var_NC, scale, mu, rstd, statistics, *parameters = ctx.saved_tensors
        algebra, replicas, sync, stored = ctx.settings
        needed = ctx.needs_input_grad
        if ctx.fused:
            kernel = kernels.backend(x.device.type).kernels["backward"]
            kept = (mean_NC, var_NC, scale, mu, rstd, statistics, *parameters)
            dx, *dparameters = kernel(dy, x, *kept, stored, algebra, replicas, needed[0])
        else:
            dshift_NC, dscale_NC = _ops.sums(dy, x, mean_NC)
            if sync:
                mixed = Mixed(scale, scale, mu, rstd, statistics)  # the shift is of no use here
                gradients = definition.mix_backward(
                    *(algebra, replicas, dscale_NC, dshift_NC, mean_NC, var_NC, mixed, *parameters, stored, sync)
                )
            else:
                gradients = _ops.mix_backward(
                    *(dscale_NC, dshift_NC, mean_NC, var_NC, scale, mu, rstd, statistics, *parameters, stored),
                    *(*algebra, replicas),
                )
            dmean_NC, dvar_NC, *dparameters = gradients
            dx = _ops.input_gradient(dy, x, mean_NC, scale, dmean_NC, dvar_NC) if needed[0] else None
        wanted = [d if use else None for d, use in zip(dparameters, needed[3:7], strict=True)]
        return dx, None, None, *wanted, None, None, None, None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions: x (N, C, *L) -> mean_NC, var_NC in the accumulation dtype.

    Constants: what x receives through them is part of the backward pass of `normalize`.
    """
    return _ops.moments(x.detach())


def normalize(
    x: Tensor,
    mean_NC: Tensor | None,
    var_NC: Tensor | None,
    parameters: Sequence[Tensor | None],
    algebra: Algebra,
    replicas: int,
    stored: Tensor | None = None,
    sync: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalize x (R*N, C, *L) by an algebra.

    The arguments are those of normlab.norm.algebra.mix; parameters are weight, bias, mean_logits and var_logits. The
    moments are those of x, or None: they are taken here, and the pass may be a single call then. Where all statistics
    are stored, they serve as anchor alone and may be any constants.

    Returns:
        y, in x's dtype and layout, and the flat statistics (Algebra.layout), which are constants.
    """
    return _Normalize.apply(x, mean_NC, var_NC, *parameters, stored, algebra, replicas, sync and num_ranks() > 1)
