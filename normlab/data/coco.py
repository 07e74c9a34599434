"""COCO 2017: images with boxes, masks and classes of 80 kinds of objects."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normlab.data.augment import sample_rng
from normlab.data.dataset import SampleError, Samples, check_split, missing
from normlab.data.decode import DecodeError, decode
from normlab.data.download import one_line, unpack
from normlab.data.folder import decoding_problems
from normlab.data.imagenet import MEAN, STD
from normlab.data.stored import first_existing
from normlab.errors import UserError
from normlab.reading import read_json

_CATEGORIES = 80  # that are labelled, of 91 numbers
_LEAST_SIDE = 0.01  # pixels of a box: the coordinates of less may be equal once they are rounded to float32
_ARCHIVES = ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip")
Target = dict[str, Any]


class Picture(NamedTuple):
    """An image and what is annotated in it; the annotations as JSON, which takes a tenth of the room of lists."""

    id: int
    file: str
    height: int
    width: int
    annotations: bytes


class COCO(Samples[Target]):
    """COCO 2017. `dataset[epoch, index]` is (float32 image (3, H, W), target), of the size that is stored.

    A target is as torchvision's detectors and COCO's code take it: boxes (M, 4) from corner to corner, labels (M,) that
    count from 1 without the gaps of COCO's own numbers, masks (M, H, W), area, iscrowd, image_id. Boxes are cut at the
    border of the image, and those without an area are left out.

    Args:
        split: "train" or "val".
        seed: of the augmentation.
        root: folder with annotations, train2017 and val2017.
        flip: whether half of the training images are flipped.
        empty: whether training images without an object (crowds do not count) are trained on.
        group: whether the images of a replica in training are all wider than tall, or none.
        on_error: a file that cannot be used stops the run, or skip does without its sample.

    Raises:
        UserError: files are missing, the annotations are none of COCO's, or there is no such split.
    """

    mean, std = MEAN, STD
    shape = (3, 480, 640)  # of most images
    folders = ("coco", "coco2017", "COCO2017")
    files = ("annotations", "train2017", "val2017")
    counts: ClassVar = {"train": 118_287, "val": 5_000}  # 1,021 of them are empty

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/coco",
        flip: bool = True,
        empty: bool = False,
        group: bool = True,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        check_split(split)
        self.split, self.seed, self.flip, self.on_error = split, seed, flip, on_error
        self.folder = first_existing(root, *self.folders)
        self.category_ids, names, pictures = _read(self.folder, split, root)
        self.classes = ("background", *names)
        self.num_classes = len(names)
        self.label_of = {category: label for label, category in enumerate(self.category_ids, start=1)}
        if split == "train" and not empty:
            pictures = [picture for picture in pictures if _has_object(picture)]
        self.pictures = pictures
        self.groups = [int(p.width > p.height) for p in pictures] if group and split == "train" else None

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"classes": ("background", *map(str, range(_CATEGORIES))), "num_classes": _CATEGORIES, "groups": None}

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Unpack the archives that the user put into root."""
        unpack(_ARCHIVES, root, into=root, source="COCO's page (2017)")

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        folder, problems = first_existing(root, *cls.folders), []
        for split, count in cls.counts.items():
            try:
                categories, _, pictures = _read(folder, split, root)
            except UserError as error:
                problems.append(str(error))
                continue
            if len(pictures) != count:
                problems.append(f"{folder}: expected {count} images of {split}, found {len(pictures)}")
            labels = {category: label for label, category in enumerate(categories, start=1)}
            problems += decoding_problems(partial(_check, folder, split, labels), pictures, split)
        return problems

    def __len__(self) -> int:
        return len(self.pictures)

    def image_id(self, index: int) -> int:
        """COCO's own number of an image."""
        return self.pictures[index].id

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, Target]:
        picture = self.pictures[stored]
        try:
            image_CHW, target = _sample(self.folder, self.split, self.label_of, picture)
        except DecodeError as error:
            file = f"{_images(self.split)}/{picture.file}"
            raise SampleError(self.split, stored, self.folder, file, str(error)) from None
        if epoch is None or not self.flip:
            return image_CHW, target
        with sample_rng(self.seed, epoch, index):
            return _flipped(image_CHW, target) if torch.rand(()) < 0.5 else (image_CHW, target)


def _images(split: str) -> str:
    return f"{split}2017"


