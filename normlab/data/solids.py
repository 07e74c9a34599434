"""Eight solids as clouds of points on their surface, made on the fly: the embedded data of point clouds.

Each is a solid of revolution with a number of sides: a profile (radius, height) turned about an axis in so many steps.
A cube is a rectangle in four steps, a cylinder the same in many.

Shapes: B clouds, P points, F triangles.
"""

import math
from collections.abc import Sequence
from enum import IntEnum, auto
from functools import cache
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.clouds import UP
from normlab.data.dataset import check_range, check_split
from normlab.data.generated import Generated
from normlab.seeding import Bits, uniforms

Floats = NDArray[np.float64]

_ROUND = 32  # sides of what is round
_ARC = [(math.sin(t), -math.cos(t)) for t in np.linspace(0, math.pi, 17)]
_RING = [(0.7 + 0.3 * math.cos(t), 0.3 * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 17)]
_CAPPED = [(0, -0.7), (0.7, -0.7), (0.7, 0.7), (0, 0.7)]
_POINTED = [(0, -0.5), (0.9, -0.5), (0, 1)]
SOLIDS = {  # name -> profile, sides
    "sphere": (_ARC, _ROUND),
    "cylinder": (_CAPPED, _ROUND),
    "cone": (_POINTED, _ROUND),
    "torus": (_RING, _ROUND),
    "cube": ([(0, -0.7), (1, -0.7), (1, 0.7), (0, 0.7)], 4),
    "prism": ([(0, -0.7), (1, -0.7), (1, 0.7), (0, 0.7)], 3),
    "octahedron": ([(0, -1), (1, 0), (0, 1)], 4),
    "tetrahedron": ([(0, -1 / 3), (8**0.5 / 3, -1 / 3), (0, 1)], 3),
}


class Stream(IntEnum):
    """What a cloud draws, each from numbers of its own."""

    TRIANGLE = auto()
    PLACE = auto()
    STRETCH = auto()
    ROTATION = auto()
    NOISE = auto()


class Surface(NamedTuple):
    """Triangles, and the share of the surface that they have together with those before them."""

    corners_F33: Floats  # corner, coordinate
    share_F: Floats


class Solids(Generated[int]):
    """Clouds of eight solids. `dataset[epoch, index]` is (float32 points (P, 3), class).

    Points are drawn evenly over a solid's surface; it is stretched along its axis, turned at random, and each point
    gets normal noise. As ModelNet40's files, clouds are centred and have a largest radius of 1.

    A training cloud is a function of (seed, epoch, index), with epoch None of the index alone. Those for validation are
    fixed; they share no random number with the training clouds.

    Args:
        split: "train" or "val".
        seed: of the training clouds.
        points: of a cloud.
        stretch: factor along the axis of a solid, drawn between these.
        turn: how it is turned: standing, by any angle about its axis, which points up; or in all directions.
        noise: standard deviation, where solids have a radius of about 1.
        length, val_length: number of clouds of the splits.
        validation: `held_out`, or `pilot`: other clouds, to choose settings by.

    Raises:
        UserError: there is no such split, or the range has its ends reversed.
    """

    called = "clouds"
    noun = "clouds"
    classes: ClassVar[tuple[str, ...]] = tuple(SOLIDS)
    num_classes: ClassVar[int] = len(SOLIDS)

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        points: Annotated[int, Ge(2), Le(2**16)] = 128,
        stretch: tuple[Annotated[float, Gt(0), Le(16)], Annotated[float, Gt(0), Le(16)]] = (0.8, 1.25),
        turn: Literal["standing", "all"] = "standing",
        noise: Annotated[float, Ge(0), Le(1)] = 0.03,
        length: Annotated[int, Ge(1), Le(2**27)] = 1600,
        val_length: Annotated[int, Ge(1), Le(2**27)] = 800,
        validation: Literal["held_out", "pilot"] = "held_out",
    ):
        check_split(split)
        check_range("stretch", stretch)
        self.source = "train" if split == "train" else validation
        self.seed, self.shape = seed, (points, 3)
        self.stretch, self.turn, self.noise = stretch, turn, noise
        self.length = length if split == "train" else val_length

    def __len__(self) -> int:
        return self.length

    def take_all(self, keys: Sequence[tuple[int | None, int]]) -> list[tuple[Tensor, int]]:
        """The clouds of many keys, each as `take` gives it. Raises IndexError."""
        index_B, key_B = self.bits(keys)
        class_B = index_B % self.num_classes
        points_BP3 = self._points(key_B, class_B).astype(np.float32)
        return list(zip(torch.from_numpy(points_BP3).unbind(), class_B.tolist(), strict=True))

    def _points(self, key_B: Bits, class_B: NDArray[np.int64]) -> Floats:
        B, P = len(key_B), self.shape[0]
        points_BP3 = np.empty((B, P, 3))
        for label in np.unique(class_B).tolist():
            members = class_B == label
            points_BP3[members] = _on_surface(surface(self.classes[label]), key_B[members], P)
        least, most = self.stretch
        points_BP3[..., UP] *= least + (most - least) * uniforms(key_B, Stream.STRETCH, 1)
        rotated = rotations if self.turn == "all" else standing
        points_BP3 = points_BP3 @ rotated(uniforms(key_B, Stream.ROTATION, 3))
        points_BP3 += self.noise * _normal(uniforms(key_B, Stream.NOISE, 6 * P)).reshape(B, P, 3)
        points_BP3 -= points_BP3.mean(1, keepdims=True)
        return points_BP3 / np.linalg.norm(points_BP3, axis=2).max(1)[:, None, None]


