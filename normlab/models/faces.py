"""Residual networks of face verification (Deng et al. 2019, "IR"), as the code of SN has them.

A block normalizes ahead of its first convolution, has 3x3 convolutions and PReLU, and adds its input; the stem keeps
the resolution, and each of four stages halves it. Normalized by torch's batch norm, as every model here (`convert`
swaps it).

Shapes: N images (N, C, H, W); features (N, E); K identities.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from normlab.errors import UserError
from normlab.schema import shown


class Block(nn.Module):
    """norm, 3x3, norm, PReLU, 3x3, norm; then the sum, and the same PReLU once more."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            project = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        inside = self.prelu(self.norm2(self.conv1(self.norm1(x_NCHW))))
        return self.prelu(self.norm3(self.conv2(inside)) + self.downsample(x_NCHW))


class Body(nn.Module):
    """(N, C, H, W) -> maps (N, 8 width, H / 16, W / 16), sizes rounded up, behind a last norm.

    Norm layers: 2, 3 of each block, and 1 of each stage's projection. Raises UserError without a stage.
    """

    def __init__(self, channels: int, layers: Sequence[int], width: int) -> None:
        super().__init__()
        if not layers:
            raise UserError(f"model.layers={shown(layers)}: expected the blocks of a stage or more")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1, self.prelu = nn.BatchNorm2d(width), nn.PReLU()
        before, stages = width, []
        for number, blocks in enumerate(layers):
            after = width * 2**number
            stages.append(nn.Sequential(Block(before, after, 2), *(Block(after, after, 1) for _ in range(blocks - 1))))
            before = after
        self.stages = nn.ModuleList(stages)
        self.norm2 = nn.BatchNorm2d(before)
        self.channels = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                positions = math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / (positions * module.out_channels)))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.prelu(self.norm1(self.conv1(x_NCHW)))
        for stage in self.stages:
            x_NCHW = stage(x_NCHW)
        return self.norm2(x_NCHW)


class Identities(nn.Module):
    """Cosines (N, K) of features (N, E) of unit length with a weight of each identity.

    Never in half precision: cosines near 1 would be off by 1/256, which the loss multiplies by 64.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, features))
        nn.init.uniform_(self.weight, -(features**-0.5), features**-0.5)

    def forward(self, features_NE: Tensor) -> Tensor:
        with torch.autocast(features_NE.device.type, enabled=False):
            return linear(features_NE.to(self.weight.dtype), normalize(self.weight))


class FaceNetwork(nn.Module):
    """In evaluation features (N, E) of unit length; in training their cosines with the identities (N, K).

    Attributes:
        backbone: gives maps.
        output: makes features of them, (N, E).
        embedding: their norm, the last one, which stays BN in all of SN's variants.
        head: knows the identities, and is of use in training alone.
    """

    def __init__(self, backbone: Body, positions: int, features: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        project = nn.Linear(backbone.channels * positions, features)
        nn.init.uniform_(project.weight, -math.sqrt(3 / project.in_features), math.sqrt(3 / project.in_features))
        nn.init.zeros_(project.bias)
        self.output = nn.Sequential(nn.Dropout(dropout), nn.Flatten(), project)
        self.embedding = nn.BatchNorm1d(features)
        self.head = Identities(features, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features_NE = normalize(self.embedding(self.output(self.backbone(x_NCHW))))
        return self.head(features_NE) if self.training else features_NE


def ir(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    layers: Sequence[Annotated[int, Ge(1), Le(2**10)]] = (3, 4, 14, 3),
    width: Annotated[int, Ge(1), Le(2**12)] = 64,
    features: Annotated[int, Ge(1), Le(2**14)] = 512,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.4,
) -> nn.Module:
    """An embedding for faces. shape is (C, H, W) of an image; SN's are 112 x 112 (SN-TPAMI, Sec. 4.4).

    Args:
        layers: blocks of each stage: IR-50 has 3, 4, 14, 3, and 79 norm layers; IR-100 3, 13, 30, 3, and 154.
        width: channels of the first stage.
        features: E.
        dropout: ahead of the layer that makes features.
    """
    channels, *size = shape
    positions = math.prod(-(-side // 2 ** len(layers)) for side in size)
    return FaceNetwork(Body(channels, layers, width), positions, features, num_classes, dropout)


class Classifier(nn.Module):
    """The body of such a network with a mean over positions and logits: what it is pretrained as."""

    def __init__(self, backbone: Body, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.channels, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.fc(self.backbone(x_NCHW).mean((2, 3)))


def ir_classifier(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    layers: Sequence[Annotated[int, Ge(1), Le(2**10)]] = (3, 4, 14, 3),
    width: Annotated[int, Ge(1), Le(2**12)] = 64,
) -> nn.Module:
    """A classifier of images with the body of `ir`, whose names `init` finds there (SN-TPAMI, Sec. 4.4: ImageNet)."""
    return Classifier(Body(shape[0], layers, width), num_classes)
