"""The operations that read and write activations, and the algebra between them, as torch custom operators.

    moments(x)                          -> mean_NC, var_NC      biased, over the positions of every sample and channel
    affine(x, anchor, scale, shift)     -> (x - anchor) * scale + shift
    sums(dy, x, anchor)                 -> sum(dy), sum(dy * (x - anchor)), over the positions
    input_gradient(dy, x, mean, scale, dmean, dvar) -> dy * scale + (dmean + 2 * (x - mean) * dvar) / positions
    mix, mix_backward                   the algebra on (N, C) tensors (normlab.norm.algebra)

x and dy are (N, C, *L) with any number of position axes, at least one; the others (N, C), in the accumulation dtype
(float32, or float64 for float64). Each runs as a kernel where there is one (normlab.norm.kernels), and else as the
torch operations written here, which define it. torch.compile takes them as they are: no break in the graph.

Subtracting an anchor near the mean first keeps y and sum(dy * x) exact where |mean| is far above the deviation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from normlab.norm import algebra as definition
from normlab.norm import kernels
from normlab.norm.algebra import Algebra, Gradients, Mixed

_library = torch.library.Library("normlab", "DEF")
_ALGEBRA = "bool[] across, int[] widths, int[] mean, int[] var, bool std, bool hard, float eps, int replicas"
_PARAMETERS = "Tensor? weight, Tensor? bias, Tensor? mean_logits, Tensor? var_logits"
_SCHEMAS = {
    "moments": "(Tensor x) -> (Tensor, Tensor)",
    "affine": "(Tensor x, Tensor anchor, Tensor scale, Tensor shift) -> Tensor",
    "sums": "(Tensor dy, Tensor x, Tensor anchor) -> (Tensor, Tensor)",
    "input_gradient": "(Tensor dy, Tensor x, Tensor mean, Tensor scale, Tensor dmean, Tensor dvar) -> Tensor",
    "mix": f"(Tensor mean_NC, Tensor var_NC, {_PARAMETERS}, Tensor? stored, {_ALGEBRA}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "mix_backward": "(Tensor dscale, Tensor dshift, Tensor mean_NC, Tensor var_NC, Tensor scale, Tensor mu, "
    f"Tensor rstd, Tensor statistics, {_PARAMETERS}, bool stored, {_ALGEBRA}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
}


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 stays, everything narrower is accumulated in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- the definition of each, in torch operations ---------------------------------------------------------------------


def _positions(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _over(x: Tensor, t_NC: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, ...) so that it broadcasts over the positions of x."""
    return t_NC.reshape(*t_NC.shape, *(1,) * (x.ndim - 2))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    acc = x.to(accumulation_dtype(x))
    mean_NC = acc.mean(_positions(x))
    return mean_NC, (acc - _over(x, mean_NC)).square().mean(_positions(x))


def affine(x: Tensor, anchor: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(_over(x, shift), x - _over(x, anchor), _over(x, scale)).to(x.dtype)


def sums(dy: Tensor, x: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    dy = dy.to(anchor.dtype)
    return dy.sum(_positions(x)), (x - _over(x, anchor)).mul_(dy).sum(_positions(x))


def input_gradient(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor) -> Tensor:
    size = x[0, 0].numel()
    dx = torch.addcmul(_over(x, dmean / size), x - _over(x, mean), _over(x, dvar * (2 / size)))
    return dx.addcmul_(dy.to(dx.dtype), _over(x, scale)).to(x.dtype)


def mix(mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored, *settings) -> Mixed:
    *described, replicas = settings
    return definition.mix(
        _algebra(*described), replicas, mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored
    )


def mix_backward(
    dscale,
    dshift,
    mean_NC,
    var_NC,
    scale,
    mu,
    rstd,
    statistics,
    weight,
    bias,
    mean_logits,
    var_logits,
    stored,
    *settings,
) -> Gradients:
    *described, replicas = settings
    mixed = Mixed(scale, scale, mu, rstd, statistics)  # the shift is of no use here
    return definition.mix_backward(
        *(_algebra(*described), replicas, dscale, dshift, mean_NC, var_NC, mixed),
        *(weight, bias, mean_logits, var_logits, stored),
    )


def _algebra(across, widths, mean, var, std, hard, eps) -> Algebra:
    return Algebra(tuple(across), tuple(widths), tuple(mean), tuple(var), std, hard, eps)


def advance(running_W: Tensor, measured_RW: Tensor, weight: float | Tensor, factor: float) -> None:
    """One step of a moving average: running += weight * (factor * mean over R - running). No custom operator."""
    kernel = kernels.direct("advance", running_W)
    if kernel is None or kernel(running_W, measured_RW, weight, factor) is NotImplemented:
        measured_W = (measured_RW.mean(0) * factor).to(running_W.dtype)
        running_W.copy_(running_W.lerp(measured_W, weight))  # torch.vmap has no rule of its own for lerp_


# ---- registration ----------------------------------------------------------------------------------------------------


def _fake_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean_NC = x.new_empty(x.shape[:2], dtype=accumulation_dtype(x))
    return mean_NC, torch.empty_like(mean_NC)


def _fake_mix(mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored, *settings) -> Mixed:
    *described, replicas = settings
    layout = _algebra(*described).layout(replicas, *mean_NC.shape)
    statistics = mean_NC.new_empty(max(var.stop for _, var, _ in layout))
    scale, shift, mu, rstd = (mean_NC.new_empty(mean_NC.shape) for _ in range(4))
    return Mixed(scale, shift, mu, rstd, statistics)


def _fake_mix_backward(
    dscale, dshift, mean_NC, var_NC, scale, mu, rstd, statistics, weight, bias, mean_logits, var_logits, *settings
) -> Gradients:
    empty = [mean_NC.new_empty(0 if t is None else t.shape) for t in (weight, bias, mean_logits, var_logits)]
    return Gradients(mean_NC.new_empty(mean_NC.shape), mean_NC.new_empty(mean_NC.shape), *empty)


def _register(definition: Callable, fake: Callable) -> None:
    name = definition.__name__
    _library.define(name + _SCHEMAS[name])
    _library.impl(name, definition, "CompositeExplicitAutograd")
    torch.library.register_fake(f"normlab::{name}", fake, lib=_library)


_register(moments, _fake_moments)
_register(affine, lambda x, *_: torch.empty_like(x))
_register(sums, lambda dy, x, anchor: (anchor.new_empty(anchor.shape), anchor.new_empty(anchor.shape)))
_register(input_gradient, lambda dy, x, *_: torch.empty_like(x))
_register(mix, _fake_mix)
_register(mix_backward, _fake_mix_backward)
kernels.register(_library, {f.__name__: f for f in (moments, affine, sums, input_gradient, mix, mix_backward)})
