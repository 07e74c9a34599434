"""What datasets of clips share: frames of a video, in bytes, and which of them a clip has."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from normlab.data.augment import sample_rng
from normlab.data.dataset import OnError, SampleError, Samples, check_range
from normlab.data.decode import DecodeError
from normlab.data.imagenet import MEAN, STD
from normlab.data.splits import Integers
from normlab.errors import UserError


class Clips(Samples[int]):
    """Clips of one split with their classes.

    `dataset[epoch, index]` is, of the training split, (float32 clip (T, C, H, W), label); of the validation split
    (clips (K, T, C, H, W), label), the K clips of a video that a test looks at.

    Attributes:
        shape: (C, T, H, W) of a clip, as networks take it.
        num_classes, labels_N: of the samples.
        tested_clips: K.
    """

    shape: tuple[int, int, int, int]  # type: ignore[assignment]
    num_classes: int
    tested_clips: int


class StoredClips(Clips):
    """Clips of videos in a folder, of which a class says how one is read.

    Args:
        split, seed: of the samples, and of what is drawn.
        folder, videos: a video is folder/video.
        labels_N, num_classes: of the videos.
        frames, size: of a clip.
        clips: of a video in the test.
        short_side: pixels of the shorter side of the frames before they are cropped, at least and at most in training.
        test_side: likewise, in the test.
        flip: half of the training clips.
        on_error: what becomes of a video that cannot be used.

    Raises:
        UserError: frames would be smaller than what is cut out of them.
    """

    mean, std = MEAN, STD

    def __init__(
        self,
        split: str,
        seed: int,
        folder: Path,
        videos: Sequence[str],
        labels_N: Integers,
        num_classes: int,
        *,
        frames: int,
        size: int,
        clips: int,
        short_side: tuple[int, int],
        test_side: int,
        flip: bool,
        on_error: OnError,
    ) -> None:
        check_range("short_side", short_side)
        for name, side in (("short_side", short_side[0]), ("test_side", test_side)):
            if side < size:
                raise UserError(f"data.{name}={side}: a frame of {size} pixels (data.size) cannot be cut out of that")
        self.split, self.seed, self.folder = split, seed, folder
        self.videos_N, self.labels_N, self.num_classes = np.array(videos), labels_N, num_classes
        self.frames, self.size, self.tested_clips, self.flip, self.on_error = frames, size, clips, flip, on_error
        self.short_side, self.test_side = short_side, test_side
        self.shape = (3, frames, size, size)

    @abstractmethod
    def indices(self, length: int) -> np.ndarray:
        """Numbers (K, T) of frames of a video of so many: of one clip, drawn, in training, else of those tested."""

    @abstractmethod
    def length(self, video: Path) -> int:
        """How many frames a video has. Raises DecodeError."""

    @abstractmethod
    def read(self, video: Path, wanted: Sequence[int]) -> Tensor:
        """These frames (T, 3, H, W) in bytes; `wanted` are in ascending order. Raises DecodeError."""

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, int]:
        label, video = int(self.labels_N[stored]), str(self.videos_N[stored])
        try:
            if self.split == "train":
                with sample_rng(self.seed, -1 if epoch is None else epoch, index):
                    return self._training_clip(self.folder / video), label
            return self._tested_clips(self.folder / video), label
        except DecodeError as error:
            raise SampleError(self.split, stored, self.folder, video, str(error)) from None

    def _training_clip(self, video: Path) -> Tensor:
        """Resized, cropped and flipped at random, all frames alike."""
        clip_TCHW = self._frames(video)[0]
        least, most = self.short_side
        clip_TCHW = _resized(clip_TCHW, int(torch.randint(least, most + 1, ())))
        top, left = (int(torch.randint(side - self.size + 1, ())) for side in clip_TCHW.shape[2:])
        clip_TCHW = clip_TCHW[..., top : top + self.size, left : left + self.size]
        return clip_TCHW.flip(3) if self.flip and torch.rand(()) < 0.5 else clip_TCHW.contiguous()

    def _tested_clips(self, video: Path) -> Tensor:
        """The middle of each frame."""
        clips = []
        for clip_TCHW in self._frames(video):
            resized_TCHW = _resized(clip_TCHW, self.test_side)
            top, left = ((side - self.size) // 2 for side in resized_TCHW.shape[2:])
            clips.append(resized_TCHW[..., top : top + self.size, left : left + self.size])
        return torch.stack(clips)

    def _frames(self, video: Path) -> list[Tensor]:
        """Of each clip (T, 3, H, W); what is in several is read once."""
        length = self.length(video)
        if length < 1:
            raise DecodeError("there is no frame in it")
        indices_KT = self.indices(length)
        wanted, place = np.unique(indices_KT, return_inverse=True)
        read = self.read(video, wanted.tolist())
        return list(read[torch.from_numpy(place.reshape(indices_KT.shape))])


def regular(length: int, span: int, clips: int) -> np.ndarray:
    """First frames (K,) of clips that span so many, from the first to the last; a single one is in the middle."""
    last = max(length - span, 0)
    if clips == 1:
        return np.array([last // 2])
    return np.round(np.linspace(0, last, clips)).astype(np.int64)


def _resized(clip_TCHW: Tensor, short_side: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.resize(clip_TCHW, [short_side], antialias=True)
