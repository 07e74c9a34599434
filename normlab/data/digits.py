"""scikit-learn's handwritten digits, the default: 1,797 real images of 8x8 pixels, in memory."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import interpolate

from normlab.data.augment import random_shifts
from normlab.data.dataset import ImageDataset, check_split
from normlab.data.handwriting import load_handwriting
from normlab.data.splits import held_out, training_fraction
from normlab.seeding import hashed


class Digits(ImageDataset):
    """Grey digits, normalised by the mean and std of the training split's pixels (before `fraction` is taken).

    A fixed fifth of every class is held out: 1,438 training and 359 validation images.

    Args:
        split: "train" or "val".
        seed: of the augmentation.
        size: side in pixels, resized bilinearly.
        shift: in training, images move by up to so many pixels in each direction.
        fraction: of the training split, in (0, 1].

    Raises:
        UserError: there is no such split.
    """

    num_classes = 10

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        size: Annotated[int, Ge(1), Le(2**12)] = 8,
        shift: Annotated[int, Ge(0), Le(2**12)] = 0,
        fraction: Annotated[float, Gt(0), Le(1)] = 1.0,
    ):
        check_split(split)
        pixels, labels_N = load_handwriting()
        images_NCHW = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
        train_NCHW = images_NCHW[held_out(labels_N, "train", train_share=0.8)]
        mean, std = train_NCHW.mean(), train_NCHW.std(correction=0)

        members = held_out(labels_N, split, train_share=0.8)
        members = members[training_fraction(labels_N[members], split, fraction)]
        self.images_NCHW = _resize((images_NCHW[members] - mean) / std, size)
        self.shape = (1, size, size)
        self.shift = shift if split == "train" else 0
        self.background = float(-mean / std)
        super().__init__(seed, labels_N[members], eval_transform=_as_it_is)

    def read(self, index: int) -> Tensor:
        return self.images_NCHW[index]

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, int]:
        return self.take_all([(epoch, index)])[0]

    def take_all(self, keys: Sequence[tuple[int | None, int]]) -> list[tuple[Tensor, int]]:
        """The digits of many keys, all of one epoch, each as `take` gives it."""
        indices = [index for _, index in keys]
        images_BCHW, epoch = self.images_NCHW[indices], keys[0][0]
        if self.shift and epoch is not None:
            bits_B = hashed(self.seed, epoch, np.array(indices))
            images_BCHW = random_shifts(images_BCHW, bits_B, self.shift, self.background)
        return list(zip(images_BCHW, self.labels_N[indices].tolist(), strict=True))


def _resize(images_NCHW: Tensor, size: int) -> Tensor:
    if images_NCHW.shape[-1] == size:
        return images_NCHW
    return interpolate(images_NCHW, size=(size, size), mode="bilinear", antialias=True)


def _as_it_is(image_CHW: Tensor) -> Tensor:
    return image_CHW
