"""Networks for clips (N, C, T, H, W), made of networks for images: inflated (I3D) or with shifted channels (TSM).

What is made keeps the names of torchvision's ResNets (conv1, layer1.0.conv1, ..., fc), TSM's inside of `network`.
"""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.models import resnet
from normlab.models.library import torchvision_model
from normlab.models.resnet import init_conv

STAGES = ("layer1", "layer2", "layer3", "layer4")
_FOR_SCENES = {"scenes_resnet": resnet.scenes_resnet, "scenes_resnet_deep": resnet.scenes_resnet_deep}


def i3d(
    shape: tuple[int, int, int, int],
    num_classes: int,
    *,
    backbone: str = "resnet50",
    stem: Annotated[int, Ge(1), Le(64)] = 5,
    strides: tuple[Annotated[int, Ge(1), Le(64)], Annotated[int, Ge(1), Le(64)], Annotated[int, Ge(1), Le(64)]] = (
        2,
        2,
        2,
    ),
) -> nn.Module:
    """An inflated ResNet (Carreira and Zisserman 2017), as the non-local networks have it (Wang et al. 2018, Table 1).

    The first convolution of some blocks sees three frames: of all blocks of the first stage, of every second one from
    the first on in the next two, and from the second on in the last. Norms are over (T, H, W) (SN-TPAMI, Sec. 4.5).

    Args:
        shape: (C, T, H, W) of a clip.
        num_classes: of the logits.
        backbone: a ResNet of torchvision, or a small one for digits in scenes.
        stem: frames that the first convolution sees.
        strides: in time, of the first convolution, of the pooling behind it, and of one behind the first stage. With
            less frames than 32 they had (1, 1, 2).

    Raises:
        UserError: the backbone is no ResNet, or the clip has less frames than the strides take.
    """
    model = _resnet(backbone, shape, num_classes)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            seen, stride = (stem, strides[0]) if name == "conv1" else (_frames_of(name), 1)
            model.set_submodule(name, _conv3d(module, seen, stride))
        elif isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.BatchNorm3d(module.num_features))
        elif isinstance(module, nn.MaxPool2d):
            model.set_submodule(name, _pool3d(module, strides[1]))
    model.avgpool = nn.AdaptiveAvgPool3d(1)
    model.layer1.append(nn.MaxPool3d((strides[2], 1, 1)))
    pooled = strides[1] if hasattr(model, "maxpool") else 1
    if (shape[1] - 1) // strides[0] + 1 < pooled * strides[2]:
        raise UserError(f"model.strides={list(strides)}: a clip of {shape[1]} frames has less than they take")
    return model


def tsm(
    shape: tuple[int, int, int, int],
    num_classes: int,
    *,
    backbone: str = "resnet50",
    shift: Annotated[float, Ge(0), Le(0.5)] = 0.125,
    every: Annotated[int, Ge(1), Le(100)] = 1,
) -> nn.Module:
    """A temporal shift module's ResNet (Lin et al. 2019): a network for images that sees all frames as images.

    Ahead of the first convolution of blocks, a part of the channels comes from the next frame and one from the frame
    before. Logits are the mean of those of all frames. Norms pool the frames of a replica as images.

    Args:
        shape: (C, T, H, W) of a clip.
        num_classes: of the logits.
        backbone: as of i3d.
        shift: share of channels that come from each side; 0: no frame knows of another.
        every: which blocks: each one, or every second one (as of ResNet-101).

    Raises:
        UserError: the backbone is no ResNet.
    """
    network = _resnet(backbone, shape, num_classes)
    for stage in STAGES:
        for block in list(getattr(network, stage))[::every]:
            block.conv1 = ShiftedConv2d(block.conv1, shape[1], shift)
    return FrameByFrame(network)


class FrameByFrame(nn.Module):
    """Logits of a clip (N, C, T, H, W): the mean of those of its frames."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        frames = x_NCTHW.shape[2]
        logits = self.network(x_NCTHW.transpose(1, 2).flatten(0, 1))
        return logits.unflatten(0, (-1, frames)).mean(1)


class ShiftedConv2d(nn.Conv2d):
    """A convolution of frames (N*T, C, H, W), of which it shifts channels first."""

    def __init__(self, conv: nn.Conv2d, frames: int, share: float) -> None:
        options: dict[str, Any] = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")}
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, bias=conv.bias is not None, **options)  # type: ignore[arg-type]
        self.load_state_dict(conv.state_dict())
        self.frames, self.moved = frames, int(share * conv.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(shifted(x, self.frames, self.moved) if self.moved else x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, frames={self.frames}, moved={self.moved}"


def shifted(x: Tensor, frames: int, moved: int) -> Tensor:
    """Of rows (N*T, C, ...) the first `moved` channels come from the next frame, as many others from the one before.

    Where there is none they are 0 (Lin et al. 2019, Fig. 1).
    """
    x_NTC = x.unflatten(0, (-1, frames))
    next_one, before, rest = x_NTC[:, :, :moved], x_NTC[:, :, moved : 2 * moved], x_NTC[:, :, 2 * moved :]
    none = torch.zeros_like(next_one[:, :1])
    parts = [torch.cat([next_one[:, 1:], none], 1), torch.cat([none, before[:, :-1]], 1), rest]
    return torch.cat(parts, 2).flatten(0, 1)


def inflated(weight: Tensor, frames: int) -> Tensor:
    """A filter (O, I, H, W) as one of so many frames (O, I, T, H, W), that gives on a still clip what it gave."""
    return weight.unsqueeze(2).expand(-1, -1, frames, -1, -1) / frames


def _resnet(name: str, shape: tuple[int, int, int, int], num_classes: int) -> Any:
    """For the frames of a clip. Raises UserError if it is no ResNet."""
    image = (shape[0], *shape[2:])
    model: Any = (
        _FOR_SCENES[name](image, num_classes)  # type: ignore[operator]
        if name in _FOR_SCENES
        else torchvision_model(image, num_classes, name=name)
    )
    if any(not isinstance(getattr(model, stage, None), nn.Sequential) for stage in STAGES):
        raise UserError(f"model.backbone={name}: expected a ResNet, as resnet50, or one of {', '.join(_FOR_SCENES)}")
    return model


def _frames_of(name: str) -> int:
    """How many a convolution sees: layer2.0.conv1 three."""
    stage, _, rest = name.partition(".")
    block, _, layer = rest.partition(".")
    if layer != "conv1":
        return 1
    number = int(block)
    return 3 if {"layer1": True, "layer4": number % 2 == 1}.get(stage, number % 2 == 0) else 1


def _conv3d(conv: nn.Conv2d, frames: int, stride: int) -> nn.Conv3d:
    made = nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        (frames, *conv.kernel_size),  # type: ignore[arg-type]
        (stride, *conv.stride),  # type: ignore[arg-type]
        (frames // 2, *conv.padding),  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    init_conv(made)  # type: ignore[arg-type]
    return made


def _pool3d(pool: nn.MaxPool2d, stride: int) -> nn.MaxPool3d:
    sides: list[Any] = [(side, side) for side in (pool.kernel_size, pool.stride, pool.padding)]
    return nn.MaxPool3d((stride, *sides[0]), (stride, *sides[1]), (0, *sides[2]))
