"""Characters as faces: an identity is a character, and what differs between its pictures is the typeface, place, size,
light and noise. Made on the fly: the embedded data of face verification.

Shapes: B pictures of S x S pixels.
"""

from collections.abc import Sequence
from enum import IntEnum, auto
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Tensor

from normlab.data.dataset import check_range, check_split
from normlab.data.generated import Generated
from normlab.data.lettering import FACES, SIDE, characters, picture
from normlab.data.scenes import DIMMEST, between, tent
from normlab.errors import UserError
from normlab.seeding import Bits, uniforms

DISTRACTOR = -1  # the label of a picture whose identity is not asked for
_HELD_OUT, _PILOT = 100, 100  # characters that are probes
_FEWEST_OTHERS = 200  # characters that are neither learned nor probes
_DISTRACTING = 0.75  # of the characters that are neither, those of the held-out split; the others are the pilot's
_MOST_TRAINED = 500


class Stream(IntEnum):
    """What a picture draws, each from numbers of its own."""

    FACE = auto()
    SIZE = auto()
    PLACE = auto()
    LIGHT = auto()
    NOISE = auto()


class Drawings(Generated[int]):
    """Pictures of characters.

    One for training is a function of (seed, epoch, index), with epoch None of the index alone. Those for
    validation are fixed and share no random number with the others.
    """

    mean: ClassVar[Sequence[float]] = (0.4,)
    std: ClassVar[Sequence[float]] = (0.25,)
    noun = "pictures"
    chosen: tuple[str, ...]  # the characters
    labels_N: NDArray[np.int64]
    which_N: NDArray[np.int64]  # of the chosen characters

    def __init__(self, seed: int, size: int, scale: tuple[float, float], light: float, noise: float) -> None:
        check_range("scale", scale)
        self.seed, self.shape = seed, (1, size, size)
        self.scale, self.light, self.noise = scale, light, noise

    def __len__(self) -> int:
        return len(self.labels_N)

    def take_all(self, keys: Sequence[tuple[int | None, int]]) -> list[tuple[Tensor, int]]:
        """The pictures of many keys, each as `take` gives it. Raises IndexError."""
        index_B, key_B = self.bits(keys)
        images_B1SS = torch.from_numpy(self._draw(key_B, self.which_N[index_B]))
        return list(zip(images_B1SS.unbind(), self.labels_N[index_B].tolist(), strict=True))

    def _draw(self, key_B: Bits, which_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        S, B = self.shape[1], len(key_B)
        face_B = (uniforms(key_B, Stream.FACE, 1)[:, 0] * len(FACES)).astype(np.int64)
        drawn = zip(which_B.tolist(), face_B.tolist(), strict=True)
        ink_BTT = np.stack([picture(self.chosen[which], face) for which, face in drawn])
        side_B1 = between(self.scale, uniforms(key_B, Stream.SIZE, 1)) * S
        corner_B2 = uniforms(key_B, Stream.PLACE, 2) * (S - side_B1)
        pixel_B2S = (np.arange(S) + 0.5 - corner_B2[..., None]) * (SIDE / side_B1[..., None]) - 0.5
        rows_BST, columns_BST = tent(pixel_B2S, SIDE, np.maximum(SIDE / side_B1, 1)[..., None, None]).swapaxes(0, 1)
        image_BSS = rows_BST @ ink_BTT @ columns_BST.swapaxes(1, 2)
        noise_BSS = uniforms(key_B, Stream.NOISE, S * S).reshape(B, S, S) - 0.5
        image_BSS = image_BSS + self.noise * 12**0.5 * noise_BSS  # uniform, of this standard deviation
        light_B2 = uniforms(key_B, Stream.LIGHT, 2)
        gain_B = np.exp(-DIMMEST * self.light * light_B2[:, 0])
        offset_B = (1 - gain_B) * light_B2[:, 1]
        image_BSS = image_BSS * gain_B[:, None, None] + offset_B[:, None, None]
        return (255 * image_BSS + 0.5).clip(0, 255).astype(np.uint8)[:, None]


class Glyphs(Drawings):
    """`dataset[epoch, index]` is (float32 image (1, S, S), identity).

    Training has `identities` characters. The split for validation has 100 others, `probes` pictures of each, and behind
    them `distractors` pictures of further characters, whose label is -1. No character is in two of these.

    Args:
        split: "train" or "val".
        seed: of the training pictures.
        size: S.
        identities: characters that are learned, up to 500.
        length: number of training pictures; each identity has as many, as far as they come out even.
        scale: side of a character, least and most, as a share of the picture's.
        light: 0 is the same light for all; at 1 it takes up to 95% of the contrast.
        noise: standard deviation of the noise of a pixel, before the light.
        probes: pictures of each of the identities that are verified.
        distractors: pictures of others.
        validation: characters of the validation split: `held_out`, or `pilot`, to choose settings by.

    Raises:
        UserError: there is no such split, a range has its ends reversed, or there is no font.
    """

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        size: Annotated[int, Ge(8), Le(2**10)] = 32,
        identities: Annotated[int, Ge(2), Le(500)] = 500,
        length: Annotated[int, Ge(1), Le(2**27)] = 3600,
        scale: tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]] = (0.75, 0.95),
        light: Annotated[float, Ge(0), Le(1)] = 0.1,
        noise: Annotated[float, Ge(0), Le(1)] = 0.05,
        probes: Annotated[int, Ge(2), Le(2**10)] = 12,
        distractors: Annotated[int, Ge(1), Le(2**20)] = 1000,
        validation: Literal["held_out", "pilot"] = "held_out",
    ):
        check_split(split)
        super().__init__(seed, size, scale, light, noise)
        self.num_classes = identities
        if split == "train":
            self.source, self.chosen = "train", alphabet("train")[:identities]
            self.which_N = self.labels_N = np.arange(length) % identities
        else:
            self.source = validation
            verified, others = alphabet(validation), alphabet(f"{validation} distractors")
            self.chosen = verified + others
            known_N = np.repeat(np.arange(len(verified)), probes)
            others_N = np.arange(distractors) % len(others)
            self.labels_N = np.concatenate([known_N, np.full(distractors, DISTRACTOR)])
            self.which_N = np.concatenate([known_N, len(verified) + others_N])


