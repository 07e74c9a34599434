"""Something-Something v1: actions with things, of which a video is a folder of JPEG files."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from normlab.data.augment import to_bytes
from normlab.data.clips import StoredClips
from normlab.data.dataset import SPLITS, check_split, missing
from normlab.data.decode import DecodeError, decode
from normlab.data.folder import decoding_problems
from normlab.data.splits import Integers
from normlab.errors import UserError

_LIST = "something-something-v1-{}.csv"
_LISTS = {"train": _LIST.format("train"), "val": _LIST.format("validation")}
_LABELS = _LIST.format("labels")
_VIDEOS = "20bn-something-something-v1"
_MOST_BYTES = 2**26  # of a list
_FRAME = "{:05d}.jpg"


class Something(StoredClips):
    """Something-Something v1: 86,017 training and 11,522 validation videos, 174 classes (WS, Sec. 3.3).

    A clip has a frame of each of as many segments of the video: any in training, the middle ones in the test (Wang et
    al. 2016). Nothing is flipped: to push from left to right is a class. Items as of Clips.

    Args:
        split: "train" or "val".
        seed: of what is drawn.
        root: folder with the videos and the three lists.
        frames: of a clip, one of each segment.
        clips: of a video in the test, whose frames lie beside each other.
        size: side of a frame.
        short_side: pixels that the shorter side is resized to ahead of the crop, at least and at most, in training.
        test_side: likewise, in the test.
        on_error: a video that cannot be used stops the run, or skip does without it.

    Raises:
        UserError: a list is missing, or none, or there is no such split.
    """

    files = ("20bn-something-something-v1", "something-something-v1-*.csv")
    counts: ClassVar = {"train": 86_017, "val": 11_522}
    frames_of_paper: ClassVar[int] = 8

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/something_v1",
        frames: Annotated[int, Ge(1), Le(2**10)] = 8,
        clips: Annotated[int, Ge(1), Le(100)] = 1,
        size: Annotated[int, Ge(1), Le(2**12)] = 224,
        short_side: tuple[Annotated[int, Ge(1), Le(2**12)], Annotated[int, Ge(1), Le(2**12)]] = (224, 340),
        test_side: Annotated[int, Ge(1), Le(2**12)] = 256,
        on_error: Literal["stop", "skip"] = "stop",
    ) -> None:
        check_split(split)
        self.classes = tuple(_classes(root))
        names, labels_N = _listed(root, split, self.classes)
        super().__init__(
            split,
            seed,
            Path(root) / _VIDEOS,
            names,
            labels_N,
            len(self.classes),
            frames=frames,
            size=size,
            clips=clips,
            short_side=short_side,
            test_side=test_side,
            flip=False,
            on_error=on_error,
        )

    def indices(self, length: int) -> Integers:
        if self.split == "train":
            place_KT = torch.rand(1, self.frames).double().numpy()
        else:
            place_KT = ((np.arange(self.tested_clips) + 0.5) / self.tested_clips)[:, None]
        found = (np.arange(self.frames) + place_KT) * (length / self.frames)
        return np.minimum(found.astype(np.int64), length - 1)

    def length(self, video: Path) -> int:
        return _length(video)

    def read(self, video: Path, wanted: Sequence[int]) -> Tensor:
        return _read(video, wanted)

    @classmethod
    def prepare(cls, root: Path) -> None:
        """There is no open download."""
        raise UserError(f"something_v1: put {_VIDEOS}, {_LABELS} and {' and '.join(_LISTS.values())} into {root}")

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        problems: list[str] = []
        for split in SPLITS:
            try:
                names, _ = _listed(str(root), split, _classes(str(root)))
            except UserError as error:
                problems.append(str(error))
                continue
            if len(names) != cls.counts[split]:
                problems.append(f"{root}: expected {cls.counts[split]} videos of {split}, found {len(names)}")
            folders = [root / _VIDEOS / name for name in names]
            problems += decoding_problems(partial(_check, cls.frames_of_paper), folders, split)
        return problems


def _check(frames: int, video: Path) -> None:
    """Raise DecodeError unless all frames of a video are there and can be decoded, and enough of them."""
    length = _length(video)
    _read(video, range(length))
    if length < frames:
        raise DecodeError(f"it has {length} frames, and a clip takes {frames}; some are taken twice then")


def _length(video: Path) -> int:
    """Of the frames 00001.jpg, 00002.jpg, ... Raises DecodeError where there is none, or one is missing."""
    try:
        names = {entry.name for entry in os.scandir(video) if entry.name.endswith(".jpg")}
    except OSError as error:
        raise DecodeError(f"the folder cannot be read ({error.strerror})") from None
    if not names:
        raise DecodeError("there is no frame in it")
    for number in range(1, len(names) + 1):
        if _FRAME.format(number) not in names:
            raise DecodeError(f"{_FRAME.format(number)} is missing among its {len(names)} frames")
    return len(names)


def _read(video: Path, wanted: Sequence[int]) -> Tensor:
    frames = []
    for number in wanted:
        name = _FRAME.format(number + 1)
        try:
            frames.append(to_bytes(decode(video / name)))
        except DecodeError as error:
            raise DecodeError(f"{name}: {error}") from None
    if len({frame.shape for frame in frames}) > 1:
        raise DecodeError("its frames have different sizes")
    return torch.stack(frames)


def _lines(root: str, name: str) -> list[str]:
    path = Path(root) / name
    if not path.is_file():
        raise missing(f"file '{name}'", Path(root), "something_v1", root)
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes and is no list of Something-Something's")
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is no text; the file is damaged") from None


def _classes(root: str) -> list[str]:
    """In the order of their file. Raises UserError where there are none, or one stands there twice."""
    found = _lines(root, _LABELS)
    twice = next((name for k, name in enumerate(found) if name in found[:k]), None)
    if len(found) < 2 or twice is not None:
        raise UserError(
            f"{Path(root) / _LABELS}: expected two or more classes, each once"
            + (f", not twice '{twice}'" if twice else "")
        )
    return found


def _listed(root: str, split: str, classes: list[str] | tuple[str, ...]) -> tuple[list[str], Integers]:
    """The videos of a split and their labels, of lines ID;CLASS. Raises UserError on another line."""
    numbers = {name: number for number, name in enumerate(classes)}
    names, labels = [], []
    for line_number, line in enumerate(_lines(root, _LISTS[split]), start=1):
        video, _, name = line.partition(";")
        if not (video.isascii() and video.isdecimal()) or name not in numbers:
            raise UserError(
                f"{Path(root) / _LISTS[split]}, line {line_number}: expected the number of a video, ';' and a class"
            )
        names.append(video)
        labels.append(numbers[name])
    if not names:
        raise UserError(f"{Path(root) / _LISTS[split]}: there is no video in it")
    return names, np.array(labels, np.int64)
