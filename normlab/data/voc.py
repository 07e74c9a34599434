"""PASCAL VOC 2012 with the further annotations of SBD: SegmentationClassAug."""

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from normlab.data.dataset import VOID, missing
from normlab.data.download import download, one_line, unpack
from normlab.data.imagenet import MEAN, STD
from normlab.data.maps import MapFiles, Pair
from normlab.data.stored import first_existing
from normlab.errors import UserError

_MAPS = "SegmentationClassAug"
_MOST_BYTES = 2**22  # of a list
_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class VOC(MapFiles):
    """VOC: 10,582 training images (`trainaug`) and 1,449 for validation, 20 classes and background; 255 is void.

    WS, Sec. 3.5 crops 513x513; sizes by factors of 0.5 to 2 are those of the DeepLab recipe that it refers to.

    Args:
        split: "train" or "val".
        seed: of the augmentation.
        root: folder with VOCdevkit/VOC2012 or VOC2012, or that folder itself.
        scale: factor by which training images are resized, least and most.
        crop: side of a training image.
        flip: whether half of them are flipped.
        on_error: a file that cannot be used stops the run, or skip does without its sample.

    Raises:
        UserError: folders or lists are missing or empty, or there is no such split.
    """

    mean, std = MEAN, STD
    folders = ("VOCdevkit/VOC2012", "VOC2012")
    files = ("JPEGImages", "SegmentationClassAug", "ImageSets", "trainaug.txt")
    counts: ClassVar = {"train": 10_582, "val": 1_449}
    classes = _CLASSES
    label_of: ClassVar = {label: label for label in (*range(len(_CLASSES)), VOID)}

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/voc",
        scale: tuple[Annotated[float, Gt(0), Le(16)], Annotated[float, Gt(0), Le(16)]] = (0.5, 2.0),
        crop: Annotated[int, Ge(1), Le(2**13)] = 513,
        flip: bool = True,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        super().__init__(split, seed, root, crop=crop, flip=flip, factors=scale, on_error=on_error)

    @classmethod
    def pairs(cls, folder: Path, split: str, root: Path | str) -> list[Pair]:
        for name in ("JPEGImages", _MAPS):
            if not os.path.isdir(folder / name):
                raise missing(f"folder {name}", folder, "voc", root)
        return [Pair(f"JPEGImages/{name}.jpg", f"{_MAPS}/{name}.png") for name in _listed(folder, split)]

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Get the images where they are not there; unpack the maps, which the user put into root."""
        if not os.path.isdir(first_existing(root, *cls.folders) / "JPEGImages"):
            download("VOCSegmentation", root, archives="VOCtrainval_11-May-2012.tar", into=root)
        folder = first_existing(root, *cls.folders)
        if not os.path.isdir(folder / _MAPS):
            unpack([f"{_MAPS}.zip"], root, into=folder, source="a page of DeepLab or of SBD")


def _listed(folder: Path, split: str) -> list[str]:
    """The names in the list of a split. Raises UserError."""
    place = "ImageSets/Segmentation"
    candidates = (
        [folder / place / "trainaug.txt", folder / "trainaug.txt"] if split == "train" else [folder / place / "val.txt"]
    )
    path = next((path for path in candidates if path.is_file()), candidates[0])
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes and is no list of images")
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there; it lists the images of {split}, a name as 2007_000032 in a line"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from None
    names = [PurePosixPath(line.split()[0]).stem for line in lines if line.strip()]  # also of a list with paths
    if not names:
        raise UserError(f"{path} lists no image")
    return names