class GlyphImages(Drawings):
    """`dataset[epoch, index]` is (float32 image (1, S, S), character): what Glyphs trains on, for a classifier.

    Arguments and errors as in Glyphs; validation has other pictures of the same characters.
    """

    def __init__(
        self,
        split: str,
        seed: int,
        *,
        size: Annotated[int, Ge(8), Le(2**10)] = 32,
        identities: Annotated[int, Ge(2), Le(500)] = 500,
        length: Annotated[int, Ge(1), Le(2**27)] = 3600,
        val_length: Annotated[int, Ge(1), Le(2**27)] = 600,
        scale: tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]] = (0.75, 0.95),
        light: Annotated[float, Ge(0), Le(1)] = 0.1,
        noise: Annotated[float, Ge(0), Le(1)] = 0.05,
        validation: Literal["held_out", "pilot"] = "held_out",
    ):
        check_split(split)
        super().__init__(seed, size, scale, light, noise)
        self.source, self.chosen = "train" if split == "train" else validation, alphabet("train")[:identities]
        self.num_classes = identities
        self.which_N = self.labels_N = np.arange(length if split == "train" else val_length) % identities


@cache
def alphabet(which: str) -> tuple[str, ...]:
    """The characters of train, held_out, pilot, "held_out distractors" and "pilot distractors": a fixed choice."""
    every = characters()
    order = np.random.RandomState(0).permutation(len(every)).tolist()  # numpy promises that this never changes
    first = _MOST_TRAINED + _HELD_OUT + _PILOT
    needed = first + _FEWEST_OTHERS
    if len(every) < needed:
        raise UserError(f"data=glyphs: the fonts have {len(every)} characters that differ; expected {needed} or more")
    middle = first + round(_DISTRACTING * (len(every) - first))
    ends = {
        "train": (0, _MOST_TRAINED),
        "held_out": (_MOST_TRAINED, _MOST_TRAINED + _HELD_OUT),
        "pilot": (_MOST_TRAINED + _HELD_OUT, first),
        "held_out distractors": (first, middle),
        "pilot distractors": (middle, len(every)),
    }
    start, stop = ends[which]
    return tuple(every[k] for k in order[start:stop])
