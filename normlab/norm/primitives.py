"""The two primitives through which every normalizer touches the activations; nothing else does.

    moments(x_NCL) -> mean_NC, var_NC              biased, over the positions L of every sample and channel
    affine(x_NCL, anchor_NC, scale_NC, shift_NC)   (x - anchor) * scale + shift

N rows (samples), C channels, L any number of position axes (H, W or T, H, W or none folded to one). Statistics are
accumulated and returned in float32 at least. Kept for backward: x itself and (N, C) tensors.

The anchor is any constant near the mean. It moves `shift` by as much as it moves x, so its own gradient is zero;
subtracting it first is what keeps y and sum(dy * x) exact when |mean| is far above the standard deviation.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 stays, everything narrower is accumulated in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _positions(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _spread(t_NC: Tensor, like: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, ...) so that it broadcasts over the positions of `like`."""
    return t_NC.reshape(*t_NC.shape, *(1,) * (like.ndim - 2))


class _Moments(Function):
    @staticmethod
    def forward(ctx, x):
        acc = x.to(accumulation_dtype(x))
        mean_NC = acc.mean(_positions(x))
        var_NC = (acc - _spread(mean_NC, x)).square_().mean(_positions(x))
        ctx.save_for_backward(x, mean_NC)
        return mean_NC, var_NC

    @staticmethod
    @once_differentiable
    def backward(ctx, dmean_NC, dvar_NC):
        x, mean_NC = ctx.saved_tensors
        num_positions = x[0, 0].numel()
        centred = x - _spread(mean_NC, x)
        dx = torch.addcmul(_spread(dmean_NC / num_positions, x), centred, _spread(dvar_NC * (2 / num_positions), x))
        return dx.to(x.dtype)


class _Affine(Function):
    @staticmethod
    def forward(ctx, x, anchor_NC, scale_NC, shift_NC):
        ctx.save_for_backward(x, anchor_NC, scale_NC)
        y = torch.addcmul(_spread(shift_NC, x), x - _spread(anchor_NC, x), _spread(scale_NC, x))
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, anchor_NC, scale_NC = ctx.saved_tensors
        dy = dy.to(scale_NC.dtype)
        dscale_NC = ((x - _spread(anchor_NC, x)).mul_(dy)).sum(_positions(x))
        return (dy * _spread(scale_NC, x)).to(x.dtype), None, dscale_NC, dy.sum(_positions(x))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions: x (N, C, *L) -> mean_NC, var_NC in the accumulation dtype."""
    return _Moments.apply(x)


def affine(x: Tensor, anchor_NC: Tensor, scale_NC: Tensor, shift_NC: Tensor) -> Tensor:
    """(x - anchor) * scale + shift, in x's dtype: x (N, C, *L), the others (N, C), anchor without gradient."""
    return _Affine.apply(x, anchor_NC, scale_NC, shift_NC)
