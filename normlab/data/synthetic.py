"""Images made on the fly, for smoke tests and benchmarks: any size, any number, nothing stored."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from normlab.data.dataset import SPLITS, ImageDataset, check
from normlab.errors import UserError
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
        UserError: an argument is out of its range.
    """

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        channels: int = 3,
        size: int = 32,
        num_classes: int = 10,
        length: int = 512,
        val_length: int = 128,
        signal: float = 1.0,
    ):
        check(split, size)
        counts = {"channels": channels, "num_classes": num_classes, "length": length, "val_length": val_length}
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"data.{name}={count} must be at least 1")
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
