"""Samples that are drawn when they are asked for: each is a function of what names it, whoever asks."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from normlab.data.dataset import Samples, Target
from normlab.data.splits import Integers
from normlab.seeding import Bits, hashed

Key = tuple[int | None, int]  # epoch and index
Source = Literal["train", "held_out", "pilot"]


class Generated(Samples[Target]):
    """Drawn from random numbers that are a function of the sample.

    One for training is a function of (seed, epoch, index), with epoch None of the index alone. Those for validation
    are fixed, and share no random number with the others, nor pilots with those held out.

    Attributes:
        source: what the split is drawn of.
        fresh: each epoch of each seed has samples of its own. Otherwise all have one set.
    """

    noun: ClassVar[str] = "samples"
    first_stream: ClassVar[int] = 0  # of the five that a kind of sample has, so that kinds share no number
    source: Source
    fresh: bool = True

    def take(self, epoch: int | None, index: int, stored: int) -> tuple[Tensor, Target]:
        return self.take_all([(epoch, index)])[0]

    @abstractmethod
    def take_all(self, keys: Sequence[Key]) -> list[tuple[Tensor, Any]]:
        """The samples of many keys, each as `take` gives it. Raises IndexError."""

    def bits(self, keys: Sequence[Key]) -> tuple[Integers, Bits]:
        """The indices (B,) of keys, and the bits (B,) of which all else of each sample is a function.

        Raises IndexError.
        """
        index_B = np.array([index for _, index in keys])
        number = len(self)
        if not ((index_B >= 0) & (index_B < number)).all():
            raise IndexError(f"{self.noun} 0 to {number - 1}, not {index_B.tolist()}")
        trained, held_out, pilot, plain, kept = range(self.first_stream, self.first_stream + 5)
        if self.source != "train":
            return index_B, hashed(held_out if self.source == "held_out" else pilot, index_B)
        if not self.fresh:
            return index_B, hashed(kept, index_B)
        epoch_B = np.array([-1 if epoch is None else epoch for epoch, _ in keys])
        key_B = np.where(epoch_B < 0, hashed(plain, index_B), hashed(trained, self.seed, epoch_B, index_B))
        return index_B, key_B
