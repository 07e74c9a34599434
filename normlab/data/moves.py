"""Handwritten digits that move: eight motions in pairs, each the other backwards, so that order alone tells them apart.

A clip is made as a scene is (scenes.py), of frames in which one digit moves upon a texture that stays. Motion 2k plays
motion 2k + 1 backwards, with the same chances for all else: a network that does not know the order of frames can tell
pairs apart, and no more than half of what it says is right.

Shapes: B clips, T frames, S pixels a side.
"""

from collections.abc import Sequence
from enum import IntEnum, auto
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from normlab.data.clips import Clips
from normlab.data.dataset import check_split
from normlab.data.generated import Generated
from normlab.data.scenes import DIMMEST, GRID, INK, TEXTURE, handwriting
from normlab.seeding import random_bytes, uniforms

_TRAVEL = 0.3  # of the side of a frame, that a digit goes at most, to and fro about the middle of its way
_TURN = np.pi / 5  # that it turns at most
_GROWTH = 0.5  # of the logarithm of its size, at most
_LEAST = 0.3  # of these, in each clip
_SIDES = (0.35, 0.6)  # of a digit, as shares of the side of a frame, in the middle of its way


class _Stream(IntEnum):
    MEMBER = auto()
    WAY = auto()
    TEXTURE = auto()
    NOISE = auto()
    LIGHT = auto()


