"""How much Weight Standardization takes from the gradients of its weights: what is written to gradients.jsonl.

With W a stored filter of I weights, S its standardized form and g the gradient of S, WS (Eqs. 11 to 15) splits

    ||g||^2 = sigma_W^2 ||grad_W||^2  +  <S, g>^2 / I  +  <1, g>^2 / I
              remaining                  division        centring
                                         (Eqs. 6, 8)     (Eqs. 5, 9)

A record is {"step": 300, "epoch": 3.0, "layers": [row, ...]}; a row has layer (module name of the convolution), index
(from 1), and remaining, division and centring: shares of ||g||^2, averaged over the filters, which sum to 1.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlab.norm.weight import WeightStandardization

Row = dict[str, Any]


@torch.no_grad()
def terms(standardized_OI: Tensor, gradient_OI: Tensor) -> dict[str, Tensor]:
    """remaining, division and centring of each filter, (O,) each; they sum to ||g||^2.

    Exact where the filters have mean 0 and mean square 1, that is but for the epsilon of the division.

    Args:
        standardized_OI: filters (O, fan-in axes...), as Eqs. 5 and 6 give them.
        gradient_OI: of the loss by these, same shape.
    """
    S_OI, g_OI = standardized_OI.flatten(1), gradient_OI.flatten(1)
    fan_in = S_OI.shape[1]
    division_O = (S_OI * g_OI).sum(1).square() / fan_in
    centring_O = g_OI.sum(1).square() / fan_in
    remaining_O = g_OI.square().sum(1) - division_O - centring_O
    return {"remaining": remaining_O, "division": division_O, "centring": centring_O}


def shares(standardized_OI: Tensor, gradient_OI: Tensor) -> dict[str, float]:
    """The terms as shares of ||g||^2, averaged over the filters whose gradient is not zero; one must be."""
    total_O = gradient_OI.flatten(1).square().sum(1)
    used = total_O > 0
    found = terms(standardized_OI, gradient_OI)
    return {name: (term_O[used] / total_O[used]).double().mean().item() for name, term_O in found.items()}


@dataclass
class Observed:
    """A standardized convolution in a step: its place from 1, its weight, and the gradient by that, of all passes."""

    index: int
    standardized_OI: Tensor
    gradient_OI: Tensor


@contextmanager
def observed(model: nn.Module) -> Iterator[dict[str, Observed]]:
    """While it lasts, backward passes leave their gradients: module name -> what was observed, in no certain order.

    Convolutions count whose weights are centred and divided, without a gain (weight=ws). The gradients of several
    passes are summed, as those of one step are; on several ranks each has the sum over its own replicas.
    """
    found: dict[str, Observed] = {}
    handles = [
        standardization.register_forward_hook(_look(found, index, name))
        for index, (name, standardization) in enumerate(_standardizations(model), start=1)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def rows(found: Mapping[str, Observed]) -> list[Row]:
    """One for each convolution in model order; none for one without a gradient, or with one that is not finite."""
    return [
        {"layer": name, "index": seen.index} | shares(seen.standardized_OI, seen.gradient_OI)
        for name, seen in sorted(found.items(), key=lambda item: item[1].index)
        if seen.gradient_OI.any() and seen.gradient_OI.isfinite().all()
    ]


def _look(found: dict[str, Observed], index: int, name: str) -> Any:
    def after_forward(module: nn.Module, inputs: tuple[Tensor, ...], standardized: Tensor) -> None:
        weight = standardized.detach()

        def after_backward(gradient: Tensor) -> None:
            before = found[name].gradient_OI if name in found else torch.zeros_like(gradient)
            found[name] = Observed(index, weight, before + gradient)

        if standardized.requires_grad:
            standardized.register_hook(after_backward)

    return after_forward


def _standardizations(model: nn.Module) -> Iterator[tuple[str, WeightStandardization]]:
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            for step in module.parametrizations.weight:  # type: ignore[union-attr]
                if (
                    isinstance(step, WeightStandardization)
                    and step.center
                    and step.divide
                    and not hasattr(step, "gain")
                ):
                    yield name, step
