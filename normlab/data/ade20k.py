"""ADE20K as the scene parsing benchmark has it: ADEChallengeData2016 with 150 classes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from normlab.data.dataset import VOID, missing
from normlab.data.download import unpack
from normlab.data.imagenet import MEAN, STD
from normlab.data.maps import MapFiles, Pair, image_names
from normlab.data.stored import first_existing

_CLASSES = 150
_ARCHIVE, _SOURCE = "ADEChallengeData2016.zip", "the scene parsing benchmark's page"
_NAMES = "objectInfo150.txt"  # in the archive: a class in a line, its number first, its names last
_MOST_SIDE = 1000  # pixels, as in the released code


class ADE20K(MapFiles):
    """ADE20K: 20,210 training and 2,000 validation images; what is none of the 150 classes (0 in a map) is void.

    Distinct and SN-TPAMI train on 450x450. The released code's shorter sides are 300 to 575, as here;
    `short_side=[450,450]` is one size alone.

    Args:
        split: "train" or "val".
        seed: of the augmentation.
        root: folder with ADEChallengeData2016, or that folder itself.
        short_side: pixels of the shorter side in training, least and most; the longer one has 1,000 at most.
        crop: side of a training image.
        flip: whether half of them are flipped.
        on_error: a file that cannot be used stops the run, or skip does without its sample.

    Raises:
        UserError: folders are missing or empty, or there is no such split.
    """

    mean, std = MEAN, STD
    folders = ("ADEChallengeData2016",)
    files = ("images", "annotations")
    counts: ClassVar = {"train": 20_210, "val": 2_000}
    label_of: ClassVar = {0: VOID} | {stored: stored - 1 for stored in range(1, _CLASSES + 1)}

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/ade20k",
        short_side: tuple[Annotated[int, Ge(1), Le(2**13)], Annotated[int, Ge(1), Le(2**13)]] = (300, 575),
        crop: Annotated[int, Ge(1), Le(2**13)] = 450,
        flip: bool = True,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        self.classes = _names(first_existing(root, *self.folders))
        super().__init__(
            split, seed, root, crop=crop, flip=flip, short_side=short_side, most=_MOST_SIDE, on_error=on_error
        )

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        names = tuple(str(stored) for stored in range(1, _CLASSES + 1))
        return super().described(settings) | {"classes": names, "num_classes": len(names)}

    @classmethod
    def pairs(cls, folder: Path, split: str, root: Path | str) -> list[Pair]:
        name = {"train": "training", "val": "validation"}[split]
        images = image_names(folder / "images" / name) if os.path.isdir(folder / "images" / name) else []
        if not images:
            raise missing(f"images in images/{name}", folder, "ade20k", root)
        return [Pair(f"images/{name}/{image}", f"annotations/{name}/{Path(image).stem}.png") for image in images]

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Unpack the archive that the user put into root."""
        unpack([_ARCHIVE], root, into=root, source=_SOURCE)


def _names(folder: Path) -> tuple[str, ...]:
    """Of the classes, as the archive has them; their numbers where it does not."""
    names = {stored: str(stored) for stored in range(1, _CLASSES + 1)}
    try:
        lines = (folder / _NAMES).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        number, *_, last = [field.strip() for field in line.split("\t") if field.strip()] or ["", ""]
        if number.isdecimal() and int(number) in names:
            names[int(number)] = last.partition(",")[0]
    return tuple(names.values())
