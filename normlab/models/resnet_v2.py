"""Pre-activation residual networks as the authors of SN released them, built with torch's batch norm.

Modules carry torchvision's names: conv1, bn1, layer1.0.bn1, layer1.0.conv1, layer1.0.downsample, ..., bn_out, fc.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from normlab.errors import UserError

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_EXPANSION = 4


class PreactivationBottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 convolutions, each behind its norm and ReLU (He et al. 2016, identity mappings).

    A shortcut that changes the shape starts behind the first ReLU and has no norm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = _EXPANSION * channels
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        residual = self.conv3(self.relu(self.bn3(self.conv2(self.relu(self.bn2(self.conv1(active)))))))
        return residual + (x if self.downsample is None else self.downsample(active))


class ResNetV2(nn.Module):
    """A normalized 7x7 stem with max-pooling, four stages of bottlenecks, and a last norm before the pooling.

    (N, C, H, W) -> logits (N, num_classes). Convolutions start from He's normal, by fan-out.
    """

    def __init__(self, in_channels: int, num_classes: int, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width, stages = 64, []
        for stage, blocks in enumerate(_BLOCKS[depth]):
            channels, layers = 64 * 2**stage, nn.Sequential()
            for block in range(blocks):
                layers.append(PreactivationBottleneck(width, channels, 2 if stage and not block else 1))
                width = _EXPANSION * channels
            stages.append(layers)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn_out = nn.BatchNorm2d(width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(self.relu(self.bn_out(x))), 1))


def resnet_v2(shape: tuple[int, int, int], num_classes: int, *, depth: Literal[50, 101, 152] = 50) -> nn.Module:
    """The authors' pre-activation ResNet of so many layers; shape is (C, H, W) of an image.

    Raises UserError for another depth.
    """
    if depth not in _BLOCKS:
        raise UserError(f"model.depth={depth} does not exist; allowed: {', '.join(map(str, _BLOCKS))}")
    return ResNetV2(shape[0], num_classes, depth)
