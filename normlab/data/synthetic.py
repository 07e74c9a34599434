"""Images made on the fly, for smoke tests and benchmarks: any size, any number, nothing stored."""

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from normlab.data.dataset import SPLITS, VOID, ImageDataset, check_split
from normlab.seeding import mix_seed

_GRID = 4  # a class is a smooth pattern, interpolated from so many values a side


class Synthetic(ImageDataset):
    """Class patterns in white noise of std 1; the classes take turns, so every split is balanced.

    An image is a function of (split, index), not of the run's seed, like the images of a real dataset; the patterns
    are the same in both splits.

    Args:
        split: "train" or "val".
        seed: unused, there is no augmentation.
        channels, size: images are (channels, size, size).
        num_classes: number of classes.
        length, val_length: number of images of the splits.
        signal: std of the patterns; the larger, the easier to learn.

    Raises:
        UserError: there is no such split.
    """

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        channels: Annotated[int, Ge(1), Le(2**12)] = 3,
        size: Annotated[int, Ge(1), Le(2**12)] = 32,
        num_classes: Annotated[int, Ge(1), Le(2**20)] = 10,
        length: Annotated[int, Ge(1), Le(2**27)] = 512,
        val_length: Annotated[int, Ge(1), Le(2**27)] = 128,
        signal: Annotated[float, Ge(0)] = 1.0,
    ):
        check_split(split)
        self.split = split
        self.num_classes = num_classes
        self.shape = (channels, size, size)
        patterns = torch.Generator().manual_seed(0)
        self.patterns_KCGG = signal * torch.randn(num_classes, channels, _GRID, _GRID, generator=patterns)
        labels_N = np.arange(length if split == "train" else val_length) % num_classes
        super().__init__(seed, labels_N, eval_transform=self._in_noise)

    def read(self, index: int) -> int:
        return index

    def _in_noise(self, index: int) -> Tensor:
        noise = torch.Generator().manual_seed(mix_seed(SPLITS.index(self.split), index))
        pattern_1CGG = self.patterns_KCGG[self.labels_N[index], None]
        pattern_1CHW = interpolate(pattern_1CGG, size=self.shape[1:], mode="bilinear", align_corners=True)
        return pattern_1CHW[0] + torch.randn(self.shape, generator=noise)


class SyntheticBoxes(Dataset[tuple[Tensor, dict[str, Any]]]):
    """One to four rectangles, each of the colour of its class, in white noise of std 1.

    An item is (image (C, H, W), target), the target as in data/coco.py; a function of (split, index), as Synthetic's.

    Args:
        split: "train" or "val".
        seed: unused, there is no augmentation.
        channels, size: images are (channels, size, size).
        num_classes: number of classes.
        length, val_length: number of images of the splits.

    Raises:
        UserError: there is no such split.
    """

    one_size = True

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        channels: Annotated[int, Ge(1), Le(2**12)] = 3,
        size: Annotated[int, Ge(8), Le(2**12)] = 64,
        num_classes: Annotated[int, Ge(1), Le(2**20)] = 10,
        length: Annotated[int, Ge(1), Le(2**27)] = 512,
        val_length: Annotated[int, Ge(1), Le(2**27)] = 128,
    ):
        check_split(split)
        self.split, self.length = split, length if split == "train" else val_length
        self.num_classes, self.shape = num_classes, (channels, size, size)
        self.colours_KC = torch.randn(num_classes, channels, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[Tensor, dict[str, Any]]:
        draw = torch.Generator().manual_seed(mix_seed(SPLITS.index(self.split), key[1]))
        channels, size, _ = self.shape
        number = int(torch.randint(1, 5, (), generator=draw))
        labels_M = torch.randint(self.num_classes, (number,), generator=draw)
        sides_M2 = torch.randint(size // 8, size // 2 + 1, (number, 2), generator=draw)
        corner_M2 = (torch.rand(number, 2, generator=draw) * (size - sides_M2)).long()
        boxes_M4 = torch.cat([corner_M2, corner_M2 + sides_M2], 1)
        image_CHW = torch.randn(self.shape, generator=draw)
        masks_MHW = torch.zeros(number, size, size, dtype=torch.bool)
        for mask_HW, label, (left, top, right, bottom) in zip(masks_MHW, labels_M, boxes_M4.tolist(), strict=True):
            image_CHW[:, top:bottom, left:right] += self.colours_KC[label].view(channels, 1, 1)
            mask_HW[top:bottom, left:right] = True
        return image_CHW, {
            "boxes": boxes_M4.float(),
            "labels": labels_M + 1,
            "masks": masks_MHW,
            "area": sides_M2.prod(1).float(),
            "iscrowd": torch.zeros(number, dtype=torch.int64),
            "image_id": key[1],
        }


class SyntheticMaps(Dataset[tuple[Tensor, Tensor]]):
    """Regions of classes, each of one colour, in white noise of std 1; a share of the pixels is void.

    An item is (image (C, H, W), label map (H, W)), a function of (split, index), as Synthetic's.

    Args:
        split: "train" or "val".
        seed: unused, there is no augmentation.
        channels, size: images are (channels, size, size).
        num_classes: number of classes, without void.
        length, val_length: number of images of the splits.
        void: the largest share of an image's pixels that is void; each image has a share of its own.

    Raises:
        UserError: there is no such split.
    """

    one_size = True

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        channels: Annotated[int, Ge(1), Le(2**12)] = 3,
        size: Annotated[int, Ge(1), Le(2**12)] = 64,
        num_classes: Annotated[int, Ge(2), Le(250)] = 10,
        length: Annotated[int, Ge(1), Le(2**27)] = 512,
        val_length: Annotated[int, Ge(1), Le(2**27)] = 128,
        void: Annotated[float, Ge(0), Le(1)] = 0.2,
    ):
        check_split(split)
        self.split, self.length, self.void = split, length if split == "train" else val_length, void
        self.num_classes, self.shape = num_classes, (channels, size, size)
        self.colours_KC = torch.randn(num_classes, channels, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(mix_seed(SPLITS.index(self.split), key[1]))
        channels, *size = self.shape
        fields_1KGG = torch.randn(1, self.num_classes, _GRID, _GRID, generator=draw)
        classes_HW = interpolate(fields_1KGG, size=size, mode="bilinear", align_corners=True)[0].argmax(0)
        image_CHW = self.colours_KC[classes_HW].movedim(-1, 0) + torch.randn(channels, *size, generator=draw)
        share = self.void * torch.rand((), generator=draw)
        is_void_HW = torch.rand(size, generator=draw) < share
        return image_CHW, classes_HW.masked_fill(is_void_HW, VOID).to(torch.uint8)