class Moves(Clips, Generated[int]):
    """Clips of one moving digit; the class is its motion.

    A training clip is a function of (seed, epoch, index), with epoch None of the index alone. Those for validation are
    fixed and of other handwriting.

    Args:
        split: "train" or "val".
        seed: of the training clips.
        frames, size: of a clip: its length, and the side in pixels.
        light: as of scenes, of a whole clip.
        noise: std of the noise of a pixel, before the light.
        length, val_length: number of clips of the splits.
        validation: handwriting of the validation split, as of scenes.

    Raises:
        UserError: there is no such split.
    """

    mean: ClassVar[Sequence[float]] = (0.41,)
    std: ClassVar[Sequence[float]] = (0.2,)
    noun = "clips"
    first_stream = 10  # scenes are of the same handwriting
    classes: ClassVar[tuple[str, ...]] = (
        "right",
        "left",
        "down",
        "up",
        "clockwise",
        "counterclockwise",
        "closer",
        "away",
    )
    num_classes = len(classes)
    tested_clips = 1

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        frames: Annotated[int, Ge(2), Le(2**8)] = 8,
        size: Annotated[int, Ge(8), Le(2**10)] = 32,
        light: Annotated[float, Ge(0), Le(1)] = 0.5,
        noise: Annotated[float, Ge(0), Le(1)] = 0.1,
        length: Annotated[int, Ge(1), Le(2**27)] = 4000,
        val_length: Annotated[int, Ge(1), Le(2**27)] = 400,
        validation: Literal["held_out", "pilot"] = "held_out",
    ) -> None:
        check_split(split)
        self.source = "train" if split == "train" else validation
        images_N88, _ = handwriting(self.source)
        self.ink_N88 = torch.from_numpy(images_N88)
        self.seed, self.shape, self.light, self.noise = seed, (1, frames, size, size), light, noise
        self.split, self.length = split, length if split == "train" else val_length

    def __len__(self) -> int:
        return self.length

    def take_all(self, keys: Sequence[tuple[int | None, int]]) -> list[tuple[Tensor, int]]:
        """The clips of many keys, each as `take` gives it. Raises IndexError."""
        index_B, key_B = self.bits(keys)
        motion_B = index_B % self.num_classes
        clips_BTCSS = self.drawn(key_B, motion_B)
        if self.split != "train":
            clips_BTCSS = clips_BTCSS[:, None]
        return list(zip(clips_BTCSS.unbind(), motion_B.tolist(), strict=True))

    def drawn(self, key_B: NDArray[np.uint64], motion_B: NDArray[np.int64]) -> Tensor:
        """The clips (B, T, 1, S, S) in bytes of these keys and motions."""
        _, T, S, _ = self.shape
        B = len(key_B)
        member_B = (uniforms(key_B, _Stream.MEMBER, 1)[:, 0] * len(self.ink_N88)).astype(np.int64)
        ink_B188 = self.ink_N88[torch.from_numpy(member_B)][:, None]
        grid_BTSS2 = torch.from_numpy(self._places(key_B, motion_B).astype(np.float32))
        stacked = grid_BTSS2.view(B, T * S, S, 2)
        covered_BTSS = grid_sample(ink_B188, stacked, padding_mode="zeros", align_corners=False).view(B, T, S, S)
        drawn = uniforms(key_B, _Stream.TEXTURE, GRID**2 + 1).astype(np.float32)
        values_B1GG = torch.from_numpy(TEXTURE[0] + (TEXTURE[1] - TEXTURE[0]) * drawn[:, 1:]).view(B, 1, GRID, GRID)
        texture_B1SS = interpolate(values_B1GG, size=(S, S), mode="bilinear", align_corners=True)
        ink_B111 = torch.from_numpy(INK[0] + (INK[1] - INK[0]) * drawn[:, 0]).view(B, 1, 1, 1)
        clip_BTSS = texture_B1SS * (1 - covered_BTSS) + ink_B111 * covered_BTSS
        noise = random_bytes(key_B, _Stream.NOISE, T * S * S).reshape(B, T, S, S).astype(np.float32)
        clip_BTSS += torch.from_numpy(noise / 127.5 - 1) * (self.noise * 3**0.5)  # uniform, of this std
        light_B2 = torch.from_numpy(uniforms(key_B, _Stream.LIGHT, 2).astype(np.float32))
        gain_B = torch.exp(-DIMMEST * self.light * light_B2[:, 0])
        offset_B = (1 - gain_B) * light_B2[:, 1]
        clip_BTSS = clip_BTSS * gain_B.view(B, 1, 1, 1) + offset_B.view(B, 1, 1, 1)
        return (clip_BTSS * 255 + 0.5).clamp(0, 255).to(torch.uint8)[:, :, None]

    def _places(self, key_B: NDArray[np.uint64], motion_B: NDArray[np.int64]) -> NDArray[Any]:
        """Where in the handwriting each pixel of each frame is (B, T, S, S, 2), as x and y from -1 to 1."""
        _, T, S, _ = self.shape
        strength_B, angle_B, side_B, *middle_B = uniforms(key_B, _Stream.WAY, 5).T
        time_T = np.linspace(-0.5, 0.5, T)  # so that a way backwards is the way of the other sign
        sign_B = np.where(motion_B % 2 == 0, 1.0, -1.0) * (_LEAST + (1 - _LEAST) * strength_B)
        way_BT = sign_B[:, None] * time_T
        kind_B1 = (motion_B // 2)[:, None]
        side_BT = (
            S * (_SIDES[0] + (_SIDES[1] - _SIDES[0]) * side_B)[:, None] * np.exp(_GROWTH * way_BT * (kind_B1 == 3))
        )
        turn_BT = (angle_B[:, None] - 0.5) * 0.5 + 2 * _TURN * way_BT * (kind_B1 == 2)
        centre_BT = [
            S * (0.35 + 0.3 * middle[:, None] + _TRAVEL * way_BT * (kind_B1 == kind))
            for kind, middle in enumerate(middle_B)
        ]
        pixel_S = np.arange(S) + 0.5
        x_BTSS = pixel_S[None, None, None, :] - centre_BT[0][..., None, None]
        y_BTSS = pixel_S[None, None, :, None] - centre_BT[1][..., None, None]
        cos, sin = np.cos(turn_BT)[..., None, None], np.sin(turn_BT)[..., None, None]
        half_BT11 = side_BT[..., None, None] / 2
        return np.stack([cos * x_BTSS + sin * y_BTSS, cos * y_BTSS - sin * x_BTSS], -1) / half_BT11[..., None]
