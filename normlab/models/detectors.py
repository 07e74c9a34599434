"""Two-stage detectors of torchvision's parts: its anchors, RPN, RoIAlign, heads and losses, and its names.

    backbone.body    a ResNet without its classifier; with C4 (Ren et al. 2015) without its last stage too
    backbone.fpn     the pyramid (Lin et al. 2017)
    rpn              proposals; it has no norm
    roi_heads        box_head and box_predictor; mask_head and mask_predictor (He et al. 2017)

All norms are torch's batch norm, as in every model here (`convert` swaps them). What is built around the backbone has
another convolution with a norm than without, so its parts that get one must be known. shape is (C, H, W) of an image.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.models import resnet
from normlab.models.library import timm_model, torchvision_model
from normlab.schema import shown

STAGES = ("layer1", "layer2", "layer3", "layer4")
_FOR_SCENES: dict[str, Callable[..., nn.Module]] = {  # small ones
    "scenes_resnet": resnet.scenes_resnet,
    "scenes_resnet_deep": resnet.scenes_resnet_deep,
    "scenes_resnext": resnet.scenes_resnext,
    "scenes_resnext_deep": partial(resnet.scenes_resnext, blocks=2),
}
_OF_TIMM = ("resnext101_32x4d",)  # which torchvision does not have
_RATIOS = (0.5, 1.0, 2.0)  # of the sides of anchors
_STEM = ("conv1", "bn1")


class Body(NamedTuple):
    """A ResNet, the channels of its stages, and its convolution ahead of them."""

    network: Any
    channels: tuple[int, ...]


def rcnn(
    shape: tuple[int, int, int],
    num_classes: int,
    normalized: Collection[str] = (),
    *,
    backbone: str = "resnet50",
    pyramid: bool = True,
    levels: Sequence[Annotated[int, Ge(1), Le(4)]] = (1, 2, 3, 4),
    channels: Annotated[int, Ge(1), Le(2**16)] = 256,
    box_head: Literal["4conv1fc", "2fc"] = "4conv1fc",
    box_size: Annotated[int, Ge(1), Le(2**8)] = 7,
    hidden: Annotated[int, Ge(1), Le(2**16)] = 1024,
    mask: bool = False,
    anchors: Sequence[Annotated[int, Ge(1)]] = (32, 64, 128, 256, 512),
    min_size: Annotated[int, Ge(8), Le(2**14)] = 800,
    max_size: Annotated[int, Ge(8), Le(2**14)] = 1333,
    candidates: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] = (2000, 1000),
    proposals: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] = (2000, 1000),
    anchor_samples: Annotated[int, Ge(1)] = 256,
    box_samples: Annotated[int, Ge(1)] = 512,
    detections: Annotated[int, Ge(1)] = 100,
    least_score: Annotated[float, Gt(0), Le(1)] = 0.05,
    anchor_centres: Literal["corner", "middle"] = "corner",
) -> nn.Module:
    """Faster R-CNN, or Mask R-CNN with `mask`; with a pyramid, or with the last stage as its head (C4).

    Args:
        shape, num_classes: of the images, and how many classes there are beside the background.
        normalized: which of fpn, box and mask have a norm.
        backbone: a ResNet or ResNeXt of torchvision, resnext101_32x4d, or one of the small ones for digits in scenes.
        pyramid: the head sees the levels of an FPN; otherwise the third stage, and is itself the fourth.
        levels: stages that the pyramid is built on; one more is half as large as the last.
        channels: of the pyramid and of the convolutions of heads.
        box_head: four 3x3 convolutions and a fully connected layer, or two of these (Lin et al. 2017); of a pyramid.
        box_size: side of what RoIAlign makes of a box.
        hidden: width of fully connected layers.
        mask: a head for masks too; of a pyramid.
        anchors: sides in pixels: one for each level of the pyramid, or all of them for C4.
        min_size, max_size: the shorter side that images are resized to, and what no longer side exceeds.
        candidates: boxes before non-maximum suppression, in training and in the test; of each level.
        proposals: boxes that come through it, likewise; of each image.
        anchor_samples, box_samples: of each image, on which the losses are taken.
        detections: of each image, at most.
        least_score: of a detection.
        anchor_centres: where anchors lie upon the cell of a map: torchvision's around its corner, Detectron's around
            its middle, half a stride away.

    Raises:
        UserError: the settings do not fit each other.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    body = _body(shape, backbone)
    outputs = num_classes + 1
    if pyramid:
        trunk = _with_pyramid(body, levels, channels, _layer("fpn", normalized))
        names = [str(k) for k in range(len(levels))]
        head, width = _box_head(box_head, channels, box_size, hidden, _layer("box", normalized))
        sizes: list[tuple[int, ...]] = [(size,) for size in anchors]
        if len(sizes) != len(levels) + 1:
            raise UserError(
                f"model.anchors={shown(anchors)}: expected a side for each of the pyramid's {len(levels) + 1} levels"
            )
    else:
        if mask:
            raise UserError("model.mask=true: the head for masks needs model.pyramid=true")
        if not anchors:
            raise UserError(f"model.anchors={shown(anchors)}: expected a side or more")
        trunk, head, width = _up_to_c4(body)
        names, sizes = ["0"], [tuple(anchors)]
    model = FasterRCNN(
        trunk,
        min_size=min_size,
        max_size=max_size,
        image_mean=[0.0] * shape[0],  # images come normalized, by their dataset
        image_std=[1.0] * shape[0],
        rpn_anchor_generator=_anchors(sizes, anchor_centres == "middle"),
        rpn_pre_nms_top_n_train=candidates[0],
        rpn_pre_nms_top_n_test=candidates[1],
        rpn_post_nms_top_n_train=proposals[0],
        rpn_post_nms_top_n_test=proposals[1],
        rpn_batch_size_per_image=anchor_samples,
        box_roi_pool=_align(names, box_size),
        box_head=head,
        box_predictor=FastRCNNPredictor(width, outputs),
        box_score_thresh=least_score,
        box_batch_size_per_image=box_samples,
        box_detections_per_img=detections,
    )
    if mask:
        _add_mask_head(model, names, channels, outputs, _layer("mask", normalized))
    return model


