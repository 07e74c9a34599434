"""MNIST from its IDX files, packed (.gz) or not."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from normlab.data.arrays import Part, StoredArrays, label_problems
from normlab.data.augment import resize
from normlab.data.dataset import SPLITS, check_split, count_problem, missing
from normlab.data.download import download, one_line
from normlab.data.stored import first_existing
from normlab.errors import UserError

_SIDE = 28
_MOST_IMAGES = 300_000  # in a file: more than EMNIST's digits, in the same format
_PREFIX = {"train": "train", "val": "t10k"}
_MEAN, _STD = (0.1307,), (0.3081,)  # of the training split's pixels, scaled to [0, 1]


class MNIST(StoredArrays):
    """Grey 28x28 digits, without augmentation (HN, Sec. 4.6 states none).

    Args:
        split: "train" or "val", MNIST's test set.
        seed: unused, there is no augmentation.
        root: folder with the four files, or with torchvision's MNIST/raw.
        size: side in pixels, resized bilinearly.
        fraction: of the training split, in (0, 1].
        on_error: a wrong label stops the run, or skip does without its sample.

    Raises:
        UserError: a file is missing or is not what it should be, or there is no such split.
    """

    num_classes = 10
    mean, std = _MEAN, _STD
    folders = ("MNIST/raw", "raw")
    files = ("*-ubyte", "*-ubyte.gz")
    counts: ClassVar = {"train": 60_000, "val": 10_000}

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/mnist",
        size: Annotated[int, Ge(1), Le(2**12)] = 28,
        fraction: Annotated[float, Gt(0), Le(1)] = 1.0,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        check_split(split)
        folder, part = read_split(root, split)
        self.shape = (1, size, size)
        evaluation = resize(size)
        super().__init__(split, seed, folder, [part], fraction, on_error, eval_transform=evaluation)

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"shape": (1, settings["size"], settings["size"])}

    @classmethod
    def prepare(cls, root: Path) -> None:
        download(cls.__name__, root, archives="its four .gz files", into=root / "MNIST" / "raw")

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        problems = []
        for split in SPLITS:
            try:
                folder, part = read_split(root, split)
            except UserError as error:
                problems.append(f"{split}: {error}")
                continue
            problems += label_problems(folder, part, cls.num_classes)
            problems += count_problem(split, cls.counts[split], len(part.labels_N))
        return problems


def read_split(root: str | Path, split: str) -> tuple[Path, Part]:
    """The folder of the files and what they hold of a split, its labels not looked at.

    Raises UserError when files are missing, unreadable or do not fit together.
    """
    folder = first_existing(root, *MNIST.folders)
    images_path, labels_path = (
        _find(folder, f"{_PREFIX[split]}-{kind}", root) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    images_NHW, labels_N = read_idx(images_path), read_idx(labels_path)
    if images_NHW.shape[1:] != (_SIDE, _SIDE) or labels_N.shape != images_NHW.shape[:1]:
        raise UserError(
            f"{images_path} and {labels_path.name} have images {images_NHW.shape} and labels {labels_N.shape}, "
            f"not (N, {_SIDE}, {_SIDE}) and (N,)"
        )
    return folder, Part(labels_path.name, images_NHW[:, None], labels_N.astype(np.int64))


def _find(folder: Path, name: str, root: str | Path) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if os.path.isfile(path):
            return path
    raise missing(f"{name} or {name}.gz", folder, "mnist", root)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The bytes of an IDX file, in the shape its header gives. Raises UserError when it is not one."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read_idx(file)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as IDX data: {one_line(error)}; "
            "without it, `normlab data prepare mnist` gets it anew"
        ) from None


def _read_idx(file: BufferedIOBase) -> NDArray[np.uint8]:
    """Takes from the file no more than its header says, and that is what MNIST may hold."""
    start = file.read(4)
    if start[:3] != b"\0\0\x08" or start[3:] not in (b"\1", b"\3"):  # 8: unsigned bytes; then the dimensions
        raise ValueError("its first bytes are not those of MNIST's files")
    dimensions = start[3]
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise ValueError("it ends within its header")
    shape = struct.unpack(f">{dimensions}I", header)
    if shape[0] > _MOST_IMAGES or math.prod(shape[1:]) > _SIDE**2:
        raise ValueError(f"it is to hold {shape}, and at most {_MOST_IMAGES:,} images of {_SIDE} x {_SIDE} are read")
    content = file.read(math.prod(shape))
    if len(content) < math.prod(shape):
        raise ValueError(f"it is to hold {shape}, and ends after {len(content):,} bytes of that")
    if file.read(1):  # this also has gzip compare its checksum
        raise ValueError(f"it is to hold {shape}, and goes on behind that")
    return np.frombuffer(content, np.uint8).reshape(shape)
