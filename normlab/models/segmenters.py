"""Networks that give each pixel a class: a dilated residual network, a decoder on its last maps, a head beside it.

All are built with torch's batch norm, as every model here (`convert` swaps it), and carry torchvision's names inside
`backbone`, so that `init` finds a classifier's weights there. shape is (C, H, W) of an image.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor, nn
from torch.nn.functional import interpolate

from normlab.errors import UserError
from normlab.models.library import torchvision_model
from normlab.models.resnet import BasicBlock, SmallResNet, init_conv
from normlab.schema import shown


class Segmenter(nn.Module):
    """(N, C, H, W) -> logits (N, K, h, w), of a position every `stride` pixels.

    In training a pair, if there is an auxiliary head: its logits come second.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module, auxiliary: nn.Module | None = None) -> None:
        """
        Args:
            backbone: gives maps called last, and before if there is an auxiliary head.
            decoder, auxiliary: make logits of these.
        """
        super().__init__()
        self.backbone, self.decoder, self.auxiliary = backbone, decoder, auxiliary

    def forward(self, x_NCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.backbone(x_NCHW)
        logits = self.decoder(maps["last"])
        if self.auxiliary is None or not self.training:
            return logits
        return logits, self.auxiliary(maps["before"])


def convolutional_head(in_channels: int, channels: int, num_classes: int, dropout: float = 0.0) -> nn.Sequential:
    """3x3 convolution, norm, ReLU, then a score for each class: SN's "DeepLab" has no other decoder."""
    drop = [nn.Dropout2d(dropout)] if dropout else []
    return nn.Sequential(*_conv_norm_relu(in_channels, channels, 3), *drop, nn.Conv2d(channels, num_classes, 1))


class PyramidPooling(nn.Module):
    """The maps beside their means over 1, 4, 9 and 36 bins, each brought to `channels` (Zhao et al. 2017, Fig. 3).

    The mean over a single bin is a 1x1 map: IN alone has no variance there, nor has BN of a single sample.
    """

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), *_conv_norm_relu(in_channels, channels, 1)) for side in bins
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        size = x_NCHW.shape[-2:]
        levels = [interpolate(level(x_NCHW), size, mode="bilinear", align_corners=False) for level in self.levels]
        return torch.cat([x_NCHW, *levels], 1)


