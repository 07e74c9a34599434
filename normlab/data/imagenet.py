"""ImageNet (ILSVRC 2012) as folders: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG."""

import math
import os
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from normlab.data.augment import (
    CROP_AREA,
    CROP_RATIO,
    chain,
    resize_center_crop,
    resized_crop_flip,
    to_bytes,
)
from normlab.data.dataset import SPLITS, check_split, missing
from normlab.data.download import one_line
from normlab.data.folder import ImageFiles, class_names, folder_problems, scan, scan_complete
from normlab.data.splits import training_fraction
from normlab.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the training split, in [0, 1], as is customary
_CLASSES, _COUNTS = 1000, {"train": 1_281_167, "val": 50_000}
_ARCHIVES = "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"


class ImageNet(ImageFiles):
    """ImageNet with the ResNet recipe, or any two folders of the same classes in this layout.

    Seed 000, Sec. 4.1.1 (and 002) reduces images from 224x224 to 64x64: `size=64`, which applies the whole recipe,
    crops and the 256/224 of evaluation included, at that size. Its half of the training images is `fraction=0.5`;
    how the paper draws it is not stated, here it is a fixed half of every class.

    Args:
        split: "train" or "val".
        seed: of the augmentation.
        root: folder with train and val.
        size: side of the images in pixels.
        augment: False trains on the evaluation transform.
        fraction: of the training split, in (0, 1].
        on_error: an image that cannot be decoded stops the run, or skip does without it.

    Raises:
        UserError: folders are missing, empty or differ in their classes, or there is no such split.
    """

    mean, std = MEAN, STD

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/imagenet",
        size: Annotated[int, Ge(1), Le(2**12)] = 224,
        augment: bool = True,
        fraction: Annotated[float, Gt(0), Le(1)] = 1.0,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        check_split(split)
        train, val = (_folder(root, name) for name in SPLITS)
        if differing := set(class_names(train)) ^ set(class_names(val)):
            raise UserError(f"{root}: {_not_in_both(min(differing))}")
        folder = train if split == "train" else val
        found = scan_complete(folder)

        members = training_fraction(found.labels_N, split, fraction)
        self.num_classes = len(found.classes)
        self.shape = (3, size, size)
        super().__init__(
            split,
            seed,
            folder,
            [found.files[i] for i in members],
            found.labels_N[members],
            on_error,
            least_side=math.ceil(size / math.sqrt(CROP_AREA[0] * CROP_RATIO[0])),  # the smallest crop keeps its pixels
            eval_transform=chain(resize_center_crop(size), to_bytes()),
            train_transform=chain(resized_crop_flip(size), to_bytes()) if augment and split == "train" else None,
        )

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Unpack the three archives that the user put into root; ImageNet has no open download."""
        import torchvision

        try:
            for split in SPLITS:
                torchvision.datasets.ImageNet(root, split=split)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"ImageNet could not be unpacked ({one_line(error)}); "
                f"put {_ARCHIVES} from image-net.org into {root} and run this again"
            ) from None

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        problems, classes = [], []
        for split in SPLITS:
            try:
                folder = _folder(root, split)
                found = scan(folder)
            except UserError as error:
                problems.append(str(error))
                continue
            classes.append(set(found.classes))
            problems += folder_problems(folder, found, _CLASSES, _COUNTS[split])
        if len(classes) == len(SPLITS):
            problems += [f"{root}: {_not_in_both(name)}" for name in sorted(classes[0] ^ classes[1])]
        return problems


def _not_in_both(name: str) -> str:
    return f"class '{name}' is not in both train and val"


def _folder(root: str | Path, split: str) -> Path:
    folder = Path(root) / split
    if not os.path.isdir(folder):
        raise missing(f"folder '{split}'", Path(root), "imagenet", root)
    return folder
