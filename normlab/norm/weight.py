"""The second axis: how the weights of a convolution are reparametrized, whatever normalizes its output.

Each function here parametrizes one convolution in place with torch.nn.utils.parametrize: the optimizer sees the
stored weight, the forward pass sees its function. `convert` applies it to every convolution of a model.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from normlab.errors import UserError

# Not the transposed ones: with groups, no axis of their weight is a fan-in; and no paper here has them.
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class WeightStandardization(nn.Module):
    """Each output channel's filter with zero mean and unit standard deviation over its fan-in I (WS, Eq. 2-6).

        centred_OI = weight_OI - mean_I(weight_OI)                       Eq. 5, unless center=False
        result_OI  = centred_OI / (sqrt(mean_I(centred_OI^2)) + eps)     Eq. 6, unless divide=False
        result_OI  = gain_O * result_OI + shift_O                        if affine ("AF" in Table 2)

    The standard deviation is biased and eps stands outside its root, as the paper prints them. Without centring, what
    divides is the root mean square of the filter itself ("DO" in Table 2). The released code divides by I - 1
    (`correction=1`). Constant filters, which centring leaves at zero, have finite gradients.

    Shapes: weight (O, fan-in axes...) -> the same; `gain` and `shift` (O, 1, ...), present if affine.
    """

    def __init__(
        self, weight: Tensor, *, center: bool, divide: bool, affine: bool, eps: float, correction: int = 0
    ) -> None:
        super().__init__()
        self.center, self.divide, self.correction, self.eps = center, divide, correction, eps
        self.fan_in_axes = tuple(range(1, weight.ndim))
        if affine:
            channels = weight.new_ones(len(weight), *(1 for _ in self.fan_in_axes))
            self.gain = nn.Parameter(channels)
            self.shift = nn.Parameter(torch.zeros_like(channels))
        self.affine = affine

    def forward(self, weight: Tensor) -> Tensor:
        if self.center:
            weight = weight - weight.mean(self.fan_in_axes, keepdim=True)
        if self.divide:
            fan_in = weight[0].numel()
            # a norm's gradient at zero is zero in torch, where a square root's would not be finite
            norm = torch.linalg.vector_norm(weight, dim=self.fan_in_axes, keepdim=True)
            std = norm / max(fan_in - self.correction, 1) ** 0.5
            weight = weight / (std + self.eps)
        return self.gain * weight + self.shift if self.affine else weight

    def extra_repr(self) -> str:
        settings = f"center={self.center}, divide={self.divide}, affine={self.affine}, eps={self.eps:g}"
        return settings + ", official" * self.correction


def weight_standardization(
    conv: Convolution,
    *,
    center: bool = True,
    divide: bool = True,
    affine: bool = False,
    profile: Literal["paper", "official"] = "paper",
    eps: Annotated[float, Gt(0)] = 1e-5,
) -> None:
    """Standardize the weight of `conv`, in place; see `WeightStandardization`.

    Args:
        conv: the convolution.
        center, divide: Eq. 5 and Eq. 6.
        affine: learn a gain and a shift per filter.
        profile: paper, or official: the unbiased standard deviation of the released code (docs/deviations.md).
        eps: added to the standard deviation.

    Raises UserError where centring would leave nothing: a fan-in of one weight per output channel.
    """
    weight = conv.weight
    if center and weight[0].numel() == 1:
        raise UserError(
            f"weight standardization cannot centre a fan-in of 1, which would leave zero: {conv}; use weight=ws_div"
        )
    standardization = WeightStandardization(
        weight, center=center, divide=divide, affine=affine, eps=eps, correction=int(profile == "official")
    )
    parametrize.register_parametrization(conv, "weight", standardization)


def weight_normalization(conv: Convolution) -> None:
    """Write the weight of `conv` as a length times a direction per output channel (WS's baseline WN), in place.

    torch's own: `original0` (O, 1, ...) is the length, `original1` the direction; the weight itself does not change.
    """
    parametrizations.weight_norm(conv, "weight", dim=0)
