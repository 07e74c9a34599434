"""Digits in scenes: images with a class, boxes, masks and a map of labels, made on the fly from real handwriting.

A scene is a smooth texture, on it fragments of digits, on them whole digits, each with a place, a size and an ink of
its own; then noise, and one light for all of it. A batch of scenes is drawn at once, and each is what it is by itself.

Shapes: B scenes, C channels, S pixels a side, D digits at most, L layers: the fragments, then the digits.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from enum import IntEnum, auto
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.dataset import VOID, check_range, check_split
from normlab.data.generated import Generated, Key, Source
from normlab.data.handwriting import load_handwriting
from normlab.data.splits import Integers, held_out
from normlab.errors import UserError
from normlab.schema import shown
from normlab.seeding import Bits, random_bytes, uniforms

Floats = NDArray[np.floating[Any]]

SIDE = 8  # pixels of the handwriting
FRAGMENT = 4  # of them in a fragment
GRID = 4  # the texture is interpolated from so many values a side
TEXTURE, INK = (0.0, 0.4), (0.7, 1.0)  # brightness
LEEWAY = 0.1  # of a cell, by which a digit may reach out of its own
DIMMEST = 3.0  # gains are exp(-DIMMEST * light) to 1
MASK, RIM = 0.5, 0.25  # ink covers as much of a pixel of a digit, and of the rim around it, whose class is void
_AT_ONCE = 2**15  # pixels that are drawn together: they stay in a cache


class Stream(IntEnum):
    """What a scene draws, each from numbers of its own: a setting changes what it says, and nothing else."""

    COUNT = auto()
    MEMBER = auto()
    CELL = auto()
    SIZE = auto()
    PLACE = auto()
    PIECE = auto()
    INK = auto()
    TEXTURE = auto()
    NOISE = auto()
    LIGHT = auto()


class Drawn(NamedTuple):
    index_B: Integers
    images_BCSS: NDArray[np.uint8]
    covered_BDSS: Floats  # by the ink of each digit, later ones lie on earlier ones; 0 where there is no such digit
    labels_BD: Integers  # 0 to 9


class Scenes(Generated[Any]):
    """What the three datasets of scenes share; each makes a target of its own of what is drawn.

    A training scene is a function of (seed, epoch, index), with epoch None of the index alone. Those for validation
    are fixed and of other handwriting. The first digit of a scene is the index's own, all else is drawn.

    Args:
        split: "train" or "val".
        seed: of the training scenes.
        size: side of the images in pixels.
        channels: 1, grey, or more, whose textures and inks differ.
        digits: how many a scene has, at least and at most.
        scale: side of a digit, least and most, as a share of its cell: the whole scene, or if there may be 2 to 4
            digits a quarter, and so on. Each has a cell of its own, so that much of it stays visible.
        clutter: fragments of other digits beneath.
        light: 0 is the same light for all; at 1 it takes up to 95% of the contrast of a scene, and offset and gain
            hide what differs between scenes.
        noise: std of the noise of a pixel, before the light.
        length, val_length: number of scenes of the splits.
        fresh: each epoch of each seed has training scenes of its own. Otherwise there is one set of them, as there is
            of photographs: a network can learn it by heart, and a longer training gains less.
        validation: handwriting of the validation split. `held_out`: the fifth that no run learns from. `pilot`: a part
            of the other four fifths that no run of scenes learns from either, to choose settings by.

    Raises:
        UserError: there is no such split, a range has its ends reversed, or a class is to be that of several digits.
    """

    mean: ClassVar[Sequence[float]] = (0.41,)
    std: ClassVar[Sequence[float]] = (0.2,)
    num_classes: int = 10
    one_size: ClassVar[bool] = True
    noun = "scenes"
    most_digits: ClassVar[int] = 100

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        size: Annotated[int, Ge(8), Le(2**12)] = 32,
        channels: Annotated[int, Ge(1), Le(2**12)] = 1,
        digits: tuple[Annotated[int, Ge(1), Le(100)], Annotated[int, Ge(1), Le(100)]] = (1, 1),
        scale: tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]] = (0.5, 1.0),
        clutter: Annotated[int, Ge(0), Le(100)] = 1,
        light: Annotated[float, Ge(0), Le(1)] = 0.5,
        noise: Annotated[float, Ge(0), Le(1)] = 0.05,
        length: Annotated[int, Ge(1), Le(2**27)] = 4000,
        val_length: Annotated[int, Ge(1), Le(2**27)] = 500,
        fresh: bool = True,
        validation: Literal["held_out", "pilot"] = "held_out",
    ):
        check_split(split)
        check_range("digits", digits)
        check_range("scale", scale)
        if digits[1] > self.most_digits:
            raise UserError(f"data.digits={shown(digits)}: a scene of this dataset has at most {self.most_digits}")
        self.source = "train" if split == "train" else validation
        self.images_N88, self.labels_N = handwriting(self.source)
        self.seed, self.shape = seed, (channels, size, size)
        self.digits, self.scale, self.clutter, self.light, self.noise = digits, scale, clutter, light, noise
        self.length, self.fresh = length if split == "train" else val_length, fresh

    def __len__(self) -> int:
        return self.length

    def take_all(self, keys: Sequence[Key]) -> list[tuple[Tensor, Any]]:
        """The scenes of many keys, each as `take` gives it. Raises IndexError."""
        taken: list[tuple[Tensor, Any]] = []
        for drawn in self.draw(keys):
            taken += zip(torch.from_numpy(drawn.images_BCSS).unbind(), self.targets(drawn), strict=True)
        return taken

    @abstractmethod
    def targets(self, drawn: Drawn) -> Sequence[Any]:
        """What is known of each scene."""

    def draw(self, keys: Sequence[Key]) -> Iterator[Drawn]:
        """The scenes of many keys, in order, as many at once as stay in a cache. Raises IndexError."""
        index_B, key_B = self.bits(keys)
        F, D = self.clutter, self.digits[1]
        members_BL = _whole(uniforms(key_B, Stream.MEMBER, F + D), len(self.labels_N))
        members_BL[:, F] = index_B % len(self.labels_N)
        ink_BL88 = self.images_N88[members_BL]
        count_B = self.digits[0] + _whole(uniforms(key_B, Stream.COUNT, 1)[:, 0], D - self.digits[0] + 1)
        ink_BL88[:, F:] *= (np.arange(D) < count_B[:, None])[..., None, None]
        rows_BLS8, columns_BLS8 = self._resampling(key_B)
        at_once = max(1, _AT_ONCE // self.shape[1] ** 2)
        for start in range(0, len(keys), at_once):
            some = slice(start, start + at_once)
            covered_BLSS = rows_BLS8[some] @ ink_BL88[some] @ columns_BLS8[some].swapaxes(2, 3)
            labels_BD = self.labels_N[members_BL[some, F:]]
            yield Drawn(index_B[some], self._image(key_B[some], covered_BLSS), covered_BLSS[:, F:], labels_BD)

    def _resampling(self, key_B: Bits) -> tuple[Floats, Floats]:
        """What each pixel of the handwriting gives to each row and to each column of the scene, bilinearly."""
        B, F, D, S = len(key_B), self.clutter, self.digits[1], self.shape[1]
        cells = 1
        while cells**2 < D:
            cells += 1
        cell_BD = np.argsort(uniforms(key_B, Stream.CELL, cells**2), axis=1, kind="stable")[:, :D]
        cell_BD2 = np.stack(np.divmod(cell_BD, cells), 2)
        everywhere_BF2 = np.zeros((B, F, 2))
        least_BL2 = np.concatenate([everywhere_BF2, (cell_BD2 - LEEWAY).clip(0) / cells], 1) * S
        most_BL2 = np.concatenate([everywhere_BF2 + 1, (cell_BD2 + 1 + LEEWAY).clip(None, cells) / cells], 1) * S
        side_BL1 = between(self.scale, uniforms(key_B, Stream.SIZE, F + D))[..., None] * (S / cells)
        corner_BL2 = least_BL2 + uniforms(key_B, Stream.PLACE, 2 * (F + D)).reshape(B, F + D, 2) * (
            most_BL2 - least_BL2 - side_BL1
        )
        pixel_BL2S = (np.arange(S) + 0.5 - corner_BL2[..., None]) * (SIDE / side_BL1[..., None]) - 0.5
        width_BL111 = np.maximum(SIDE / side_BL1[..., None, None], 1)  # wider where the handwriting is made smaller
        weights_BL2S8 = tent(pixel_BL2S, SIDE, width_BL111)
        piece_BF2 = _whole(uniforms(key_B, Stream.PIECE, 2 * F).reshape(B, F, 2), SIDE - FRAGMENT + 1)[..., None, None]
        weights_BL2S8[:, :F] *= (np.arange(SIDE) >= piece_BF2) & (np.arange(SIDE) < piece_BF2 + FRAGMENT)
        return weights_BL2S8[:, :, 0], weights_BL2S8[:, :, 1]

    def _image(self, key_B: Bits, covered_BLSS: Floats) -> NDArray[np.uint8]:
        """Each layer lies on those before it: what it covers of a pixel has its ink, the rest is as it was."""
        (C, S, _), (B, L) = self.shape, covered_BLSS.shape[:2]
        share_BLSS, rest_BSS = np.empty_like(covered_BLSS), np.ones((B, S, S), np.float32)
        for layer in reversed(range(L)):
            np.multiply(covered_BLSS[:, layer], rest_BSS, out=share_BLSS[:, layer])
            rest_BSS -= share_BLSS[:, layer]
        values_BCGG = between(TEXTURE, uniforms(key_B, Stream.TEXTURE, C * GRID**2)).reshape(B, C, GRID, GRID)
        smooth_SG = tent(np.arange(S) * ((GRID - 1) / (S - 1)), GRID)
        image_BCSS = smooth_SG @ values_BCGG.astype(np.float32) @ smooth_SG.T
        image_BCSS *= rest_BSS[:, None]
        ink_BCL = between(INK, uniforms(key_B, Stream.INK, C * L)).reshape(B, C, L).astype(np.float32)
        image_BCSS += (ink_BCL @ share_BLSS.reshape(B, L, S * S)).reshape(image_BCSS.shape)
        width = self.noise * 3**0.5  # of a uniform distribution to each side, for this std
        if self.noise:
            noise_BCSS = random_bytes(key_B, Stream.NOISE, C * S * S).reshape(image_BCSS.shape)
            image_BCSS += noise_BCSS * np.float32(width / 127.5)  # its mean, width, goes with the offset
        light_B2 = uniforms(key_B, Stream.LIGHT, 2)
        gain_B = np.exp(-DIMMEST * self.light * light_B2[:, 0])
        offset_B = (1 - gain_B) * light_B2[:, 1]  # so that 0 to 1 stays within
        image_BCSS *= (255 * gain_B[:, None, None, None]).astype(np.float32)
        image_BCSS += (255 * (offset_B - gain_B * width)[:, None, None, None] + 0.5).astype(np.float32)
        return image_BCSS.clip(0, 255, out=image_BCSS).astype(np.uint8)


class SceneImages(Scenes):
    """Scenes of one digit with its class. Arguments and errors as in Scenes."""

    most_digits = 1

    def targets(self, drawn: Drawn) -> Sequence[int]:
        return drawn.labels_BD[:, 0].tolist()


class SceneMaps(Scenes):
    """Scenes with a class for each pixel: 0 is no digit, K + 1 the digit K, 255 the rim of one."""

    num_classes = 11
    classes: ClassVar[tuple[str, ...]] = ("background", *map(str, range(10)))

    def targets(self, drawn: Drawn) -> Sequence[Tensor]:
        return torch.from_numpy(label_maps(drawn)).unbind()


class SceneBoxes(Scenes):
    """Scenes with box, mask and class of each digit, as torchvision's detectors and pycocotools take them.

    What is seen of a digit is its mask, and its box is the smallest around that.
    """

    classes = SceneMaps.classes  # of the labels, which count from 1

    def targets(self, drawn: Drawn) -> Sequence[dict[str, Any]]:
        masks_BDSS = visible(drawn)
        return [
            _instances(masks_DSS[seen_D], labels_D[seen_D], index)
            for masks_DSS, labels_D, seen_D, index in zip(
                masks_BDSS, drawn.labels_BD, np.any(masks_BDSS, (2, 3)), drawn.index_B.tolist(), strict=True
            )
        ]


def handwriting(which: Source) -> tuple[Floats, Integers]:
    """Images (N, 8, 8) of ink in [0, 1] and their labels (N,): a part of scikit-learn's, disjoint from the two others.

    `held_out` is what data=digits holds out; a fifth of the rest is for pilots.
    """
    pixels, labels_N = load_handwriting()
    members = held_out(labels_N, "val" if which == "held_out" else "train", train_share=0.8)
    if which != "held_out":
        members = members[held_out(labels_N[members], "train" if which == "train" else "val", train_share=0.8)]
    return (pixels[members] / 16).reshape(-1, SIDE, SIDE).astype(np.float32), labels_N[members]


def visible(drawn: Drawn) -> NDArray[np.bool_]:
    """The pixels (B, D, S, S) in which each digit is seen: later ones hide earlier ones."""
    masks_BDSS = drawn.covered_BDSS >= MASK
    hidden_BSS = np.zeros_like(masks_BDSS[:, 0])
    for digit in reversed(range(masks_BDSS.shape[1])):
        masks_BDSS[:, digit] &= ~hidden_BSS
        hidden_BSS |= masks_BDSS[:, digit]
    return masks_BDSS


def label_maps(drawn: Drawn) -> NDArray[np.uint8]:
    """The class (B, S, S) of each pixel; the rim of a digit is void, also where it lies on another digit."""
    map_BSS = np.zeros_like(drawn.covered_BDSS[:, 0], np.uint8)
    for digit, label_B in enumerate(drawn.labels_BD.T):
        covered_BSS = drawn.covered_BDSS[:, digit]
        map_BSS[covered_BSS >= RIM] = VOID
        np.copyto(map_BSS, label_B[:, None, None].astype(np.uint8) + 1, where=covered_BSS >= MASK)
    return map_BSS


def _instances(masks_MSS: NDArray[np.bool_], labels_M: Integers, index: int) -> dict[str, Any]:
    edges = []
    for axis in (1, 2):  # columns seen, then rows
        seen_MS = np.any(masks_MSS, axis)
        edges.append((seen_MS.argmax(1), seen_MS.shape[1] - seen_MS[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = edges
    return {
        "boxes": torch.from_numpy(np.stack([left, top, right, bottom], 1).astype(np.float32)),
        "labels": torch.from_numpy(labels_M + 1),
        "masks": torch.from_numpy(masks_MSS),
        "area": torch.from_numpy(masks_MSS.sum((1, 2)).astype(np.float32)),
        "iscrowd": torch.zeros(len(labels_M), dtype=torch.int64),
        "image_id": index,
    }


def between(ends: Sequence[float], share: Floats) -> Floats:
    return ends[0] + (ends[1] - ends[0]) * share


def _whole(share: Floats, count: int) -> Integers:
    """Whole numbers from 0 to below `count`, of numbers in [0, 1)."""
    return (share * count).astype(np.int64)


def tent(place: Floats, count: int, width: Any = 1.0) -> Floats:
    """Weights (..., count) of neighbours at 0, 1, ... for linear interpolation at each place (...)."""
    distance = np.abs(place.astype(np.float32)[..., None] - np.arange(count, dtype=np.float32))
    width = np.asarray(width, np.float32)
    return np.maximum(1 - distance / width, 0) / width
