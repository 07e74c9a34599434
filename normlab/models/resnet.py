"""Residual networks for small images, built with torch's batch norm like every model here (`convert` swaps it).

Modules carry torchvision's names: conv1, bn1, layer1.0.conv1, layer1.0.downsample, ..., fc.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from normlab.errors import UserError

Shortcut = Literal["projection", "pad"]


class PadShortcut(nn.Module):
    """Option A of He et al. 2016, Sec. 4.1: every stride-th pixel, new channels zero. No parameters, no norm."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x_NCHW, (0, 0, 0, 0, 0, self.new_channels))


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, Fig. 2)."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            project = shortcut == "projection"
            self.downsample = (
                _projection(in_channels, channels, stride) if project else PadShortcut(channels - in_channels, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(residual + (x if self.downsample is None else self.downsample(x)))


class GroupedBottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions and a shortcut (Xie et al. 2017, Fig. 3c); inside, half the channels."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        inside = channels // 2
        self.conv1 = nn.Conv2d(in_channels, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        residual = self.bn3(self.conv3(residual))
        return self.relu(residual + (x if self.downsample is None else self.downsample(x)))


class Block(Protocol):
    """What makes a block of a stage."""

    def __call__(self, in_channels: int, channels: int, stride: int) -> nn.Module: ...


class SmallResNet(nn.Module):
    """A 3x3 stem and a stage of blocks for each width; all stages but the first halve the resolution.

    (N, C, H, W) -> logits (N, num_classes). Convolutions start from He's normal, by fan-out. With stem_stride 2 the
    stem halves the resolution too.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int],
        blocks: int,
        block: Block,
        *,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)

        def stage(in_width: int, width: int, stride: int) -> nn.Sequential:
            return nn.Sequential(block(in_width, width, stride), *(block(width, width, 1) for _ in range(blocks - 1)))

        self.stages = []
        for k, (in_width, width) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True), start=1):
            self.stages.append(f"layer{k}")
            self.add_module(self.stages[-1], stage(in_width, width, stride=1 if k == 1 else 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def init_conv(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def digits_resnet(
    shape: tuple[int, int, int], num_classes: int, *, width: Annotated[int, Ge(1), Le(2**16)] = 16
) -> nn.Module:
    """The default network: one basic block per stage, of `width`, 2 and 4 times `width` channels, projections.

    For images of 8 x 8 pixels; 9 norm layers. shape is (C, H, W) of an image.
    """
    return _of_basic_blocks(shape[0], num_classes, width, blocks=1)


def digits_resnet_deep(
    shape: tuple[int, int, int], num_classes: int, *, width: Annotated[int, Ge(1), Le(2**16)] = 16
) -> nn.Module:
    """digits_resnet with two blocks per stage: 15 norm layers. Beside it, as ResNet-101 beside ResNet-50."""
    return _of_basic_blocks(shape[0], num_classes, width, blocks=2)


def _of_basic_blocks(in_channels: int, num_classes: int, width: int, blocks: int) -> nn.Module:
    block = partial(BasicBlock, shortcut="projection")
    return SmallResNet(in_channels, num_classes, (width, 2 * width, 4 * width), blocks, block)


def scenes_resnet(
    shape: tuple[int, int, int], num_classes: int, *, width: Annotated[int, Ge(1), Le(2**16)] = 16
) -> nn.Module:
    """For digits in scenes: one basic block in each of four stages, of 1, 2, 3 and 4 times `width` channels.

    Stem and stages reduce the resolution to a sixteenth; 12 norm layers. shape is (C, H, W) of an image.
    """
    return _for_scenes(shape, num_classes, width, 1, partial(BasicBlock, shortcut="projection"))


def scenes_resnet_deep(
    shape: tuple[int, int, int], num_classes: int, *, width: Annotated[int, Ge(1), Le(2**16)] = 16
) -> nn.Module:
    """scenes_resnet with two blocks per stage: 20 norm layers. Beside it, as ResNet-101 beside ResNet-50."""
    return _for_scenes(shape, num_classes, width, 2, partial(BasicBlock, shortcut="projection"))


def scenes_resnext(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: Annotated[int, Ge(1), Le(2**16)] = 16,
    blocks: Annotated[int, Ge(1), Le(2**10)] = 1,
    groups: Annotated[int, Ge(1)] = 4,
) -> nn.Module:
    """scenes_resnet of bottlenecks with `groups` groups: 16 norm layers, or 28 with two blocks per stage.

    Raises UserError if the groups do not divide the channels inside its first bottleneck, half of the width.
    """
    if width % (2 * groups):
        raise UserError(f"model.groups={groups} does not divide half of model.width={width}")
    return _for_scenes(shape, num_classes, width, blocks, partial(GroupedBottleneck, groups=groups))


def _for_scenes(shape: tuple[int, int, int], num_classes: int, width: int, blocks: int, block: Block) -> nn.Module:
    return SmallResNet(shape[0], num_classes, [width * k for k in (1, 2, 3, 4)], blocks, block, stem_stride=2)


def digits_resnext(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: Annotated[int, Ge(1), Le(2**16)] = 16,
    blocks: Annotated[int, Ge(1), Le(2**10)] = 1,
    groups: Annotated[int, Ge(1)] = 8,
) -> nn.Module:
    """A small ResNeXt: `blocks` bottlenecks with `groups` groups per stage, of 2, 4 and 8 times `width` channels.

    For images of 8 x 8 pixels; 12 norm layers, or 21 with two blocks. shape is (C, H, W) of an image. Raises UserError
    if the groups do not divide the width.
    """
    if width % groups:
        raise UserError(f"model.groups={groups} does not divide model.width={width}")
    block = partial(GroupedBottleneck, groups=groups)
    return SmallResNet(shape[0], num_classes, (2 * width, 4 * width, 8 * width), blocks, block)


def resnet_cifar(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: Annotated[int, Ge(8), Le(2**12)] = 20,
    shortcut: Literal["projection", "pad"] = "pad",
) -> nn.Module:
    """The CIFAR network of He et al. 2016, Sec. 4.2: 6n + 2 layers, widths 16, 32, 64.

    shape is (C, H, W) of an image. Raises UserError if depth is not 6n + 2.
    """
    if depth < 8 or depth % 6 != 2:
        raise UserError(
            f"model.depth={depth} is not 6n + 2; allowed: 8, 14, 20, 32, 44, 56, 110, ..., nearest: "
            f"{max(8, 6 * round((depth - 2) / 6) + 2)}"
        )
    block = partial(BasicBlock, shortcut=shortcut)
    return SmallResNet(shape[0], num_classes, (16, 32, 64), (depth - 2) // 6, block)


def resnet_small(shape: tuple[int, int, int], num_classes: int, *, depth: Literal[18, 34, 50] = 18) -> nn.Module:
    """torchvision's ResNet for small images: its stem becomes a 3x3 convolution of stride 1 without max-pooling.

    shape is (C, H, W) of an image. Raises UserError for another depth.
    """
    import torchvision

    builders = {18: torchvision.models.resnet18, 34: torchvision.models.resnet34, 50: torchvision.models.resnet50}
    if depth not in builders:
        raise UserError(
            f"model.depth={depth} does not exist; allowed: 18, 34, 50, "
            f"nearest: {min(builders, key=lambda valid: abs(valid - depth))}"
        )
    model = builders[depth](num_classes=num_classes)
    model.conv1 = nn.Conv2d(shape[0], model.conv1.out_channels, 3, padding=1, bias=False)
    init_conv(model.conv1)
    model.maxpool = nn.Identity()
    return model
