"""Clouds of points in three dimensions, and how they are augmented: the recipes of DGCNN's code.

Shapes: P points; their order means nothing. The second axis, y, points up.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

UP = 1  # the axis
_MOST_JITTER, _MOST_TILT = 5.0, 3.0  # standard deviations at which both are cut: 0.05 and 0.18 in the code


class Augmentation(NamedTuple):
    """What is drawn for each cloud, in this order.

    The defaults are the five of DGCNN's TensorFlow code (provider.py); its PyTorch code has an anisotropic scale of 2/3
    to 3/2 and a shift of 0.2, and no other.

    Attributes:
        rotate: by any angle about the axis that points up.
        jitter: standard deviation of a normal noise of each coordinate, cut at 5 of them.
        scale: factor, drawn between these.
        anisotropic: a factor for each axis.
        tilt: standard deviation of three small angles in radians, one about each axis, cut at 3 of them.
        shift: most that the cloud moves along each axis.
    """

    rotate: bool = True
    jitter: float = 0.01
    scale: tuple[float, float] = (0.8, 1.25)
    anisotropic: bool = False
    tilt: float = 0.06
    shift: float = 0.1

    def __call__(self, points_P3: Tensor) -> Tensor:
        """Another cloud, by torch's random numbers."""
        if self.rotate:
            points_P3 = points_P3 @ turn(UP, 2 * math.pi * torch.rand(()).item())
        if self.jitter:
            most = _MOST_JITTER * self.jitter
            points_P3 = points_P3 + (self.jitter * torch.randn(points_P3.shape)).clamp(-most, most)
        least, largest = self.scale
        points_P3 = points_P3 * (least + (largest - least) * torch.rand(3 if self.anisotropic else 1))
        if self.tilt:
            most = _MOST_TILT * self.tilt
            about_x, about_y, about_z = (self.tilt * torch.randn(3)).clamp(-most, most).tolist()
            points_P3 = points_P3 @ (turn(2, about_z) @ turn(1, about_y) @ turn(0, about_x))
        return points_P3 + self.shift * (2 * torch.rand(3) - 1)


def turn(axis: int, angle: float) -> Tensor:
    """(3, 3): turns by an angle in radians about an axis; a column times it is turned counterclockwise."""
    first, second = _others(axis)
    matrix_33 = torch.eye(3)
    matrix_33[first, first] = matrix_33[second, second] = math.cos(angle)
    matrix_33[first, second], matrix_33[second, first] = -math.sin(angle), math.sin(angle)
    return matrix_33


def _others(axis: int) -> Sequence[int]:
    """The two other axes, in the order of a right hand."""
    return (axis + 1) % 3, (axis + 2) % 3
