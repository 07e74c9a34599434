"""Cityscapes with its fine annotations: leftImg8bit and gtFine."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from torchvision.datasets import Cityscapes as Published

from normlab.data.dataset import missing
from normlab.data.download import unpack
from normlab.data.imagenet import MEAN, STD
from normlab.data.maps import MapFiles, Pair, image_names
from normlab.data.scan import class_names
from normlab.errors import UserError

_IMAGE, _MAP = "_leftImg8bit.png", "_gtFine_labelIds.png"
_EVALUATED = sorted(
    (found for found in Published.classes if 0 <= found.train_id < 255), key=lambda found: found.train_id
)


class Cityscapes(MapFiles):
    """Cityscapes: 2,975 training and 500 validation images of 2048x1024 pixels, 19 classes, all else void.

    Its split "test", 1,525 images whose labels are withheld, has void maps. Distinct and SN-TPAMI crop 713x713; sizes
    by factors of 0.5 to 2 are those of the PSPNet recipe that they refer to.

    Args:
        split: "train", "val" or "test".
        seed: of the augmentation.
        root: folder with leftImg8bit and gtFine.
        scale: factor by which training images are resized, least and most.
        crop: side of a training image.
        flip: whether half of them are flipped.
        on_error: a file that cannot be used stops the run, or skip does without its sample.

    Raises:
        UserError: folders are missing or empty, or there is no such split.
    """

    mean, std = MEAN, STD
    files = ("leftImg8bit", "gtFine")
    counts: ClassVar = {"train": 2_975, "val": 500, "test": 1_525}
    classes = tuple(found.name for found in _EVALUATED)
    label_ids: ClassVar = tuple(found.id for found in _EVALUATED)  # of the classes, as a submission has them
    label_of: ClassVar = {found.id: found.train_id for found in Published.classes if found.id >= 0}

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/cityscapes",
        scale: tuple[Annotated[float, Gt(0), Le(16)], Annotated[float, Gt(0), Le(16)]] = (0.5, 2.0),
        crop: Annotated[int, Ge(1), Le(2**13)] = 713,
        flip: bool = True,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        super().__init__(split, seed, root, crop=crop, flip=flip, factors=scale, on_error=on_error)

    @classmethod
    def pairs(cls, folder: Path, split: str, root: Path | str) -> list[Pair]:
        images = folder / "leftImg8bit" / split
        try:
            cities = class_names(images)
        except UserError:
            cities = []
        found = [
            Pair(
                f"leftImg8bit/{split}/{city}/{name}",
                None if split == "test" else f"gtFine/{split}/{city}/{name.removesuffix(_IMAGE)}{_MAP}",
            )
            for city in cities
            for name in image_names(images / city)
            if name.endswith(_IMAGE)
        ]
        if not found:
            raise missing(f"leftImg8bit/{split}/CITY/*{_IMAGE}", folder, "cityscapes", root)
        return found

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Unpack the two archives that the user put into root."""
        archives = ["leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"]
        unpack(archives, root, into=root, source="cityscapes-dataset.com")
