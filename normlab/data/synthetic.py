"""Images made on the fly, for smoke tests and benchmarks: any size, any number, nothing stored."""

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import interpolate

from normlab.data.dataset import SPLITS, ImageDataset, check_split
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
