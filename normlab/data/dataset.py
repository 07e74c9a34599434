"""What all image datasets share: an item is a pure function of (seed, epoch, index)."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from normlab.data.augment import sample_rng
from normlab.data.splits import Integers
from normlab.errors import UserError, unknown

SPLITS = ("train", "val")
Transform = Callable[[Any], Tensor]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images of one split. `dataset[epoch, index]` is (float32 image (C, H, W), label).

    With epoch None, or without a training transform, an image is the evaluation transform of what `read` gives.
    Otherwise it is the training transform under random numbers drawn from (seed, epoch, index).

    A dataset kept in a folder also has the class methods `prepare(root)`, which puts the files there, and
    `verify(root)`, which lists what is wrong with them; normlab.data.prepare calls both.
    """

    num_classes: int
    shape: tuple[int, int, int]

    def __init__(
        self, seed: int, labels_N: Integers, *, eval_transform: Transform, train_transform: Transform | None = None
    ):
        self.seed = seed
        self.labels_N = np.asarray(labels_N)
        self.eval_transform = eval_transform
        self.train_transform = train_transform

    @abstractmethod
    def read(self, index: int) -> Any:
        """The stored image, as the transforms take it."""

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[Tensor, int]:
        epoch, index = key
        label = int(self.labels_N[index])
        image = self.read(index)
        if epoch is None or self.train_transform is None:
            return self.eval_transform(image), label
        with sample_rng(self.seed, epoch, index):
            return self.train_transform(image), label


def check(split: str, size: int, padding: int = 0) -> None:
    """Refuse an unknown split, an image side below one pixel or a negative padding, with a UserError."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if size < 1:
        raise UserError(f"data.size={size} must be at least 1, the side of the images in pixels")
    if padding < 0:
        raise UserError(f"data.padding={padding} must be at least 0, in pixels on each side")


def missing(what: str, folder: Path, name: str, root: Path | str) -> UserError:
    """The error for data that are not where they should be."""
    return UserError(f"{folder} has no {what}; `normlab data prepare {name} root={root}` gets it")


def first_existing(root: Path | str, *folders: str) -> Path:
    """The first of these folders in root that exists, or root itself: people keep the data at either level."""
    candidates = [Path(root) / folder for folder in folders]
    return next((candidate for candidate in candidates if candidate.is_dir()), Path(root))


def count_problem(split: str, expected: int, found: int) -> list[str]:
    """A line if a split has another number of images than it should."""
    return [] if found == expected else [f"{split}: expected {expected} images, found {found}"]


def wrong_labels(labels_N: Integers, num_classes: int) -> list[int]:
    """The labels that are not in 0 .. num_classes - 1, each once."""
    return np.unique(labels_N[(labels_N < 0) | (labels_N >= num_classes)]).tolist()
