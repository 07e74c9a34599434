"""What all image datasets share: an item is a pure function of (seed, epoch, index)."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from normlab.data.augment import normalize, sample_rng
from normlab.data.splits import Integers
from normlab.errors import UserError, unknown
from normlab.schema import shown

SPLITS = ("train", "val")
Transform = Callable[[Any], Tensor]
VOID = 255  # in a map of labels: a pixel that does not count
OnError = Literal["stop", "skip"]
Target = TypeVar("Target")  # of an image: its label, a map of labels, boxes


class SampleError(UserError):
    """A stored sample that cannot be used.

    Args:
        split, index: the sample, as the dataset of this split numbers it.
        folder, file: where it is stored, and the name under which records keep it.
        reason: what is wrong with it.
    """

    def __init__(self, split: str, index: int, folder: Path, file: str, reason: str) -> None:
        super().__init__(
            f"{folder}/{file}: {reason} (sample {index} of {split}); `normlab data verify` lists all such files, "
            "and data.on_error=skip does without them"
        )
        self.split, self.index, self.folder, self.file, self.reason = split, index, folder, file, reason

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """A message alone, as other exceptions travel by, would not make it again."""
        return type(self), (self.split, self.index, self.folder, self.file, self.reason)


class Samples(Dataset[tuple[Tensor, Target]]):
    """Images of one split with what is known of each. `dataset[epoch, index]` is (float32 image (C, H, W), target).

    With epoch None an image is not augmented. Otherwise it is a function of (seed, epoch, index).

    A dataset kept in a folder says where its files lie and which they are, as literals; by them a run knows its data
    again (normlab.data.stored). It also has the class methods `prepare(root)`, which puts the files there, and
    `verify(root)`, which lists what is wrong with them; normlab.datasets calls both. Its setting `on_error` says
    what becomes of a sample that raises SampleError (normlab.engine.loader): the run stops, or does without it.
    A dataset whose samples cannot be bad may have a method `take_all(keys)` that gives those of many keys at once,
    each as `take` does.

    Images that are stored as bytes travel as bytes, a quarter of the room: `take` gives them as uint8, and `normalize`
    makes numbers of a whole batch, on its device.
    """

    called: ClassVar[str] = "images"  # what its samples are
    seed: int
    shape: tuple[int, ...]  # of a training image, (C, H, W), or of another sample
    mean: ClassVar[Sequence[float]] = ()  # per channel, or one for all, of pixels in [0, 1]
    std: ClassVar[Sequence[float]] = ()
    on_error: OnError = "stop"
    folders: ClassVar[Sequence[str]] = ()  # in root; the first that is there holds the files, else root itself
    files: ClassVar[Sequence[str]] = ("*",)  # patterns of what is read there
    counts: ClassVar[Mapping[str, int]] = {}  # samples of each split, as published; empty: that depends on the folder

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes that a dataset of these settings would have, where its files are not there."""
        return {"shape": (3, settings["size"], settings["size"])}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, Target]:
        """What `self[epoch, index]` would be with what is stored of the sample `stored`, and before `normalize`."""

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[Tensor, Target]:
        epoch, index = key
        image, target = self.take(epoch, index, index)
        return self.normalize(image) if image.dtype == torch.uint8 else image, target

    def normalize(self, images: Tensor) -> Tensor:
        """Images in bytes (..., C, H, W) to float32, by the mean and std of the dataset."""
        return normalize(images, self.mean, self.std)


class ImageDataset(Samples[int]):
    """Labelled images of one split. `dataset[epoch, index]` is (float32 image (C, H, W), label).

    With epoch None, or without a training transform, an image is the evaluation transform of what `read` gives.
    Otherwise it is the training transform under random numbers drawn from (seed, epoch, index).
    """

    num_classes: int

    def __init__(
        self, seed: int, labels_N: Integers, *, eval_transform: Transform, train_transform: Transform | None = None
    ):
        self.seed = seed
        self.labels_N = np.asarray(labels_N)
        self.eval_transform = eval_transform
        self.train_transform = train_transform

    @abstractmethod
    def read(self, index: int) -> Any:
        """The stored image, as the transforms take it. Raises SampleError."""

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, int]:
        label = int(self.labels_N[stored])
        image = self.read(stored)
        if epoch is None or self.train_transform is None:
            return self.eval_transform(image), label
        with sample_rng(self.seed, epoch, index):
            return self.train_transform(image), label


def check_split(split: str, splits: Sequence[str] = SPLITS) -> None:
    """Refuse an unknown split with a UserError."""
    if split not in splits:
        raise unknown("split", split, splits)


def check_range(name: str, ends: Sequence[float] | None) -> None:
    """Refuse a range whose ends are reversed with a UserError."""
    if ends is not None and ends[0] > ends[1]:
        raise UserError(f"data.{name}={shown(ends)}: expected the smaller number first")


def missing(what: str, folder: Path, name: str, root: Path | str) -> UserError:
    """The error for data that are not where they should be."""
    return UserError(f"{folder} has no {what}; `normlab data prepare {name} root={root}` gets it")


def count_problem(split: str, expected: int, found: int, called: str = "images") -> list[str]:
    """A line if a split has another number of samples than it should."""
    return [] if found == expected else [f"{split}: expected {expected} {called}, found {found}"]
