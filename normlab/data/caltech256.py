"""Caltech-256 as its folder 256_ObjectCategories, with one folder per class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from normlab.data.augment import chain, pad_crop_flip, resize, to_bytes
from normlab.data.dataset import check_split, missing
from normlab.data.download import download
from normlab.data.folder import ImageFiles, folder_problems
from normlab.data.imagenet import MEAN, STD
from normlab.data.scan import ClassFolders, complete, scan
from normlab.data.splits import held_out, training_fraction
from normlab.data.stored import first_existing
from normlab.errors import UserError

_FOLDER, _CLUTTER = "256_ObjectCategories", "257.clutter"
_CLASSES, _COUNT = 256, 29_780  # HN says 30,607 images: that is with the 827 of the clutter folder


class Caltech256(ImageFiles):
    """Caltech-256 without clutter, a fixed fifth of every class held out.

    HN, Sec. 4.3 states 224x224 images, 80% for training, one channel copied to three, and otherwise CIFAR's
    settings. How it resizes, splits and pads is not stated. Here: both sides are resized, then 2 zeros go on each
    side before the random crop, and a flip; the channels are normalised by ImageNet's mean and std.

    Args:
        split: "train" or "val".
        seed: of the augmentation.
        root: folder with 256_ObjectCategories.
        size: side of the images in pixels.
        padding: zeros on each side before the random crop.
        augment: False trains on the evaluation transform.
        fraction: of the training split, in (0, 1].
        on_error: an image that cannot be decoded stops the run, or skip does without it.

    Raises:
        UserError: folders are missing or empty, or there is no such split.
    """

    mean, std = MEAN, STD
    folders = ("caltech256/256_ObjectCategories", "256_ObjectCategories")
    counts: ClassVar = {"train": 23_824, "val": 5_956}  # four fifths and one, but for the rounding in each class

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/caltech256",
        size: Annotated[int, Ge(1), Le(2**12)] = 224,
        padding: Annotated[int, Ge(0), Le(2**12)] = 2,
        augment: bool = True,
        fraction: Annotated[float, Gt(0), Le(1)] = 1.0,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        check_split(split)
        folder = _folder(root)
        found = complete(folder, _scan(folder))
        members = held_out(found.labels_N, split, train_share=0.8)
        members = members[training_fraction(found.labels_N[members], split, fraction)]
        self.num_classes = len(found.classes)
        self.shape = (3, size, size)
        to_size = resize(size)
        training = chain(to_bytes, to_size, pad_crop_flip(padding, size)) if augment and split == "train" else None
        super().__init__(
            split,
            seed,
            folder,
            [found.files[i] for i in members],
            found.labels_N[members],
            on_error,
            least_side=2 * size,
            eval_transform=chain(to_bytes, to_size),
            train_transform=training,
        )

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().described(settings) | {"num_classes": _CLASSES}

    @classmethod
    def prepare(cls, root: Path) -> None:
        download(cls.__name__, root, archives="256_ObjectCategories.tar", into=root / "caltech256")

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        try:
            folder = _folder(root)
            found = _scan(folder)
        except UserError as error:
            return [str(error)]
        return folder_problems(folder, found, _CLASSES, _COUNT)


def _folder(root: str | Path) -> Path:
    folder = first_existing(root, *Caltech256.folders)
    if folder.name != _FOLDER:
        raise missing(f"folder {_FOLDER}", folder, "caltech256", root)
    return folder


def _scan(folder: Path) -> ClassFolders:
    """What lies right in the class folders; the archive has a stray folder inside one that is no part of the set."""
    return scan(folder, skip=_CLUTTER, nested=False)
