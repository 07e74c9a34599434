"""Crops of scikit-learn's two photographs, a temple and a flower, and a painting for style: images without a label."""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.dataset import check_split
from normlab.data.generated import Generated, Key
from normlab.errors import UserError
from normlab.seeding import uniforms

_COLUMNS = {"train": (0, 384), "pilot": (384, 512), "held_out": (512, 640)}  # of a photograph: what no other split sees
_PALETTE = ((26, 35, 126), (240, 98, 37), (255, 214, 90), (198, 40, 90), (0, 150, 136))  # of the painting, RGB


@cache
def photographs() -> NDArray[np.uint8]:
    """Both, (2, H, W, 3)."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


class Photographs(Generated[None]):
    """Crops of two photographs; `dataset[epoch, index]` is (image, None).

    The left three fifths of a photograph are for training, the next for pilots, the right one for validation. A
    training crop is a function of (seed, epoch, index), with epoch None of the index alone, and half of them are
    mirrored; those for validation are fixed.

    Args:
        split: "train" or "val".
        seed: of the training crops.
        size: side of an image in pixels.
        shrink: a photograph's pixels for one of an image, along each side.
        length, val_length: number of crops of the splits.
        validation: what the validation split is cut out of: `held_out`, or `pilot`, to choose settings by.

    Raises:
        UserError: there is no such split, or a crop is wider than what is held out.
    """

    mean: ClassVar[Sequence[float]] = (0.5, 0.5, 0.5)
    std: ClassVar[Sequence[float]] = (0.25, 0.25, 0.25)
    noun = "crops"
    first_stream = 15

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        size: Annotated[int, Ge(4), Le(2**10)] = 64,
        shrink: Annotated[int, Ge(1), Le(2**5)] = 2,
        length: Annotated[int, Ge(1), Le(2**27)] = 4000,
        val_length: Annotated[int, Ge(1), Le(2**27)] = 32,
        validation: Literal["held_out", "pilot"] = "held_out",
    ) -> None:
        check_split(split)
        self.source = "train" if split == "train" else validation
        self.seed, self.shape, self.shrink = seed, (3, size, size), shrink
        self.length = length if split == "train" else val_length
        first, last = _COLUMNS[self.source]
        self.photographs_2HW3 = photographs()[:, :, first:last]
        narrowest = min(end - start for start, end in _COLUMNS.values())
        if size * shrink > narrowest:
            raise UserError(
                f"data.size={size}: a crop takes {size * shrink} pixels of a photograph (data.shrink={shrink}), and "
                f"what is held out of one is {narrowest} wide"
            )

    def __len__(self) -> int:
        return self.length

    def take_all(self, keys: Sequence[Key]) -> list[tuple[Tensor, None]]:
        """The crops of many keys, each as `take` gives it. Raises IndexError."""
        _, bits_B = self.bits(keys)
        place_B4 = uniforms(bits_B, 0, 4)
        number, height, width, _ = self.photographs_2HW3.shape
        side = self.shape[1] * self.shrink
        tops_B = (place_B4[:, 0] * (height - side + 1)).astype(int)
        lefts_B = (place_B4[:, 1] * (width - side + 1)).astype(int)
        numbers_B = (place_B4[:, 3] * number).astype(int)
        mirrors_B = place_B4[:, 2] < 0.5 if self.source == "train" else np.zeros(len(keys), bool)
        return [
            (self._crop(which, top, left, side, mirrors), None)
            for which, top, left, mirrors in zip(
                *(drawn_B.tolist() for drawn_B in (numbers_B, tops_B, lefts_B, mirrors_B)), strict=True
            )
        ]

    def _crop(self, number: int, top: int, left: int, side: int, mirrors: bool) -> Tensor:
        """(3, S, S) in bytes; a pixel is the mean of those that it stands for."""
        crop_HW3 = self.photographs_2HW3[number, top : top + side, left : left + side]
        if mirrors:
            crop_HW3 = crop_HW3[:, ::-1]
        size, k = self.shape[1], self.shrink
        means_SS3 = crop_HW3.reshape(size, k, size, k, 3).mean((1, 3)).round().astype(np.uint8)
        return torch.from_numpy(means_SS3).permute(2, 0, 1).contiguous()


def painting(size: int) -> NDArray[np.uint8]:
    """A picture (S, S, 3) of bent stripes of five colours with dark edges: a style that anybody has."""
    y_SS, x_SS = np.mgrid[0:size, 0:size] / size
    bent_SS = 0.18 * np.sin(2 * np.pi * (1.5 * x_SS + 0.8 * y_SS)) + 0.1 * np.sin(2 * np.pi * (2.2 * y_SS - 1.3 * x_SS))
    phase_SS = 10 * (0.6 * x_SS + y_SS + bent_SS) + 0.35 * np.sin(2 * np.pi * (7 * x_SS - 3 * y_SS))
    stripe_SS, inside_SS = np.divmod(phase_SS, 1.0)
    colours_K3 = np.array(_PALETTE, float)
    colour_SS3 = colours_K3[stripe_SS.astype(int) % len(colours_K3)]
    edge_SS = np.clip(8 * np.minimum(inside_SS, 1 - inside_SS), 0.15, 1.0)
    return (colour_SS3 * edge_SS[..., None]).round().astype(np.uint8)
