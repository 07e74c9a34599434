"""ImageNet (ILSVRC 2012) as folders: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG; and Tiny ImageNet as it is unpacked."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
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
from normlab.data.folder import ImageFiles, folder_problems
from normlab.data.scan import ClassFolders, LeftOut, class_names, complete, is_image, listed, say, scan
from normlab.data.splits import training_fraction
from normlab.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the training split, in [0, 1], as is customary
_CLASSES = 1000
_TINY_LABELS, _TINY_IMAGES = "val_annotations.txt", "images"  # of Tiny ImageNet's val, which has no class folders
_MOST_BYTES = 2**26  # of _TINY_LABELS: Tiny ImageNet's own has 0.3 MB
_ARCHIVES = "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"


class ImageNet(ImageFiles):
    """ImageNet with the ResNet recipe, or any two folders of the same classes in this layout, or in Tiny ImageNet's.

    Distinct, Sec. 4.1.1 (and SN-TPAMI) reduces images from 224x224 to 64x64: `size=64`, which applies the whole recipe,
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
    files = ("train", "val")
    counts: ClassVar = {"train": 1_281_167, "val": 50_000}

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
        if differing := set(_classes(train)) ^ set(_classes(val)):
            raise UserError(f"{root}: {_not_in_both(min(differing))}")
        folder = train if split == "train" else val
        found = complete(folder, _scan(folder))

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
            eval_transform=chain(to_bytes, resize_center_crop(size)),
            train_transform=chain(to_bytes, resized_crop_flip(size)) if augment and split == "train" else None,
        )

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().described(settings) | {"num_classes": _CLASSES}

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
                found = _scan(folder)
            except UserError as error:
                problems.append(str(error))
                continue
            classes.append(set(found.classes))
            problems += folder_problems(folder, found, _CLASSES, cls.counts[split])
        if len(classes) == len(SPLITS) and all(classes):
            problems += [f"{root}: {_not_in_both(name)}" for name in sorted(classes[0] ^ classes[1])]
        return problems


def _not_in_both(name: str) -> str:
    return f"class '{name}' is not in both train and val"


def _classes(folder: Path) -> list[str]:
    """The names of the classes of a split. Raises UserError when there are less than two."""
    names = class_names(folder)
    if len(names) > 1:
        return names
    return complete(folder, _scan(folder)).classes


def _scan(folder: Path) -> ClassFolders:
    """The images of a split, in either layout."""
    if class_names(folder) == [_TINY_IMAGES] and os.path.isfile(folder / _TINY_LABELS):
        return _scan_tiny(folder)
    return scan(folder)


def _scan_tiny(folder: Path) -> ClassFolders:
    """The images of Tiny ImageNet's val, whose classes stand in a file. Raises UserError when it is none."""
    path = folder / _TINY_LABELS
    classes_by_name: dict[str, str] = {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes and is no list of Tiny ImageNet's")
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from None
    for number, line in enumerate(lines, start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if not name or not wnid or "/" in name or "\0" in name or name in classes_by_name:
            raise UserError(f"{path}, line {number}: expected an image that no line before has, a tab and a class")
        classes_by_name[name] = wnid
    left_out = LeftOut()
    for entry in listed(folder / _TINY_IMAGES):
        if entry.name not in classes_by_name:
            reason = f"not in {_TINY_LABELS}" if is_image(entry.name) else "no image in its name"
            left_out.add(reason, f"{_TINY_IMAGES}/{entry.name}")
    say(folder, left_out)
    classes = sorted(set(classes_by_name.values()))
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    members = sorted((numbers[wnid], f"{_TINY_IMAGES}/{name}") for name, wnid in classes_by_name.items())
    return ClassFolders(classes, [name for _, name in members], np.array([k for k, _ in members], np.int64), [])


def _folder(root: str | Path, split: str) -> Path:
    folder = Path(root) / split
    if not os.path.isdir(folder):
        raise missing(f"folder '{split}'", Path(root), "imagenet", root)
    return folder
