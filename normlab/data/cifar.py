"""CIFAR-10 and CIFAR-100 from the files of their Python version."""

import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.augment import chain, normalize, pad_crop_flip, resize
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

_COUNTS = {"train": 50_000, "val": 10_000}
_SIDE = 32
_UNREADABLE = (pickle.UnpicklingError, EOFError, LookupError, AttributeError, ImportError, TypeError, ValueError)


class CIFAR(ImageDataset):
    """What both sets share; the subclasses name the keys of their configuration and their constants.

    Training images are zero-padded on each side, cropped at random to 32x32 and flipped at random, then normalised
    per channel by the mean and std of the training split (seed 004, Sec. 4.1). Resizing comes after the crop.
    """

    label_key: ClassVar[str]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    def __init__(self, split: str, seed: int, *, root: str, size: int, padding: int, augment: bool, fraction: float):
        check(split, size, padding)
        batches = [self._read_batch(path, root) for path, _ in self._files(root, split)]
        images_NCHW = np.concatenate([images for images, _ in batches])
        labels_N = np.concatenate([labels for _, labels in batches])
        members = training_fraction(labels_N, split, fraction)
        self.images_NCHW = torch.from_numpy(images_NCHW[members])
        self.shape = (3, size, size)
        evaluation = chain(resize(size), normalize(self.mean, self.std))
        training = chain(pad_crop_flip(padding, _SIDE), evaluation) if augment and split == "train" else None
        super().__init__(seed, labels_N[members], eval_transform=evaluation, train_transform=training)

    def read(self, index: int) -> Tensor:
        return self.images_NCHW[index]

    @classmethod
    def prepare(cls, root: Path) -> None:
        source = cls._torchvision()
        download(cls.__name__, root, archives=f"{source.filename} ({source.url})", into=root)

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        from normlab.vision import torchvision

        problems = []
        for split in SPLITS:
            found = 0
            for path, md5 in cls._files(root, split):
                try:
                    _, labels_N = cls._read_batch(path, root)
                except UserError as error:
                    problems.append(f"{split}: {error}")
                    continue
                found += len(labels_N)
                if not torchvision.datasets.utils.check_integrity(path, md5):
                    problems.append(f"{path}: its MD5 checksum is not {md5}")
            problems += count_problem(split, _COUNTS[split], found)
        return problems

    @classmethod
    def _torchvision(cls) -> Any:
        from normlab.vision import torchvision

        return getattr(torchvision.datasets, cls.__name__)

    @classmethod
    def _files(cls, root: str | Path, split: str) -> list[tuple[Path, str]]:
        """The files of a split and their MD5 checksums."""
        source = cls._torchvision()
        folder = first_existing(root, source.base_folder)
        return [(folder / name, md5) for name, md5 in (source.train_list if split == "train" else source.test_list)]

    @classmethod
    def _read_batch(cls, path: Path, root: str | Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (N, C, H, W) and labels (N,) of a file. Raises UserError when it is missing or unreadable."""
        if not path.is_file():
            raise missing(path.name, path.parent, cls.__name__.lower(), root)
        try:
            with path.open("rb") as file:
                batch = _ArrayUnpickler(file, encoding="latin1").load()
            images_NCHW = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, _SIDE, _SIDE)
            labels_N = np.asarray(batch[cls.label_key], dtype=np.int64)
            if labels_N.shape != images_NCHW.shape[:1]:
                raise ValueError(f"{len(images_NCHW)} images and {len(labels_N)} labels")
            if wrong := wrong_labels(labels_N, cls.num_classes):
                raise ValueError(f"labels {wrong} are not in 0..{cls.num_classes - 1}")
        except _UNREADABLE as error:
            raise UserError(f"{path} is not a CIFAR batch ({type(error).__name__}: {error})") from None
        return images_NCHW, labels_N


class CIFAR10(CIFAR):
    """CIFAR-10: 50,000 training and 10,000 validation (its test set) images in 10 classes.

    Args:
        split: "train" or "val".
        seed: of the augmentation.
        root: folder with cifar-10-batches-py, or with the batches themselves.
        size: side in pixels, resized bilinearly.
        padding: zeros on each side before the random crop; 2 gives the 36x36 of seed 004.
        augment: False trains on the evaluation transform.
        fraction: of the training split, in (0, 1].

    Raises:
        UserError: a file is missing or is not what it should be, or an argument is out of its range.
    """

    num_classes = 10
    label_key = "labels"
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/cifar10",
        size: int = 32,
        padding: int = 2,
        augment: bool = True,
        fraction: float = 1.0,
    ):
        super().__init__(split, seed, root=root, size=size, padding=padding, augment=augment, fraction=fraction)


class CIFAR100(CIFAR):
    """CIFAR-100, with its 100 fine classes. Arguments and errors as in CIFAR10; the folder is cifar-100-python."""

    num_classes = 100
    label_key = "fine_labels"
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/cifar100",
        size: int = 32,
        padding: int = 2,
        augment: bool = True,
        fraction: float = 1.0,
    ):
        super().__init__(split, seed, root=root, size=size, padding=padding, augment=augment, fraction=fraction)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain Python values and refuses everything else, so no file can run code."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # the files were written by an old numpy
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


_ARRAY_PARTS = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