def scenes_segmenter(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: Annotated[int, Ge(1), Le(2**16)] = 16,
    pyramid: bool = False,
) -> nn.Module:
    """scenes_resnet whose last two stages keep the resolution at rates 2 and 4, with SN's two heads; 14 norm layers.

    With a pyramid of pooling ahead of the decoder, as in PSPNet, 18. A position of the logits stands for 4 x 4 pixels.
    """
    last, before = 4 * width, 3 * width
    backbone = SmallResNet(
        shape[0],
        num_classes,
        [width, 2 * width, before, last],
        1,
        partial(BasicBlock, shortcut="projection"),
        stem_stride=2,
    )
    for layer, rate in (("layer3", 2), ("layer4", 4)):
        block = backbone.get_submodule(layer)[0]  # type: ignore[index]
        _keep_resolution(block, rate // 2)
        _set_rate(block.conv2, rate)
    pooling = [PyramidPooling(last, width)] if pyramid else []
    decoder = nn.Sequential(*pooling, *convolutional_head(2 * last if pyramid else last, 2 * width, num_classes))
    auxiliary = convolutional_head(before, 2 * width, num_classes)
    for conv in (m for head in (decoder, auxiliary) for m in head.modules() if isinstance(m, nn.Conv2d)):
        if conv.bias is None:
            init_conv(conv)
    return Segmenter(_maps(backbone), decoder, auxiliary)


def dilated_deeplab(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    backbone: str = "resnet50",
    stride: Literal[8, 16] = 8,
    auxiliary: bool = True,
) -> nn.Module:
    """What SN and SN-TPAMI call DeepLab: rates 2 and 4 in the last two stages, and a convolutional head (SN-TPAMI,
    Sec. 4.3.1). In the released code it has no atrous pyramid, and a second head on the stage before, as this one.
    """
    body, channels = _dilated(shape, backbone, stride)
    heads = [convolutional_head(channels // k, channels // 4, num_classes) for k in ((1, 2) if auxiliary else (1,))]
    return Segmenter(_maps(body), *heads)


def pspnet(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    backbone: str = "resnet50",
    stride: Literal[8, 16] = 8,
    bins: Sequence[Annotated[int, Ge(1), Le(2**10)]] = (1, 2, 3, 6),
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    auxiliary: bool = True,
) -> nn.Module:
    """PSPNet (Zhao et al. 2017), which SN-TPAMI, Table 8 has with ResNet-50; 59 norm layers with it."""
    body, channels = _dilated(shape, backbone, stride)
    pooled = channels + len(bins) * (channels // 4)
    head = convolutional_head(pooled, channels // 4, num_classes, dropout)
    decoder = nn.Sequential(PyramidPooling(channels, channels // 4, bins), *head)
    aux = convolutional_head(channels // 2, channels // 4, num_classes, dropout) if auxiliary else None
    return Segmenter(_maps(body), decoder, aux)


def deeplabv3(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    backbone: str = "resnet101",
    stride: Literal[8, 16] = 16,
    rates: Sequence[Annotated[int, Ge(1), Le(2**10)]] = (6, 12, 18),
    multi_grid: Sequence[Annotated[int, Ge(1), Le(2**10)]] = (1, 1, 1),
    fuse: bool = False,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    auxiliary: bool = False,
) -> nn.Module:
    """DeepLabv3 (Chen et al. 2017) with an atrous pyramid of torchvision's.

    The defaults are Weight Standardization's network (its Sec. 3.4): stride 16, no multi-grid, no second head, 110 norm
    layers. torchvision's own is stride=8 rates=[12,24,36] fuse=true dropout=0.5 auxiliary=true.

    Args:
        backbone: a ResNet or ResNeXt of torchvision, of bottlenecks.
        stride: pixels from one position of the logits to the next.
        rates: of the pyramid's three 3x3 convolutions.
        multi_grid: what the rate of each block of the last stage is multiplied with.
        fuse: a 3x3 convolution behind the pyramid.
        dropout: behind the pyramid.
        auxiliary: a second head, on the stage before.
    """
    from torchvision.models.segmentation.deeplabv3 import ASPP
    from torchvision.models.segmentation.fcn import FCNHead

    body, channels = _dilated(shape, backbone, stride)
    if set(multi_grid) != {1}:
        blocks = list(body.layer4)
        base = 32 // stride
        if len(blocks) != len(multi_grid):
            raise UserError(
                f"model.multi_grid={shown(multi_grid)}: expected a factor for each of the {len(blocks)} blocks"
            )
        for block, factor in zip(blocks, multi_grid, strict=True):
            _set_rate(block.conv2, base * factor)
    pyramid = ASPP(channels, list(rates))
    pyramid.project[-1] = nn.Dropout(dropout)
    behind = _conv_norm_relu(256, 256, 3) if fuse else []
    decoder = nn.Sequential(pyramid, *behind, nn.Conv2d(256, num_classes, 1))
    return Segmenter(_maps(body), decoder, FCNHead(channels // 2, num_classes) if auxiliary else None)


def _conv_norm_relu(in_channels: int, channels: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _dilated(shape: tuple[int, int, int], name: str, stride: int) -> tuple[Any, int]:
    """A network of torchvision whose last stages keep the resolution, and its channels. Raises UserError."""
    from torchvision.models import ResNet
    from torchvision.models.resnet import Bottleneck

    body: Any = torchvision_model(shape, 2, name=name)
    if not isinstance(body, ResNet) or not isinstance(body.layer4[0], Bottleneck):
        raise UserError(f"model.backbone={name}: expected a ResNet or ResNeXt of bottlenecks, as resnet50")
    rate = 1
    for layer in (body.layer3, body.layer4)[-2 if stride == 8 else -1 :]:
        _keep_resolution(layer[0], rate)  # as in DeepLab: what sees no further than before
        rate *= 2
        for block in layer[1:]:
            _set_rate(block.conv2, rate)
    return body, body.fc.in_features


def _keep_resolution(block: Any, rate: int) -> None:
    """Take its stride out of a block; its strided 3x3 convolution works at this rate then."""
    for conv in block.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride != (1, 1):
            conv.stride = (1, 1)
            if conv.kernel_size != (1, 1):
                _set_rate(conv, rate)


def _set_rate(conv: nn.Conv2d, rate: int) -> None:
    conv.dilation = conv.padding = (rate, rate)


def _maps(body: nn.Module) -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter  # what torchvision's own segmentation builds on

    return IntermediateLayerGetter(body, {"layer3": "before", "layer4": "last"})
