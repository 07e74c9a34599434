"""Image files with a map of labels each, for semantic segmentation."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.augment import sample_rng, scale_crop_flip
from normlab.data.dataset import VOID, OnError, SampleError, Samples, check_range, check_split
from normlab.data.decode import DecodeError, decode, decode_map
from normlab.data.folder import decoding_problems
from normlab.data.scan import is_image, listed
from normlab.data.stored import first_existing
from normlab.errors import UserError

_NO_CLASS = -1
_VALUES = 2**16  # that a map may hold


class Pair(NamedTuple):
    """The files of a sample, below the dataset's folder."""

    image: str
    map: str | None  # None where the labels are withheld: all is void


class MapError(DecodeError):
    """An image or a map that cannot be used; `file` is which."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(reason)
        self.file = file


class MapFiles(Samples[Tensor]):
    """Images with maps. `dataset[epoch, index]` is (float32 image (3, H, W), uint8 map (H, W)); 255 does not count.

    With epoch None both have the size that they are stored in. Otherwise they are resized at random, cropped, padded
    (the image with the mean colour, the map with void) and flipped together, under random numbers drawn from
    (seed, epoch, index).

    Subclasses say where a split's files are, how many there should be, and what the stored numbers mean.

    Args:
        split, seed, root: as of every dataset in a folder.
        crop: side of a training image.
        flip: half of them.
        factors, short_side, most: how the size is drawn, as augment.scale_crop_flip takes them.
        on_error: a file that cannot be used stops the run, or skip does without its sample.
    """

    num_classes: int
    classes: tuple[str, ...]  # their names
    one_size: ClassVar[bool] = False
    label_of: ClassVar[Mapping[int, int]]  # a stored number -> its class; others are refused
    counts: ClassVar[Mapping[str, int]]  # of each split's images

    def __init__(
        self,
        split: str,
        seed: int,
        root: Path | str,
        *,
        crop: int,
        flip: bool,
        factors: tuple[float, float] | None = None,
        short_side: tuple[int, int] | None = None,
        most: int | None = None,
        on_error: OnError,
    ):
        check_split(split, tuple(self.counts))
        check_range("scale", factors)
        check_range("short_side", short_side)
        self.split, self.seed, self.on_error = split, seed, on_error
        self.folder = first_existing(root, *self.folders)
        pairs = self.pairs(self.folder, split, root)
        self.images_N = np.array([os.fsencode(image) for image, _ in pairs])  # one array: see ImageFiles
        self.maps_N = np.array([os.fsencode(labels or "") for _, labels in pairs])
        self.shape = (3, crop, crop)
        self.num_classes = len(self.classes)
        self.augment = partial(
            scale_crop_flip, factors=factors, short_side=short_side, most=most, crop=crop, flip=flip, mean=self.mean,
            void=VOID,
        )  # fmt: skip

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        names = getattr(cls, "classes", ())
        return {"shape": (3, settings["crop"], settings["crop"]), "classes": names, "num_classes": len(names)}

    @classmethod
    @abstractmethod
    def pairs(cls, folder: Path, split: str, root: Path | str) -> list[Pair]:
        """The files of a split below `folder`, which is root or in it. Raises UserError where there are none."""

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        folder, problems = first_existing(root, *cls.folders), []
        for split, count in cls.counts.items():
            try:
                pairs = cls.pairs(folder, split, root)
            except UserError as error:
                problems.append(str(error))
                continue
            if len(pairs) != count:
                problems.append(f"{folder}: expected {count} images of {split}, found {len(pairs)}")
            problems += decoding_problems(partial(_read_named, folder, cls.label_of), pairs, split)
        return problems

    def __len__(self) -> int:
        return len(self.images_N)

    def pair(self, index: int) -> Pair:
        """The names of a sample's files."""
        return Pair(os.fsdecode(self.images_N[index]), os.fsdecode(self.maps_N[index]) or None)

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, Tensor]:
        try:
            image_CHW, map_HW = read_pair(self.folder, self.pair(stored), self.label_of)
        except MapError as error:
            raise SampleError(self.split, stored, self.folder, error.file, str(error)) from None
        if epoch is None:
            return image_CHW, map_HW
        with sample_rng(self.seed, epoch, index):
            return self.augment(image_CHW, map_HW)


def _read_named(folder: Path, label_of: Mapping[int, int], pair: Pair) -> None:
    """Raises DecodeError, with the file's path."""
    try:
        read_pair(folder, pair, label_of)
    except MapError as error:
        raise DecodeError(f"{folder / error.file}: {error}") from None


def read_pair(folder: Path, pair: Pair, label_of: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) and the class (H, W) of each of its pixels, in bytes. Raises MapError."""
    try:
        image_HWC = np.array(decode(folder / pair.image))
    except DecodeError as error:
        raise MapError(pair.image, str(error)) from None
    image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous()
    if pair.map is None:
        return image_CHW, torch.full(image_CHW.shape[1:], VOID, dtype=torch.uint8)
    try:
        stored_HW = decode_map(folder / pair.map)
        if stored_HW.shape != image_HWC.shape[:2]:
            sizes = " and ".join("{1} x {0}".format(*array.shape) for array in (stored_HW, image_HWC))
            raise DecodeError(f"the map and {folder / pair.image} have {sizes} pixels")
        return image_CHW, torch.from_numpy(_labels(stored_HW, label_of))
    except DecodeError as error:
        raise MapError(pair.map, str(error)) from None


def _labels(stored_HW: NDArray[np.integer], label_of: Mapping[int, int]) -> NDArray[np.uint8]:
    """Raises DecodeError on a number that is no class."""
    table_V = np.full(_VALUES, _NO_CLASS, np.int16)
    table_V[list(label_of)] = list(label_of.values())
    labels_HW = table_V[stored_HW.astype(np.uint16)]
    wrong = np.argwhere(labels_HW == _NO_CLASS)
    if len(wrong):
        row, column = wrong[0]
        raise DecodeError(
            f"the map has {stored_HW[row, column]} in row {row}, column {column}; "
            f"expected one of {_ranges(sorted(label_of))}"
        )
    return labels_HW.astype(np.uint8)


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as `0 to 2, 5`."""
    starts = [k for k in range(len(numbers)) if k == 0 or numbers[k] != numbers[k - 1] + 1]
    runs = [(numbers[start], numbers[end - 1]) for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True)]
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def image_names(folder: Path) -> list[str]:
    """The names of the images that lie right in a folder, sorted; other files are left out. Raises UserError."""
    return sorted(entry.name for entry in listed(folder) if is_image(entry.name))
