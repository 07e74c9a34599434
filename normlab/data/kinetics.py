"""Kinetics-400: actions in videos of some ten seconds."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from normlab.data import videos
from normlab.data.clips import StoredClips, regular
from normlab.data.dataset import SPLITS, check_split, missing
from normlab.data.decode import DecodeError
from normlab.data.folder import decoding_problems
from normlab.data.splits import Integers
from normlab.errors import UserError

_CLASSES = 400


class Kinetics(StoredClips):
    """Kinetics: MP4 files in a folder for each class, of train and of val. Items as of Clips.

    A clip has frames at a regular interval (SN-TPAMI, Table 10); in training it begins anywhere, in the test several
    begin at regular distances (Sec. 4.5). Of a video that is too short the last frame stays.

    Args:
        split: "train" or "val".
        seed: of what is drawn.
        root: folder with train and val.
        frames: of a clip.
        interval: from one frame of a clip to the next.
        clips: of a video in the test.
        size: side of a frame.
        short_side: pixels that the shorter side is resized to ahead of the crop, at least and at most, in training.
        test_side: likewise, in the test.
        flip: whether half of the training clips are flipped.
        on_error: a video that cannot be used stops the run, or skip does without it.

    Raises:
        UserError: folders are missing or empty, classes differ, there is no such split, or PyAV is not there.
    """

    folders = ("kinetics400", "kinetics")
    files = ("train", "val")

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        root: str = "data/kinetics",
        frames: Annotated[int, Ge(1), Le(2**10)] = 32,
        interval: Annotated[int, Ge(1), Le(2**10)] = 2,
        clips: Annotated[int, Ge(1), Le(100)] = 10,
        size: Annotated[int, Ge(1), Le(2**12)] = 224,
        short_side: tuple[Annotated[int, Ge(1), Le(2**12)], Annotated[int, Ge(1), Le(2**12)]] = (256, 320),
        test_side: Annotated[int, Ge(1), Le(2**12)] = 256,
        flip: bool = True,
        on_error: Literal["stop", "skip"] = "stop",
    ) -> None:
        check_split(split)
        videos.check_decoder("kinetics")
        folder, names, labels_N = _scan(root, split)
        self.interval = interval
        self.classes = tuple(_classes(root, split))
        super().__init__(
            split,
            seed,
            folder,
            names,
            labels_N,
            len(self.classes),
            frames=frames,
            size=size,
            clips=clips,
            short_side=short_side,
            test_side=test_side,
            flip=flip,
            on_error=on_error,
        )

    def indices(self, length: int) -> Integers:
        span = (self.frames - 1) * self.interval + 1
        if self.split == "train":
            first_K = np.array([int(torch.randint(max(length - span, 0) + 1, ()))])
        else:
            first_K = regular(length, span, self.tested_clips)
        return np.minimum(first_K[:, None] + self.interval * np.arange(self.frames), length - 1)

    def length(self, video: Path) -> int:
        return videos.length(video)

    def read(self, video: Path, wanted: Sequence[int]) -> Tensor:
        return videos.read(video, wanted)

    span: ClassVar[int] = 63  # frames of a clip of the paper's

    @classmethod
    def prepare(cls, root: Path) -> None:
        """There is no download: videos are on YouTube."""
        raise UserError(f"kinetics: put the videos into {root}/train/CLASS/*.mp4 and {root}/val/CLASS/*.mp4")

    @classmethod
    def verify(cls, root: Path) -> list[str]:
        videos.check_decoder("kinetics")
        problems = []
        for split in SPLITS:
            try:
                folder, names, _ = _scan(str(root), split)
                classes = _classes(str(root), split)
            except UserError as error:
                problems.append(str(error))
                continue
            if len(classes) != _CLASSES:
                problems.append(f"{folder}: expected {_CLASSES} classes, found {len(classes)}")
            problems += decoding_problems(partial(_check, cls.span), [folder / name for name in names], split)
        return problems


def _check(span: int, video: Path) -> None:
    """Raise DecodeError unless all frames that a video says it has are there, and enough of them."""
    length = videos.length(video)
    if length < 1:
        raise DecodeError("there is no frame in it")
    videos.read(video, [length - 1])
    if length < span:
        raise DecodeError(f"it has {length} frames, and a clip takes {span}; its last one stays then")


def _folder(root: str, split: str) -> Path:
    base = next((b for name in ("", *Kinetics.folders) if os.path.isdir((b := Path(root) / name) / split)), None)
    if base is None:
        raise missing(f"folder '{split}'", Path(root), "kinetics", root)
    return base / split


def _classes(root: str, split: str) -> list[str]:
    """Those of both splits. Raises UserError where they differ."""
    found = {name: sorted(e.name for e in os.scandir(_folder(root, name)) if e.is_dir()) for name in SPLITS}
    differing = set(found["train"]) ^ set(found["val"])
    if differing:
        raise UserError(f"{root}: class '{min(differing)}' is not in both train and val")
    return found[split]


def _scan(root: str, split: str) -> tuple[Path, list[str], Integers]:
    """The folder of a split, its videos class by class, and their labels. Raises UserError where there is none."""
    folder = _folder(root, split)
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(_classes(root, split)):
        videos_of = sorted(e.name for e in os.scandir(folder / name) if e.name.endswith(".mp4") and e.is_file())
        names += [f"{name}/{video}" for video in videos_of]
        labels += [label] * len(videos_of)
    if not names:
        raise UserError(f"{folder}: there is no CLASS/*.mp4 in it")
    return folder, names, np.array(labels, np.int64)
