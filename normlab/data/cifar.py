"""CIFAR-10 and CIFAR-100 from the files of their Python version."""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from normlab.data import pickled
from normlab.data.arrays import Part, StoredArrays, label_problems
from normlab.data.augment import chain, pad_crop_flip, resize
from normlab.data.dataset import SPLITS, OnError, check_split, count_problem, missing
from normlab.data.download import download, one_line
from normlab.data.stored import first_existing
from normlab.errors import UserError

_SIDE = 32
_MOST_IMAGES, _MOST_BYTES = 60_000, 300_000_000  # in a file; the largest, train of CIFAR-100, has 50,000 in 155 MB


class CIFAR(StoredArrays):
    """What both sets share; the subclasses name the keys of their configuration and their constants.

    Training images are zero-padded on each side, cropped at random to 32x32 and flipped at random, then normalised
    per channel by the mean and std of the training split (HN, Sec. 4.1). Resizing comes after the crop.
    """

    label_key: ClassVar[str]
    counts: ClassVar = {"train": 50_000, "val": 10_000}

    def __init__(
        self, split: str, seed: int, root: str, size: int, padding: int, augment: bool, fraction: float,
        on_error: OnError,
    ):  # fmt: skip
        check_split(split)
        folder, files = self._files(root, split)
        parts = [self._read_part(folder / name, root) for name, _ in files]
        self.shape = (3, size, size)
        evaluation = resize(size)
        training = chain(pad_crop_flip(padding, _SIDE), evaluation) if augment and split == "train" else None
        super().__init__(
            split, seed, folder, parts, fraction, on_error, eval_transform=evaluation, train_transform=training
        )

    @classmethod
    def prepare(cls, root: Path) -> None:
        source = cls._torchvision()
        download(cls.__name__, root, archives=f"{source.filename} ({source.url})", into=root)

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        import torchvision

        problems = []
        for split in SPLITS:
            found = 0
            folder, files = cls._files(root, split)
            for name, md5 in files:
                try:
                    part = cls._read_part(folder / name, root)
                except UserError as error:
                    problems.append(f"{split}: {error}")
                    continue
                found += len(part.labels_N)
                problems += label_problems(folder, part, cls.num_classes)
                if not torchvision.datasets.utils.check_integrity(folder / name, md5):
                    problems.append(f"{folder / name}: its MD5 checksum is not {md5}")
            problems += count_problem(split, cls.counts[split], found)
        return problems

    @classmethod
    def _torchvision(cls) -> Any:
        import torchvision

        return getattr(torchvision.datasets, cls.__name__)

    @classmethod
    def _files(cls, root: str | Path, split: str) -> tuple[Path, list[tuple[str, str]]]:
        """The folder of the files; the names of those of a split, and their MD5 checksums."""
        source = cls._torchvision()
        return first_existing(root, *cls.folders), source.train_list if split == "train" else source.test_list

    @classmethod
    def _read_part(cls, path: Path, root: str | Path) -> Part:
        """A file, its labels not looked at. Raises UserError when it is missing or no such file."""
        if not os.path.isfile(path):
            raise missing(path.name, path.parent, cls.__name__.lower(), root)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                    raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
                batch = pickled.read(file.read(_MOST_BYTES))
            if not isinstance(batch, dict) or not {"data", cls.label_key} <= batch.keys():
                raise ValueError(f"it has no data and {cls.label_key}")
            images_NP = pickled.rows_of_bytes(batch["data"], 3 * _SIDE**2, _MOST_IMAGES)
            labels_N = pickled.whole_numbers(batch[cls.label_key], len(images_NP))
        except Exception as error:  # the bytes of a damaged file raise nearly anything
            raise UserError(
                f"{path} is not a CIFAR batch ({type(error).__name__}: {one_line(error)[:200]}); without it, "
                f"`normlab data prepare {cls.__name__.lower()} root={root}` gets it anew"
            ) from None
        return Part(path.name, images_NP.reshape(-1, 3, _SIDE, _SIDE), labels_N)


class CIFAR10(CIFAR):
    """CIFAR-10: 50,000 training and 10,000 validation (its test set) images in 10 classes.

    Args:
        split: "train" or "val".
        seed: of the augmentation.
        root: folder with cifar-10-batches-py, or with the batches themselves.
        size: side in pixels, resized bilinearly.
        padding: zeros on each side before the random crop; 2 gives the 36x36 of HN.
        augment: False trains on the evaluation transform.
        fraction: of the training split, in (0, 1].
        on_error: a wrong label stops the run, or skip does without its sample.

    Raises:
        UserError: a file is missing or is not what it should be, or there is no such split.
    """

    num_classes = 10
    folders = ("cifar-10-batches-py",)
    files = ("data_batch_*", "test_batch")
    label_key = "labels"
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/cifar10",
        size: Annotated[int, Ge(1), Le(2**12)] = 32,
        padding: Annotated[int, Ge(0), Le(2**12)] = 2,
        augment: bool = True,
        fraction: Annotated[float, Gt(0), Le(1)] = 1.0,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        super().__init__(split, seed, root, size, padding, augment, fraction, on_error)


class CIFAR100(CIFAR):
    """CIFAR-100, with its 100 fine classes. Arguments and errors as in CIFAR10; the folder is cifar-100-python."""

    num_classes = 100
    folders = ("cifar-100-python",)
    files = ("train", "test")
    label_key = "fine_labels"
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/cifar100",
        size: Annotated[int, Ge(1), Le(2**12)] = 32,
        padding: Annotated[int, Ge(0), Le(2**12)] = 2,
        augment: bool = True,
        fraction: Annotated[float, Gt(0), Le(1)] = 1.0,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        super().__init__(split, seed, root, size, padding, augment, fraction, on_error)