def _read(folder: Path, split: str, root: Path | str) -> tuple[list[int], list[str], list[Picture]]:
    """Numbers and names of the categories, and the pictures in the order of their numbers. Raises UserError."""
    path = folder / "annotations" / f"instances_{split}2017.json"
    if not path.is_file():
        raise missing(f"annotations/{path.name}", folder, "coco", root)
    content = read_json(path)
    try:
        categories = sorted((int(row["id"]), str(row["name"])) for row in content["categories"])
        of_image: dict[int, list[dict[str, Any]]] = {int(row["id"]): [] for row in content["images"]}
        known = {number for number, _ in categories}
        for row in content["annotations"]:
            if int(row["category_id"]) not in known:
                raise UserError(
                    f"{path}: annotation {row['id']} is of category {row['category_id']}, which is not there"
                )
            of_image[int(row["image_id"])].append(
                {
                    "category_id": int(row["category_id"]),
                    "bbox": _numbers(row["bbox"], 4),
                    "area": _numbers([row["area"]], 1)[0],
                    "iscrowd": int(row.get("iscrowd", 0)),
                    "segmentation": row["segmentation"],
                }
            )
        pictures = [
            Picture(number, PurePosixPath(str(row["file_name"])).name, int(row["height"]), int(row["width"]),
                    json.dumps(of_image[number]).encode())
            for number, row in sorted((int(row["id"]), row) for row in content["images"])
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
        raise UserError(f"{path}: these are no annotations as COCO has them ({what})") from None
    if not categories or not pictures:
        raise UserError(f"{path}: it has no {'images' if categories else 'categories'}")
    return [number for number, _ in categories], [name for _, name in categories], pictures


def _numbers(values: Any, count: int) -> list[float]:
    """Raises TypeError or ValueError where they are no numbers, or not so many."""
    numbers = [float(value) for value in values]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected {count} finite number{'s' * (count > 1)}, found {numbers}")
    return numbers


def _has_object(picture: Picture) -> bool:
    rows = json.loads(picture.annotations)
    return any(not row["iscrowd"] and _corners(row["bbox"], picture) is not None for row in rows)


def _corners(bbox: Sequence[float], picture: Picture) -> list[float] | None:
    """Of a box within the image; None where nothing of it is, or next to nothing."""
    left, top, width, height = bbox
    corners = [max(left, 0.0), max(top, 0.0), min(left + width, picture.width), min(top + height, picture.height)]
    sides = corners[2] - corners[0], corners[3] - corners[1]
    return corners if min(sides) >= _LEAST_SIDE else None


def _check(folder: Path, split: str, label_of: Mapping[int, int], picture: Picture) -> None:
    """Raises DecodeError, with the file's path."""
    try:
        _sample(folder, split, label_of, picture)
    except DecodeError as error:
        raise DecodeError(f"{folder / _images(split) / picture.file}: {error}") from None


def _sample(folder: Path, split: str, label_of: Mapping[int, int], picture: Picture) -> tuple[Tensor, Target]:
    """Raises DecodeError."""
    image_HWC = np.array(decode(folder / _images(split) / picture.file))
    if image_HWC.shape[:2] != (picture.height, picture.width):
        height, width = image_HWC.shape[:2]
        raise DecodeError(f"it has {width} x {height} pixels, and its annotations {picture.width} x {picture.height}")
    rows = [(row, _corners(row["bbox"], picture)) for row in json.loads(picture.annotations)]
    kept = [(row, corners) for row, corners in rows if corners is not None]
    masks = [_mask(row["segmentation"], picture) for row, _ in kept]
    target = {
        "boxes": torch.tensor([corners for _, corners in kept], dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor([label_of[row["category_id"]] for row, _ in kept], dtype=torch.int64),
        "masks": torch.stack(masks) if masks else torch.zeros(0, picture.height, picture.width, dtype=torch.bool),
        "area": torch.tensor([row["area"] for row, _ in kept], dtype=torch.float32),
        "iscrowd": torch.tensor([row["iscrowd"] for row, _ in kept], dtype=torch.int64),
        "image_id": picture.id,
    }
    return torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous(), target


def _mask(segmentation: Any, picture: Picture) -> Tensor:
    """(H, W), of polygons, or of run lengths, packed or not. Raises DecodeError."""
    from faster_coco_eval import mask as coco_mask  # of the extra `detection`

    try:
        packed = segmentation
        if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
            packed = coco_mask.frPyObjects(segmentation, picture.height, picture.width)
        if isinstance(packed, list):
            packed = coco_mask.merge(packed)
        height, width = packed["size"]
        if (height, width) != (picture.height, picture.width):  # before room is made for its pixels
            raise DecodeError(f"it has {picture.width} x {picture.height} pixels, and a mask of it {width} x {height}")
        mask_HW = coco_mask.decode(packed)
    except DecodeError:
        raise
    except Exception as error:  # of C++, on whatever a file holds
        raise DecodeError(
            f"an annotation of it has no polygons and no run lengths ({one_line(error) or type(error).__name__})"
        ) from None
    return torch.from_numpy(mask_HW).bool()


def _flipped(image_CHW: Tensor, target: Target) -> tuple[Tensor, Target]:
    """From left to right."""
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image_CHW.shape[2]
    boxes = torch.stack([width - right, top, width - left, bottom], 1)
    return image_CHW.flip(2), target | {"boxes": boxes, "masks": target["masks"].flip(2)}