@cache
def surface(name: str) -> Surface:
    """The triangles of a solid."""
    profile, sides = SOLIDS[name]
    angle_S = 2 * math.pi * np.arange(sides + 1) / sides
    radius_R1, height_R1 = np.array(profile)[:, :1], np.array(profile)[:, 1:]
    ring_RS3 = np.stack([radius_R1 * np.sin(angle_S), height_R1 + 0 * angle_S, radius_R1 * np.cos(angle_S)], 2)
    a, b, c, d = ring_RS3[:-1, :-1], ring_RS3[:-1, 1:], ring_RS3[1:, :-1], ring_RS3[1:, 1:]
    corners_F33 = np.concatenate([np.stack(t, 2).reshape(-1, 3, 3) for t in ((a, b, c), (b, d, c))])
    area_F = np.linalg.norm(np.cross(*(corners_F33[:, k] - corners_F33[:, 0] for k in (1, 2))), axis=1)
    return Surface(corners_F33, np.cumsum(area_F) / area_F.sum())


def standing(share_B3: Floats) -> Floats:
    """Rotation matrices (B, 3, 3) about the axis that points up, evenly over all, of numbers in [0, 1)."""
    angle_B = 2 * math.pi * share_B3[:, 0]
    matrix_B33 = np.zeros((len(angle_B), 3, 3))
    matrix_B33[:, UP, UP] = 1
    matrix_B33[:, 0, 0] = matrix_B33[:, 2, 2] = np.cos(angle_B)
    matrix_B33[:, 0, 2] = np.sin(angle_B)
    matrix_B33[:, 2, 0] = -matrix_B33[:, 0, 2]
    return matrix_B33


def rotations(share_B3: Floats) -> Floats:
    """Rotation matrices (B, 3, 3), evenly over all, of numbers in [0, 1) (Shoemake 1992)."""
    first_B, second_B, third_B = share_B3.T
    a_B, b_B = np.sqrt(1 - first_B), np.sqrt(first_B)
    x, y = a_B * np.sin(2 * math.pi * second_B), a_B * np.cos(2 * math.pi * second_B)
    z, w = b_B * np.sin(2 * math.pi * third_B), b_B * np.cos(2 * math.pi * third_B)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def _on_surface(solid: Surface, key_B: Bits, count: int) -> Floats:
    """Points (B, count, 3), evenly over the surface."""
    B, last = len(key_B), len(solid.share_F) - 1
    chosen_BP = np.searchsorted(solid.share_F, uniforms(key_B, Stream.TRIANGLE, count), side="right").clip(max=last)
    place_BP2 = uniforms(key_B, Stream.PLACE, 2 * count).reshape(B, count, 2)
    root_BP, other_BP = np.sqrt(place_BP2[..., 0]), place_BP2[..., 1]
    weight_BP3 = np.stack([1 - root_BP, root_BP * (1 - other_BP), root_BP * other_BP], 2)
    return np.einsum("bpc,bpcx->bpx", weight_BP3, solid.corners_F33[chosen_BP])


def _normal(share_BN: Floats) -> Floats:
    """Half as many normal numbers (B, N / 2) as there are in [0, 1) (Box and Muller 1958)."""
    radius_BN, angle_BN = np.split(share_BN, 2, axis=1)
    return np.sqrt(-2 * np.log1p(-radius_BN)) * np.cos(2 * math.pi * angle_BN)
