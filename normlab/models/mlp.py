"""Fully connected networks."""

from math import prod
from typing import Annotated

from annotated_types import Ge, Le
from torch import nn


def mlp(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: Annotated[int, Ge(1), Le(2**12)] = 4,
    width: Annotated[int, Ge(1), Le(2**16)] = 128,
) -> nn.Module:
    """`depth` hidden layers of `width` neurons, each followed by batch norm and ReLU (HN, Sec. 4.6, on MNIST).

    (N, C, H, W) -> logits (N, num_classes); shape is (C, H, W) of an image, which is flattened.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    in_width = prod(shape)
    for _ in range(depth):
        layers += [nn.Linear(in_width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        in_width = width
    return nn.Sequential(*layers, nn.Linear(in_width, num_classes))
