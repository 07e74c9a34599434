"""Augmentation: the papers' recipes as torchvision transforms, and the randomness of one sample.

torchvision is imported by the recipes and not by the module: the digits need none of it and start faster.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from normlab.seeding import Bits, mix_seed, uniforms

if TYPE_CHECKING:
    from PIL import Image

# The ResNet recipe: crops of 8% to 100% of the area, sides in ratio 3:4 to 4:3; evaluation on the central 224 of 256.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CENTER_SHARE = 224 / 256


@contextmanager
def sample_rng(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Inside, torch's CPU random numbers are a function of the triple alone; afterwards they go on as before.

    Every transform of torchvision's v2 draws from them, so it becomes a function of the triple too, whatever the
    worker, the order or the device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mix_seed(seed, epoch, index))  # torch.manual_seed reseeds GPUs too
        yield


def pad_crop_flip(padding: int, size: int) -> torch.nn.Module:
    """Zero padding on each side, a random size x size crop of the result, a random flip (HN, Sec. 4.1)."""
    v2 = _transforms()
    return v2.Compose([v2.RandomCrop(size, padding=padding), v2.RandomHorizontalFlip()])


def resized_crop_flip(size: int) -> torch.nn.Module:
    """The ResNet recipe for training: a random part of the image, resized to size x size, and a random flip.

    It is what the SN papers and WS refer to and HN, Sec. 4.4 spells out.
    """
    v2 = _transforms()
    crop = v2.RandomResizedCrop(size, scale=CROP_AREA, ratio=CROP_RATIO, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def resize_center_crop(size: int) -> torch.nn.Module:
    """The ResNet recipe for evaluation: the shorter side to 256/224 of size, then the central size x size pixels."""
    v2 = _transforms()
    return v2.Compose([v2.Resize(round(size / CENTER_SHARE), antialias=True), v2.CenterCrop(size)])


def resize(size: int) -> torch.nn.Module:
    """Bilinear resizing to size x size, both sides; an image of that size stays as it is."""
    return _transforms().Resize((size, size), antialias=True)


def to_bytes(image: "Image.Image") -> Tensor:
    """PIL image in RGB to uint8 (C, H, W), in memory as PIL has it, which torch resizes faster than PIL does."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images in bytes (..., C, H, W) to float32: scaled to [0, 1], minus mean, over std, per channel."""
    mean_C11, std_C11 = (torch.tensor(t, device=images.device).view(-1, 1, 1) * 255 for t in (mean, std))
    return images.to(torch.float32).sub_(mean_C11).div_(std_C11)  # in bytes' own scale: a pass less


def scale_crop_flip(
    image_CHW: Tensor,
    map_HW: Tensor,
    *,
    factors: tuple[float, float] | None = None,
    short_side: tuple[int, int] | None = None,
    most: int | None = None,
    crop: int,
    flip: bool,
    mean: Sequence[float],
    void: int,
) -> tuple[Tensor, Tensor]:
    """An image and its map of labels, resized at random, cropped and flipped together.

    Args:
        image_CHW, map_HW: both in bytes.
        factors: both sides are multiplied by a number drawn from here,
        short_side: or the shorter side becomes that many pixels, and the other in proportion.
        most: pixels of the longer side, whatever the shorter one is to be.
        crop: side of the result. What an image lacks is split at random between its two sides.
        flip: half of the pairs.
        mean: colour of what an image lacks, per channel in [0, 1].
        void: label of what a map lacks.
    """
    v2 = _transforms()
    from torchvision import tv_tensors
    from torchvision.transforms import InterpolationMode

    height, width = map_HW.shape
    if short_side is not None:
        factor = int(torch.randint(short_side[0], short_side[1] + 1, ())) / min(height, width)
    else:
        least, largest = factors or (1.0, 1.0)
        factor = least + (largest - least) * torch.rand(()).item()
    if most is not None:
        factor = min(factor, most / max(height, width))
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    image_CHW = v2.functional.resize(image_CHW, size, antialias=True)
    # Not as a Mask: v2 takes the pixel at the corner then, half a pixel away from where the image's comes from.
    map_1HW = v2.functional.resize(map_HW[None], size, interpolation=InterpolationMode.NEAREST_EXACT)
    fill = {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: void}
    together = v2.Compose(
        [
            v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(0.5 if flip else 0.0),
            v2.ToPureTensor(),
        ]
    )
    image_CHW, map_1HW = together(tv_tensors.Image(image_CHW), tv_tensors.Mask(map_1HW))
    return image_CHW, map_1HW[0]


def chain(*steps: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The steps one after the other."""
    return _transforms().Compose(list(steps))


def random_shifts(images_BCHW: Tensor, bits_B: Bits, pixels: int, background: float) -> Tensor:
    """Each image moved by up to `pixels` in each direction, by its random bits; what comes into view is background."""
    _, _, height, width = images_BCHW.shape
    padded_BCHW = pad(images_BCHW, (pixels,) * 4, value=background)
    start_B2 = torch.from_numpy((uniforms(bits_B, 0, 2) * (2 * pixels + 1)).astype(np.int64))
    batch_B, channels_C = (torch.arange(n) for n in images_BCHW.shape[:2])
    rows_BH = start_B2[:, :1] + torch.arange(height)
    columns_BW = start_B2[:, 1:] + torch.arange(width)
    return padded_BCHW[
        *(batch_B[:, None, None, None], channels_C[:, None, None]),
        *(rows_BH[:, None, :, None], columns_BW[:, None, None]),
    ]


def _transforms() -> ModuleType:
    from torchvision.transforms import v2

    return v2