def stages(frozen: int) -> list[str]:
    """The first so many pieces of a body, by the names of their modules: the stem, then its stages."""
    pieces: list[Sequence[str]] = [_STEM, *((stage,) for stage in STAGES)]
    return [name for piece in pieces[:frozen] for name in piece]


def _layer(part: str, normalized: Collection[str]) -> type[nn.Module] | None:
    return nn.BatchNorm2d if part in normalized else None


def _body(shape: tuple[int, int, int], name: str) -> Body:
    """Raises UserError if it is no ResNet."""
    if name in _FOR_SCENES:
        network: Any = _FOR_SCENES[name](shape, 2)
    else:
        network = (timm_model if name in _OF_TIMM else torchvision_model)(shape, 2, name=name)
    if any(not isinstance(getattr(network, piece, None), nn.Module) for piece in (*_STEM, *STAGES)):
        small = ", ".join(_FOR_SCENES)
        raise UserError(f"model.backbone={name}: expected a ResNet or ResNeXt, as resnet50, or one of {small}")
    found = [[m for m in getattr(network, stage).modules() if isinstance(m, nn.Conv2d)] for stage in STAGES]
    # A block ends with the convolution that gives its channels; a shortcut's, if it is behind, has as many.
    return Body(network, tuple(convs[-1].out_channels for convs in found))


def _with_pyramid(body: Body, levels: Sequence[int], channels: int, norm: type[nn.Module] | None) -> nn.Module:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    ordered = sorted(set(levels))
    if not ordered or ordered != list(levels):
        raise UserError(f"model.levels={shown(levels)}: expected different numbers of stages, the smallest first")
    returned = {STAGES[level - 1]: str(k) for k, level in enumerate(levels)}
    return BackboneWithFPN(body.network, returned, [body.channels[k - 1] for k in levels], channels, norm_layer=norm)


class _UpToC4(nn.Module):
    """The maps of the third stage."""

    def __init__(self, body: Body) -> None:
        from torchvision.models._utils import IntermediateLayerGetter

        super().__init__()
        self.body = IntermediateLayerGetter(body.network, {STAGES[2]: "0"})
        self.out_channels = body.channels[2]

    def forward(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        return self.body(x_NCHW)


def _up_to_c4(body: Body) -> tuple[nn.Module, nn.Module, int]:
    """What all boxes share, the head that each passes through, and the channels behind it."""
    last = OrderedDict(layer4=body.network.layer4, mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    return _UpToC4(body), nn.Sequential(last), body.channels[3]


def _box_head(kind: str, channels: int, size: int, hidden: int, norm: type[nn.Module] | None) -> tuple[nn.Module, int]:
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead

    if kind == "2fc":
        return TwoMLPHead(channels * size**2, hidden), hidden
    return FastRCNNConvFCHead((channels, size, size), [channels] * 4, [hidden], norm_layer=norm), hidden


def _add_mask_head(model: Any, names: list[str], channels: int, outputs: int, norm: type[nn.Module] | None) -> None:
    """Four 3x3 convolutions, and one that doubles the resolution, on 14 x 14 positions (He et al. 2017, Fig. 4)."""
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    model.roi_heads.mask_roi_pool = _align(names, 14)
    model.roi_heads.mask_head = MaskRCNNHeads(channels, [channels] * 4, 1, norm_layer=norm)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, outputs)


def _anchors(sizes: Sequence[tuple[int, ...]], in_the_middle: bool) -> nn.Module:
    """Of three shapes at each cell of a map."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    class Middle(AnchorGenerator):
        def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
            return [
                anchors_A4 + torch.stack([across, down, across, down]) / 2
                for anchors_A4, (down, across) in zip(super().grid_anchors(grid_sizes, strides), strides, strict=True)
            ]

    kind = Middle if in_the_middle else AnchorGenerator
    return kind(tuple(sizes), (_RATIOS,) * len(sizes))


def _align(names: list[str], size: int) -> nn.Module:
    from torchvision.ops import MultiScaleRoIAlign

    return MultiScaleRoIAlign(featmap_names=names, output_size=size, sampling_ratio=2)
