"""Datasets of a few files, held in memory: MNIST and CIFAR."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.dataset import ImageDataset, OnError, SampleError, Transform
from normlab.data.splits import Integers, training_fraction


class Part(NamedTuple):
    """What a file, or a pair of files, holds of a split."""

    label_file: str
    images_NCHW: NDArray[np.uint8]
    labels_N: Integers


class StoredArrays(ImageDataset):
    """Images of a few files that are held in memory as uint8; what can be wrong with a single one is its label.

    Args:
        split: "train" or "val".
        folder: of the files.
        parts: of the whole split, in order.
        fraction: of the training split that is used.
        on_error: "stop" raises SampleError for a wrong label here, "skip" when the sample is asked for.
        seed, eval_transform, train_transform: as in ImageDataset.
    """

    def __init__(
        self,
        split: str,
        seed: int,
        folder: Path,
        parts: Sequence[Part],
        fraction: float,
        on_error: OnError,
        *,
        eval_transform: Transform,
        train_transform: Transform | None = None,
    ):
        labels_N = np.concatenate([part.labels_N for part in parts])
        self.members_N = training_fraction(labels_N, split, fraction)
        self.images_NCHW = torch.from_numpy(np.concatenate([part.images_NCHW for part in parts])[self.members_N])
        self.split, self.folder, self.on_error = split, folder, on_error
        self.parts = [(part.label_file, len(part.labels_N)) for part in parts]
        super().__init__(seed, labels_N[self.members_N], eval_transform=eval_transform, train_transform=train_transform)
        self.wrong = set(_wrong_labels(self.labels_N, self.num_classes).tolist())
        if self.wrong and on_error == "stop":
            raise self._label_error(min(self.wrong))

    def read(self, index: int) -> Tensor:
        if index in self.wrong:
            raise self._label_error(index)
        return self.images_NCHW[index]

    def _label_error(self, index: int) -> SampleError:
        """Names the file and the place there, as data_batch_1[17]."""
        place, part = int(self.members_N[index]), 0
        while place >= self.parts[part][1]:
            place -= self.parts[part][1]
            part += 1
        file = f"{self.parts[part][0]}[{place}]"
        return SampleError(self.split, index, self.folder, file, _label_problem(self.labels_N[index], self.num_classes))


def label_problems(folder: Path, part: Part, num_classes: int) -> list[str]:
    """A line for every label that is no class."""
    return [
        f"{folder / part.label_file}[{place}]: {_label_problem(part.labels_N[place], num_classes)}"
        for place in _wrong_labels(part.labels_N, num_classes)
    ]


def _wrong_labels(labels_N: Integers, num_classes: int) -> Integers:
    """The places of the labels that are not in 0 .. num_classes - 1."""
    return np.flatnonzero((labels_N < 0) | (labels_N >= num_classes))


def _label_problem(label: int, num_classes: int) -> str:
    return f"label {label} is not in 0..{num_classes - 1}"
