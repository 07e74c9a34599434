"""Perceptual losses of images (Johnson et al. 2016): features of a loss network, compared position by position for
content, and by their Gram matrices for style.

Shapes: N images (N, 3, H, W), pixels from 0 to 255 in RGB; features (N, C, H, W) of a layer; Gram matrices (N, C, C).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.models.tensor_files import check_hash, read_tensors
from normlab.models.vgg import RELUS, vgg_features

LEAST_SIDE = 8  # pixels: sides are halved three times
_WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what weights may be stored in
Network = Literal["scenes_vgg", "vgg16", "vgg16_caffe"]


@dataclass(frozen=True)
class Terms:
    """What a loss network's features are compared by.

    Attributes:
        content: the layer of the content loss.
        style: those of the style loss, whose terms are added.
        content_weight, style_weight, tv_weight: of content, style and total variation.
    """

    content: str
    content_weight: float
    style_weight: float
    tv_weight: float
    style: Sequence[str] = tuple(RELUS)

    def changed(self, content: float | None, style: float | None, tv: float | None) -> "Terms":
        """With other weights; None: its own."""
        given = {"content_weight": content, "style_weight": style, "tv_weight": tv}
        weights: dict[str, Any] = {name: weight for name, weight in given.items() if weight is not None}
        return replace(self, **weights)


@dataclass(frozen=True)
class Kind:
    """A loss network: how pixels (0 to 255, RGB) come to it, how wide it is, and the losses that go with it."""

    mean: tuple[float, float, float]  # of a channel, in the order of RGB
    std: tuple[float, float, float]
    width: int
    terms: Terms
    bgr: bool = False


_IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
KINDS: Mapping[str, Kind] = {
    # Simonyan and Zisserman's own weights in Caffe's layout, and the losses of Johnson's code, which the SN papers
    # follow. Its total variation is of a whole batch of four, which is four times the mean over images.
    "vgg16_caffe": Kind((123.68, 116.779, 103.939), (1, 1, 1), 64, Terms("relu3_3", 1.0, 5.0, 4e-6), bgr=True),
    # torchvision's weights, and the losses of the PyTorch examples
    "vgg16": Kind(*_IMAGENET, 64, Terms("relu2_2", 1e5, 1e10, 0.0)),
    # A classifier of coloured scenes (model=scenes_vgg), whose pixels have a mean of 0.41 and a std of 0.2
    "scenes_vgg": Kind((104.55,) * 3, (51.0,) * 3, 16, Terms("relu2_2", 1.0, 400.0, 1e-7)),
}


class LossNetwork(nn.Module):
    """Images to features {layer: (N, C, H, W)}. Its tensors are called as torchvision's VGG-16 calls them.

    Without weights of a file, or of what a run begins from, it has random ones, the same in each run.
    """

    def __init__(self, name: Network, layers: Sequence[str]) -> None:
        super().__init__()
        self.kind = KINDS[name]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            whole = vgg_features(3, self.kind.width)
            for module in whole.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.names = {RELUS[layer]: layer for layer in layers}
        self.features = whole[: max(self.names) + 1]
        self.mean_311: Tensor
        self.std_311: Tensor
        self.register_buffer("mean_311", torch.tensor(self.kind.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_311", torch.tensor(self.kind.std).view(3, 1, 1), persistent=False)

    def forward(self, pixels_N3HW: Tensor) -> dict[str, Tensor]:
        x = (pixels_N3HW - self.mean_311) / self.std_311
        if self.kind.bgr:
            x = x.flip(1)
        found = {}
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self.names:
                found[self.names[place]] = x
        return found

    def load(self, path: Path) -> None:
        """Weights of a file with torchvision's names. Raises UserError on one that lacks some, or is damaged."""
        check_hash(path)
        if not self.take(tensors := read_tensors(path)):
            lacking = next(name for name, own in self.state_dict().items() if not _fits(own, tensors.get(name)))
            raise UserError(
                f"task.loss_weights={path}: there is no {lacking} of the shape that the loss network has, with finite "
                "floating-point numbers"
            )

    def take(self, tensors: Mapping[str, Tensor]) -> bool:
        """Its own among tensors, all or none; whether they are there."""
        own = self.state_dict()
        if not all(_fits(value, tensors.get(name)) for name, value in own.items()):
            return False
        self.load_state_dict({name: tensors[name] for name in own})
        return True


def _fits(own: Tensor, found: Tensor | None) -> bool:
    if found is None or found.shape != own.shape or found.dtype not in _WEIGHTS:
        return False
    return bool(found.isfinite().all())


def gram(features_NCHW: Tensor) -> Tensor:
    """(N, C, C): means over channels and positions of the products of two channels (Johnson et al. 2016, Eq. 3)."""
    x_NCL = features_NCHW.flatten(2)
    return x_NCL @ x_NCL.transpose(1, 2) / x_NCL[0].numel()


def total_variation(pixels_N3HW: Tensor) -> Tensor:
    """(N,): half the sum of squared differences of neighbours; as in Johnson's code without the last row and column."""
    here = pixels_N3HW[:, :, :-1, :-1]
    right, below = pixels_N3HW[:, :, :-1, 1:], pixels_N3HW[:, :, 1:, :-1]
    return 0.5 * ((here - right).square() + (here - below).square()).flatten(1).sum(1)


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """(N,): the mean over all that an image has."""
    return (a - b).square().flatten(1).mean(1)


def perceptual_losses(
    network: LossNetwork,
    terms: Terms,
    output_N3HW: Tensor,
    content_N3HW: Tensor,
    style_grams: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """content, style and tv of each image, (N,), weighted. `style_grams` are (1, C, C) by layer.

    Never in half precision: features of pixels up to 255 have squares beyond it.
    """
    with torch.autocast(output_N3HW.device.type, enabled=False):
        output_N3HW = output_N3HW.to(network.mean_311.dtype)
        found = network(output_N3HW)
        with torch.no_grad():
            target_NCHW = network(content_N3HW)[terms.content]
        styles = [squared_error(gram(found[layer]), style_grams[layer]) for layer in terms.style]
        return {
            "content": terms.content_weight * squared_error(found[terms.content], target_NCHW),
            "style": terms.style_weight * torch.stack(styles).sum(0),
            "tv": terms.tv_weight * total_variation(output_N3HW),
        }
