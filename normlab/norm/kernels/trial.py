"""Kernels against their definitions on small tensors, before a device's first real ones.

    fault(kernels, definitions, device)    None, or what is wrong, in a line

A kernel that compiles can still be wrong on hardware that nobody has run it on. Two layouts and two types, shapes whose
sums are cut into chunks that a second launch joins, and a mixture of every kind of scope: some milliseconds, and with
Triton some seconds once, for its compiler. They are too small for threads of their own, which no fork would survive.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from normlab.norm.algebra import Algebra

_Operations = Mapping[str, Callable[..., Any]]
_ROUNDINGS = 64  # of the type, relative to the largest value: what sums of these sizes may be off by
_MIXTURE = Algebra(
    across=(False, False, False, True, True),  # in, ln, gn, bn, en
    widths=(16, 1, 4, 16, 4),
    mean=(0, 1, 2, 3, 4),
    var=(0, 1, 2, 3, 4),
    std=False,
    hard=False,
    eps=1e-5,
)


@torch.no_grad()
def fault(kernels: _Operations, definitions: _Operations, device: torch.device) -> str | None:
    """The first kernel that fails, or differs from its definition in float64 by more than rounding; None: all agree."""
    for name, args, dtype in _cases(definitions):
        if name not in kernels:
            continue
        try:
            found = _tuple(kernels[name](*_map(args, lambda t: t.to(device))))
            off = list(map(_distance, found, _tuple(definitions[name](*_map(args, Tensor.double)))))
        except Exception as error:  # whatever compilers and drivers raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            return f"{name} fails here: {reason[:200]}"
        for share in off:
            if not share <= _ROUNDINGS * torch.finfo(dtype).eps:  # NaN is neither
                return f"{name} differs from its definition by {share:.1g} of the largest value"
    return None


def _cases(definitions: _Operations) -> Iterator[tuple[str, tuple[Any, ...], torch.dtype]]:
    """Operations, the arguments that each is tried with, and the type that it rounds to."""
    draw = torch.Generator("cpu").manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float32, device="cpu")

    for dtype, shape, last in ((torch.float32, (1, 3, 100, 90), False), (torch.bfloat16, (2, 16, 30, 30), True)):
        layout = torch.channels_last if last else torch.contiguous_format
        x, dy = ((values(*shape) + 1).to(dtype).contiguous(memory_format=layout) for _ in range(2))
        anchor, *rows = (values(*shape[:2]) for _ in range(4))
        yield "moments", (x,), torch.float32
        yield "affine", (x, anchor, *rows[:2]), dtype
        yield "sums", (dy, x, anchor), torch.float32
        yield "input_gradient", (dy, x, anchor, *rows), dtype
    C, settings = _MIXTURE.widths[0], (*_MIXTURE, 2)
    mean, dscale, dshift = (values(6, C) for _ in range(3))
    var = values(6, C).square() + 0.1
    parameters = (values(C), values(C), values(5), values(5))
    yield "mix", (mean, var, *parameters, None, *settings), torch.float32
    scale, _, *kept = definitions["mix"](mean, var, *parameters, None, *settings)
    yield "mix_backward", (dscale, dshift, mean, var, scale, *kept, *parameters, False, *settings), torch.float32


def _map(args: tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> list[Any]:
    return [change(arg) if isinstance(arg, Tensor) else arg for arg in args]


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _distance(found: Tensor, exact: Tensor) -> float:
    """The largest difference, as a share of the largest exact value."""
    return ((found.cpu().double() - exact).abs().max() / exact.abs().max()).item()
