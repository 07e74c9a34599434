"""Aligned faces of 112 x 112 pixels: MS1MV2 to train on, MegaFace and pairs to be tested on."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor

from normlab.data import megaface, pickled
from normlab.data.augment import sample_rng, to_bytes
from normlab.data.dataset import SampleError, Samples, check_split, count_problem
from normlab.data.decode import DecodeError, decode, decode_bytes
from normlab.data.download import one_line
from normlab.data.folder import decoding_problems
from normlab.data.glyphs import DISTRACTOR
from normlab.data.recordio import Records
from normlab.data.splits import Integers
from normlab.errors import UserError

SIDE = 112
_TRAINING, _TEST = "faces_emore", "megaface"
_PERSONS = 85_742
_MOST_PAIRS, _MOST_BYTES = 20_000, 2**30  # of a file of pairs
_IMAGES = {2: "facescrub_images", 3: "megaface_images"}  # parts of a path -> where it lies


class FaceFiles(Samples[int]):
    """MS1MV2 as ArcFace's authors have it (85,742 persons, 5.8 million pictures), and MegaFace.

    `dataset[epoch, index]` is (float32 image (3, 112, 112), identity). Of the split for validation these are
    FaceScrub's persons, and -1 for MegaFace's distractors behind them; of `pairs` pictures 2n and 2n + 1 belong
    together, with 1 for one person and 0 for two.

    Args:
        split: "train", "val" or "pairs".
        seed: of the augmentation.
        root: folder with faces_emore (train.rec, train.idx, property, PAIRS.bin) and megaface (facescrub_lst,
            facescrub_images, megaface_lst, megaface_images, and lists of what is left out).
        flip: whether half of the training pictures are flipped.
        distractors: drawn of those that are left (SN-TPAMI, Sec. 4.4: a million of 1,026,351).
        pairs: name of a file of pairs, as lfw, on which a run is tested too; empty: none.
        on_error: a picture that cannot be used stops the run, or skip does without it.

    Raises:
        UserError: files are missing or are not what they should be, or there is no such split.
    """

    mean: ClassVar = (0.5,)
    std: ClassVar = (0.5,)
    shape = (3, SIDE, SIDE)
    files = ("faces_emore", "megaface")
    counts: ClassVar = {"train": 5_822_653, "val": 1_003_530, "pairs": 12_000}  # val: 3,530 probes; pairs: LFW's

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/faces",
        flip: bool = True,
        distractors: Annotated[int, Ge(1), Le(2**27)] = 1_000_000,
        pairs: str = "",
        on_error: Literal["stop", "skip"] = "stop",
    ):
        check_split(split, ("train", "val", "pairs"))
        self.split, self.seed, self.flip, self.on_error = split, seed, flip, on_error
        self.folder = Path(root)
        self.num_classes = 0
        if split == "train":
            self.records, self.numbers = _training(self.folder / _TRAINING)
            self.num_classes = _persons(self.folder / _TRAINING)
        elif split == "val":
            known = megaface.probes(self.folder / _TEST)
            others = megaface.distractors(self.folder / _TEST, distractors)
            self.paths = np.array([str(path) for path in (*known, *others)])  # one array: see ImageFiles
            persons = np.unique([path.parts[0] for path in known], return_inverse=True)[1]
            self.labels_N = np.concatenate([persons, np.full(len(others), DISTRACTOR)])
        else:
            self.pictures, self.same = read_pairs(self.folder / _TRAINING / f"{pairs}.bin")
            self.pairs_name = pairs

    @classmethod
    def described(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"num_classes": _PERSONS}

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Nothing can be downloaded without consent. Raises UserError, saying what to put where."""
        raise UserError(
            f"{root} lacks faces; put {_TRAINING} of ArcFace's authors there, and {_TEST} with the lists, "
            f"{_IMAGES[2]} and {_IMAGES[3]} (docs/data.md)"
        )

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        problems: list[str] = []
        for split in ("train", "val"):
            try:
                dataset = cls(split, 0, root=str(root), on_error="skip")
            except UserError as error:
                problems.append(f"{split}: {error}")
                continue
            if split == "train":  # how many probes are left depends on the lists
                problems += count_problem(split, cls.counts[split], len(dataset))
            problems += decoding_problems(dataset.check, range(len(dataset)), split)
        return problems

    def __len__(self) -> int:
        of_split: Any = {"train": "numbers", "val": "labels_N", "pairs": "pictures"}
        return len(getattr(self, of_split[self.split]))

    def name(self, index: int) -> str:
        """Of a picture's file, without its ending, in MegaFace's folders."""
        if self.split != "val":
            return f"{index:07}"
        path = PurePosixPath(self.paths[index])
        return f"{_IMAGES[len(path.parts)].removesuffix('_images')}/{path}"

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, int]:
        try:
            image_CHW, label = self._read(stored)
        except (DecodeError, ValueError) as error:
            raise SampleError(self.split, stored, self.folder, self._place(stored), one_line(error)) from None
        if self.split == "train" and self.flip and epoch is not None:
            with sample_rng(self.seed, epoch, index):
                image_CHW = image_CHW.flip(2) if torch.rand(()) < 0.5 else image_CHW
        return image_CHW, label

    def check(self, index: int) -> None:
        """Raises DecodeError, with the file's path, where a picture cannot be used."""
        try:
            self._read(index)
        except (DecodeError, ValueError) as error:
            raise DecodeError(f"{self.folder / self._place(index)}: {error}") from None

    def _place(self, index: int) -> str:
        if self.split == "train":
            return f"{_TRAINING}/train.rec[{self.numbers[index]}]"
        if self.split == "pairs":
            return f"{_TRAINING}/{self.pairs_name}.bin[{index}]"
        path = PurePosixPath(self.paths[index])
        return f"{_TEST}/{_IMAGES[len(path.parts)]}/{path}"

    def _read(self, index: int) -> tuple[Tensor, int]:
        """Raises DecodeError, or ValueError on a damaged record."""
        if self.split == "train":
            record = self.records[self.numbers[index]]
            label = record.labels[0]
            if not 0 <= label < self.num_classes:  # nor is NaN
                raise ValueError(f"label {label:g} is not in 0..{self.num_classes - 1}")
            return _aligned(decode_bytes(record.content)), int(label)
        if self.split == "pairs":
            return _aligned(decode_bytes(self.pictures[index])), int(self.same[index // 2])
        return _aligned(decode(self.folder / self._place(index))), int(self.labels_N[index])


def read_pairs(path: Path) -> tuple[list[bytes], list[bool]]:
    """Encoded pictures (2N) and whether two belong to one person (N), of a file such as lfw.bin. Raises UserError.

    It is a pickle, which is read as data: nothing in it is called.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        value = pickled.read(path.read_bytes())
        if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(part, list) for part in value):
            raise ValueError("it holds no list of pictures and list of answers")
        pictures, same = value
        if not 0 < len(same) <= _MOST_PAIRS or len(pictures) != 2 * len(same):
            raise ValueError(f"it holds {len(pictures):,} pictures for {len(same):,} answers")
        if not all(isinstance(answer, bool) or answer in (0, 1) for answer in same):
            raise ValueError("its answers are not all True or False")
        return [_content(picture) for picture in pictures], [bool(answer) for answer in same]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no file of pairs: {one_line(error)}") from None


def _content(picture: Any) -> bytes:
    """Of what `pickled.read` gives. Raises ValueError."""
    match picture:
        case bytes() | bytearray():
            return bytes(picture)
        case str():  # as Python 2 wrote bytes
            return picture.encode("latin-1")
        case pickled.Call("_codecs encode", (str(text), "latin1")):  # as Python 3 writes bytes for Python 2
            return text.encode("latin-1")
    raise ValueError("a picture is no bytes")


def _aligned(image: Image.Image) -> Tensor:
    """Raises DecodeError."""
    if image.size != (SIDE, SIDE):
        raise DecodeError(f"it has {image.width} x {image.height} pixels, and an aligned face {SIDE} x {SIDE}")
    return to_bytes(image).contiguous()


def _training(folder: Path) -> tuple[Records, Sequence[int] | Integers]:
    """The records and the numbers of those that are pictures: record 0 tells where they end, or is one itself."""
    records = Records(folder / "train.rec")
    try:
        first = records[0]
    except ValueError as error:
        raise UserError(f"{records.path} is damaged: {error}") from None
    if len(first.labels) == 1:
        return records, records.numbers_N
    end = first.labels[0]
    if not 1 < end <= int(records.numbers_N[-1]) + 1:
        raise UserError(
            f"{records.path}: its first record says that pictures end at {end:g}, and there are {len(records)}"
        )
    return records, range(1, int(end))


def _persons(folder: Path) -> int:
    """The first of the three numbers in `property`. Raises UserError."""
    path = folder / "property"
    try:
        numbers = [int(word) for word in path.read_text(encoding="utf-8")[:100].split(",")]
    except (OSError, ValueError):
        numbers = []
    if len(numbers) != 3 or numbers[0] < 2 or tuple(numbers[1:]) != (SIDE, SIDE):
        raise UserError(f"{path}: expected PERSONS,{SIDE},{SIDE} in it, as 85742,{SIDE},{SIDE}")
    return numbers[0]
