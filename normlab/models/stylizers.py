"""Networks that make an image of another: the transformation network of Johnson et al. 2016, in both of its codes.

Pixels in, pixels out, (N, 3, H, W) from 0 to 255 in RGB. Normalized by torch's batch norm, as every model here
(`convert` swaps it).
"""

from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from normlab.errors import UserError

MEAN = (123.68, 116.779, 103.939)  # of ImageNet's pixels, as Caffe's VGG has it
STEP = 4  # pixels: sides are halved twice and doubled twice


class Residual(nn.Module):
    """3x3, norm, ReLU, 3x3, norm; then the sum. Without padding the input loses what the convolutions do."""

    def __init__(self, channels: int, *, padded: bool) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, channels, channels, 3, padding=int(padded), padding_mode=_mode(padded))
        self.conv1, self.norm1, self.relu = conv(), nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2, self.norm2 = conv(), nn.BatchNorm2d(channels)
        self.lost = 0 if padded else 2

    def forward(self, x_NCHW: Tensor) -> Tensor:
        inside = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x_NCHW)))))
        kept = slice(self.lost, -self.lost or None)
        return inside + x_NCHW[:, :, kept, kept]


class Stylizer(nn.Module):
    """9x9, two strided convolutions, residual blocks, two that enlarge, 9x9: a norm behind each but the last.

    Attributes:
        encoder, blocks, decoder: the norm layers are in these; `blocks` has two in each.
        output: the last convolution, which no norm follows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int, blocks: int, code: str, scale: float | None
    ) -> None:
        super().__init__()
        johnson = code == "johnson"
        narrow, middle, wide = width, 2 * width, 4 * width
        conv = partial(nn.Conv2d, padding_mode=_mode(not johnson))
        self.encoder = nn.Sequential(
            *_normed(conv(in_channels, narrow, 9, padding=4), narrow),
            *_normed(conv(narrow, middle, 3, 2, padding=1), middle),
            *_normed(conv(middle, wide, 3, 2, padding=1), wide),
        )
        # What blocks without padding take from the maps is added around the image, in its own pixels.
        self.start = nn.ReflectionPad2d(2 * STEP * blocks) if johnson else nn.Identity()
        self.blocks = nn.Sequential(*(Residual(wide, padded=not johnson) for _ in range(blocks)))
        self.decoder = nn.Sequential(*_enlarged(wide, middle, johnson), *_enlarged(middle, narrow, johnson))
        self.output = conv(narrow, out_channels, 9, padding=4)
        self.scale = scale
        self.mean_311: Tensor
        self.register_buffer("mean_311", torch.tensor(MEAN).view(3, 1, 1), persistent=False)

    def forward(self, x_N3HW: Tensor) -> Tensor:
        y_N3HW = self.output(self.decoder(self.blocks(self.encoder(self.start(x_N3HW - self.mean_311)))))
        if self.scale is not None:
            y_N3HW = self.scale * torch.tanh(y_N3HW)
        return y_N3HW + self.mean_311


def stylizer(
    shape: tuple[int, int, int],
    out_channels: int,
    *,
    width: Annotated[int, Ge(1), Le(2**12)] = 32,
    blocks: Annotated[int, Ge(1), Le(2**8)] = 5,
    code: Literal["johnson", "torch"] = "johnson",
    scale: Annotated[float, Gt(0)] | None = 150.0,
) -> nn.Module:
    """3 norm layers, 2 of each block, and 2: 15. shape is (C, H, W) of an image.

    Args:
        width: channels of the first maps; there are 2 and 4 times as many behind the strides.
        blocks: residual ones.
        code: johnson pads the image once, by reflection, has blocks without padding, and enlarges by strided
            convolutions; torch pads by reflection at each convolution, and enlarges to the nearest pixels.
        scale: pixels are this times tanh, around the mean of ImageNet's (Johnson's code: 150); null: as they come (the
            PyTorch examples).

    Raises:
        UserError: images are none of colours, have sides that cannot be halved twice, or are smaller than the padding.
    """
    channels, height, width_of = shape
    if channels != len(MEAN) or height % STEP or width_of % STEP:
        raise UserError(
            f"task=stylization: images of {channels} x {height} x {width_of}; expected 3 channels and sides that are a "
            f"multiple of {STEP}"
        )
    if code == "johnson" and min(height, width_of) <= 2 * STEP * blocks:
        raise UserError(
            f"model.blocks={blocks}: {2 * STEP * blocks} pixels are reflected at each side of an image, and these have "
            f"{min(height, width_of)}; expected fewer blocks, larger images, or model.code=torch"
        )
    return Stylizer(channels, out_channels, width, blocks, code, scale)


def _normed(conv: nn.Module, channels: int) -> tuple[nn.Module, ...]:
    return conv, nn.BatchNorm2d(channels), nn.ReLU()


def _enlarged(in_channels: int, channels: int, johnson: bool) -> tuple[nn.Module, ...]:
    """Twice the size."""
    if johnson:
        return _normed(nn.ConvTranspose2d(in_channels, channels, 3, 2, padding=1, output_padding=1), channels)
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, padding_mode="reflect")
    return nn.Upsample(scale_factor=2, mode="nearest"), *_normed(conv, channels)


def _mode(reflects: bool) -> Literal["reflect", "zeros"]:
    return "reflect" if reflects else "zeros"
