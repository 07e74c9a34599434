"""A normalizer as one step of autograd: moments, algebra, affine map; and back, with x and its moments kept.

Forward reads x twice and writes y; backward reads dy and x twice and writes dx: eight passes over the activation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from normlab.norm import algebra as definition
from normlab.norm import kernels, ops
from normlab.norm.algebra import Algebra, Mixed
from normlab.norm.pooling import num_ranks

_ops = torch.ops.normlab


class _Normalize(Function):
    @staticmethod
    def forward(ctx: Any, x, mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored, algebra, replicas, sync):
        parameters = (weight, bias, mean_logits, var_logits)
        ctx.settings = (algebra, replicas, sync)
        kernel = None if sync else kernels.direct("forward", x)
        result = (
            NotImplemented if kernel is None else kernel(x, mean_NC, var_NC, *parameters, stored, algebra, replicas)
        )
        ctx.fused = result is not NotImplemented
        if ctx.fused:
            y, *kept, statistics = result
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
        ctx.save_for_backward(x, *kept, *parameters, stored)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None):
        if dy is None:
            return (None,) * 11
        create_graph = torch.is_grad_enabled()
        if not torch.compiler.is_compiling() and (create_graph or kernels.needs_operations(dy)):
            return _backward_of_plain(ctx, dy)
        algebra, replicas, sync = ctx.settings
        needed = ctx.needs_input_grad
        if ctx.fused:
            x, *kept = ctx.saved_tensors
            kernel = kernels.backend(x.device).kernels["backward"]
            dx, *dparameters = kernel(dy, x, *kept, algebra, replicas, needed[0])
        else:
            x, mean_NC, var_NC, scale, mu, rstd, statistics, *parameters, stored_values = ctx.saved_tensors
            stored = stored_values is not None
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


def _backward_of_plain(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients by way of `plain`, computed anew: derivatives of them exist."""
    x, mean_NC, var_NC, *_, weight, bias, mean_logits, var_logits, stored = ctx.saved_tensors
    algebra, replicas, sync = ctx.settings
    if stored is None or not all(algebra.across):
        mean_NC = var_NC = None  # functions of x, to be computed anew; else an anchor alone
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, since one input may be a function of another, which is not this step's to go through.
        inputs = {
            k: t.view_as(t)
            for k, t in {0: x, 3: weight, 4: bias, 5: mean_logits, 6: var_logits}.items()
            if t is not None
        }
        y, _ = plain(inputs[0], mean_NC, var_NC, [inputs.get(k) for k in range(3, 7)], algebra, replicas, stored, sync)
        asked = [k for k in inputs if ctx.needs_input_grad[k]]
        found = torch.autograd.grad(y, [inputs[k] for k in asked], dy, create_graph=create_graph, allow_unused=True)
    gradients = dict(zip(asked, found, strict=True))
    return tuple(gradients.get(k) for k in range(11))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions: x (N, C, *L) -> mean_NC, var_NC in the accumulation dtype.

    For `normalize`, whose backward pass has what x receives through them: constants, but where derivatives come of
    torch's operations.
    """
    return ops.moments(x) if kernels.needs_operations() else _ops.moments(x.detach())


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
    if kernels.needs_operations():
        return plain(x, mean_NC, var_NC, parameters, algebra, replicas, stored, sync)
    return _Normalize.apply(x, mean_NC, var_NC, *parameters, stored, algebra, replicas, sync and num_ranks() > 1)


def plain(
    x: Tensor,
    mean_NC: Tensor | None,
    var_NC: Tensor | None,
    parameters: Sequence[Tensor | None],
    algebra: Algebra,
    replicas: int,
    stored: Tensor | None = None,
    sync: bool = False,
) -> tuple[Tensor, Tensor]:
    """`normalize` by its definition in torch operations: they have all derivatives, and torch.func transforms them.

    Slower, and it keeps more. Moments that are given are functions of x, unless all statistics are stored.

    Raises:
        RuntimeError: statistics of other ranks would have to be differentiated.
    """
    if sync and num_ranks() > 1:
        raise RuntimeError("synchronized statistics over several ranks have first derivatives alone; use sync=False")
    if mean_NC is None or var_NC is None:
        mean_NC, var_NC = ops.moments(x)
    weight, bias, mean_logits, var_logits = parameters
    mixed = definition.mix(algebra, replicas, mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored)
    return ops.affine(x, mean_NC, mixed.scale_NC, mixed.shift_NC), mixed.statistics.detach()
