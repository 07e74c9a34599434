"""MNIST from its IDX files, packed (.gz) or not."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.augment import chain, normalize, resize
from normlab.data.dataset import (
    SPLITS,
    ImageDataset,
    check,
    count_problem,
    first_existing,
    missing,
    wrong_labels,
)
from normlab.data.download import download
from normlab.data.splits import training_fraction
from normlab.errors import UserError

_COUNTS = {"train": 60_000, "val": 10_000}
_PREFIX = {"train": "train", "val": "t10k"}
_MEAN, _STD = (0.1307,), (0.3081,)  # of the training split's pixels, scaled to [0, 1]


class MNIST(ImageDataset):
    """Grey 28x28 digits, without augmentation (seed 004, Sec. 4.6 states none).

    Args:
        split: "train" or "val", MNIST's test set.
        seed: unused, there is no augmentation.
        root: folder with the four files, or with torchvision's MNIST/raw.
        size: side in pixels, resized bilinearly.
        fraction: of the training split, in (0, 1].

    Raises:
        UserError: a file is missing or is not what it should be, or an argument is out of its range.
    """

    num_classes = 10

    def __init__(self, split: str, seed: int, *, root: str = "data/mnist", size: int = 28, fraction: float = 1.0):
        check(split, size)
        images_NHW, labels_N = read_split(root, split)
        members = training_fraction(labels_N, split, fraction)
        self.images_NCHW = torch.from_numpy(images_NHW[members, None])
        self.shape = (1, size, size)
        super().__init__(seed, labels_N[members], eval_transform=chain(resize(size), normalize(_MEAN, _STD)))

    def read(self, index: int) -> Tensor:
        return self.images_NCHW[index]

    @classmethod
    def prepare(cls, root: Path) -> None:
        download(cls.__name__, root, archives="its four .gz files", into=root / "MNIST" / "raw")

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        problems = []
        for split in SPLITS:
            try:
                images_NHW, _ = read_split(root, split)
            except UserError as error:
                problems.append(f"{split}: {error}")
                continue
            problems += count_problem(split, _COUNTS[split], len(images_NHW))
        return problems


def read_split(root: str | Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, H, W) and labels (N,) of a split. Raises UserError when files are missing or do not fit."""
    folder = first_existing(root, "MNIST/raw", "raw")
    arrays = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        name = f"{_PREFIX[split]}-{kind}"
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
        if path is None:
            raise missing(f"{name} or {name}.gz", folder, "mnist", root)
        arrays.append(read_idx(path))
    images_NHW, labels_N = arrays[0], arrays[1].astype(np.int64)
    if images_NHW.ndim != 3 or labels_N.shape != images_NHW.shape[:1]:
        raise UserError(f"{folder} has images {images_NHW.shape} and labels {labels_N.shape} for '{split}'")
    if wrong := wrong_labels(labels_N, MNIST.num_classes):
        raise UserError(f"{folder} has labels {wrong} for '{split}', not in 0..{MNIST.num_classes - 1}")
    return images_NHW, labels_N


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The bytes of an IDX file, in the shape its header gives. Raises UserError when it is not one."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, dimensions = int.from_bytes(content[:2]), content[2], content[3]
        if zero or kind != 8:  # 8: unsigned bytes
            raise ValueError("its first bytes are not those of an IDX file of bytes")
        shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise UserError(f"{path} cannot be read as IDX data: {error}") from None
