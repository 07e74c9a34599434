"""Image files without a label: COCO's, for networks that make images of images."""

import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le
from torch import Tensor

from normlab.data.augment import resize, to_bytes
from normlab.data.dataset import SampleError, Samples, check_split, count_problem, missing
from normlab.data.decode import DecodeError, decode
from normlab.data.download import unpack
from normlab.data.folder import decoding_problems
from normlab.data.imagenet import MEAN, STD
from normlab.data.maps import image_names
from normlab.data.stored import first_existing
from normlab.errors import UserError

_YEARS = ("2017", "2014", "")  # of COCO; or any folders train and val


class Pictures(Samples[None]):
    """COCO's images, or those of any two folders. `dataset[epoch, index]` is (image, None), resized on both sides.

    Nothing is drawn, so that a training image is the same in each epoch (SN-TPAMI, Sec. 4.6: "we resize each image to
    256x256").

    Args:
        split: "train" or "val".
        seed: unused, there is no augmentation.
        root: folder with train2017 and val2017, with train2014 and val2014, or with train and val.
        size: side of a training image.
        val_size: side of one for validation (SN-TPAMI, Sec. 4.6: 512).
        val_length: images for validation, evenly spaced among all by name; null: all.
        on_error: a file that cannot be used stops the run, or skip does without its sample.

    Raises:
        UserError: a folder is missing or has no image, or there is no such split.
    """

    mean, std = MEAN, STD
    folders = ("coco", "coco2017", "COCO2017")
    files = ("train2017", "val2017", "train2014", "val2014", "train", "val")
    counts: ClassVar = {"train": 118_287, "val": 5_000}

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/coco",
        size: Annotated[int, Ge(4), Le(2**13)] = 256,
        val_size: Annotated[int, Ge(4), Le(2**13)] = 512,
        val_length: Annotated[int, Ge(1)] | None = 50,
        on_error: Literal["stop", "skip"] = "stop",
    ) -> None:
        check_split(split)
        self.split, self.seed, self.on_error = split, seed, on_error
        side = size if split == "train" else val_size
        self.shape, self.resize = (3, side, side), resize(side)
        self.folder = _folder(first_existing(root, *self.folders), split, root)
        names = image_names(self.folder)
        if not names:
            raise UserError(f"{self.folder} has no image")
        if split == "val" and val_length is not None and val_length < len(names):
            names = [names[k * len(names) // val_length] for k in range(val_length)]
        self.files_N = np.array([os.fsencode(name) for name in names])  # one array: see ImageFiles

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Unpack the archives that the user put into root."""
        unpack(("train2017.zip", "val2017.zip"), root, into=root, source="COCO's page (2017)")

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        problems: list[str] = []
        for split, count in cls.counts.items():
            try:
                folder = _folder(first_existing(root, *cls.folders), split, root)
                names = image_names(folder)
            except UserError as error:
                problems.append(str(error))
                continue
            problems += count_problem(split, count, len(names)) if folder.name.endswith(_YEARS[0]) else []
            problems += decoding_problems(decode, [folder / name for name in names], split)
        return problems

    def __len__(self) -> int:
        return len(self.files_N)

    def name(self, index: int) -> str:
        """Of an image's file, without what follows the dot where no other file is called so."""
        file = Path(os.fsdecode(self.files_N[index]))
        return file.name if self._stems[file.stem] > 1 else file.stem

    @cached_property
    def _stems(self) -> Counter[str]:
        return Counter(Path(os.fsdecode(file)).stem for file in self.files_N)

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, None]:
        file = os.fsdecode(self.files_N[stored])
        try:
            image = decode(self.folder / file, self.shape[1])
        except DecodeError as error:
            raise SampleError(self.split, stored, self.folder, file, str(error)) from None
        return self.resize(to_bytes(image)), None


def _folder(inside: Path, split: str, root: Path | str) -> Path:
    """Raises UserError where none of the folders is there."""
    for year in _YEARS:
        if os.path.isdir(inside / f"{split}{year}"):
            return inside / f"{split}{year}"
    raise missing(f"folder {split}{_YEARS[0]}", inside, "coco_images", root)
