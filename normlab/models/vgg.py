"""VGG-16 up to relu4_3, whose features perceptual losses compare, and a small classifier of its layers."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

RELUS = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22}  # place among torchvision's `features`
_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3))  # channels as multiples of the first, convolutions


def vgg_features(in_channels: int, width: int) -> nn.Sequential:
    """VGG-16's first ten convolutions, of 1, 2, 4 and 8 times `width` channels (VGG-16: 64), named as torchvision's.

    Four stages, with a pooling between two.
    """
    layers: list[nn.Module] = []
    before = in_channels
    for number, (multiple, convolutions) in enumerate(_STAGES):
        layers += [nn.MaxPool2d(2)] if number else []
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, multiple * width, 3, padding=1), nn.ReLU()]
            before = multiple * width
    return nn.Sequential(*layers)


class SmallVGG(nn.Module):
    """`vgg_features` with a linear classifier on their mean over positions."""

    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.features = vgg_features(in_channels, width)
        self.classifier = nn.Linear(_STAGES[-1][0] * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x_NCHW).mean((2, 3)), 1))


def scenes_vgg(
    shape: tuple[int, int, int], num_classes: int, *, width: Annotated[int, Ge(1), Le(2**10)] = 16
) -> nn.Module:
    """For digits in scenes: VGG-16's first ten convolutions at a quarter of its channels, without a norm.

    shape is (C, H, W) of an image.
    """
    return SmallVGG(shape[0], num_classes, width)
