"""The networks of HN, Table 3, for images of 32x32 pixels: they halve the resolution three times, not five.

The paper trains them on CIFAR-10 and prints no change of strides. These are the changes that CIFAR variants usually
have: the stem keeps the resolution, and what would halve it next does not, so that the last maps are 4x4, as those of
`resnet_small`. All else is the library's network. shape is (C, H, W) of an image.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from torch import nn


def mobilenetv2_small(
    shape: tuple[int, int, int], num_classes: int, *, width: Literal["x0_35", "x0_5", "x1_0", "x1_4"] = "x1_0"
) -> nn.Module:
    """timm's MobileNetV2, of 0.35, 0.5, 1 or 1.4 times the channels: stem and second stage have stride 1, not 2."""
    import timm

    names = {
        "x0_35": "mobilenetv2_035",
        "x0_5": "mobilenetv2_050",
        "x1_0": "mobilenetv2_100",
        "x1_4": "mobilenetv2_140",
    }
    model: Any = timm.create_model(names[width], in_chans=shape[0], num_classes=num_classes)
    for convolution in (model.conv_stem, model.blocks[1][0].conv_dw):
        convolution.stride = (1, 1)
    return model


def shufflenet_v2_small(
    shape: tuple[int, int, int], num_classes: int, *, width: Literal["x0_5", "x1_0", "x1_5", "x2_0"] = "x1_5"
) -> nn.Module:
    """torchvision's ShuffleNetV2: the stem has stride 1, not 2, and no max-pooling follows."""
    import torchvision

    model = torchvision.models.get_model(f"shufflenet_v2_{width}", num_classes=num_classes)
    model.conv1[0] = nn.Conv2d(shape[0], model.conv1[0].out_channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def densenet_small(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    blocks: Sequence[Annotated[int, Ge(1), Le(2**10)]] = (6, 12, 24, 16),
    growth: Annotated[int, Ge(1), Le(2**10)] = 32,
) -> nn.Module:
    """torchvision's DenseNet (121 layers by default): a 3x3 stem of stride 1 for the 7x7 one, and no max-pooling."""
    import torchvision

    model = torchvision.models.DenseNet(growth, tuple(blocks), 2 * growth, num_classes=num_classes)
    features = model.features
    features.conv0 = nn.Conv2d(shape[0], 2 * growth, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(features.conv0.weight)  # as the library's convolutions
    features.pool0 = nn.Identity()
    return model
