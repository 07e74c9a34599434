"""Some of the samples of a dataset, and minibatches for each of several networks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from normlab.data.splits import Integers, held_out
from normlab.seeding import mix_seed

Key = tuple[int | None, int]  # epoch, None for no augmentation, and index


class Part(Dataset):
    """Samples of a dataset, numbered anew; `part[epoch, index]` as there, and in all else as there.

    Args:
        whole: the dataset.
        indices: of the samples in it.
        augmented: False: as with an epoch of None.
        numbered: whether its index stands behind each sample, which are tuples.
    """

    def __init__(self, whole: Any, indices: Integers, augmented: bool = True, numbered: bool = False) -> None:
        self.whole, self.indices, self.augmented, self.numbered = whole, indices, augmented, numbered
        for name in ("shape", "num_classes"):
            if hasattr(whole, name):
                setattr(self, name, getattr(whole, name))
        self.on_error = getattr(whole, "on_error", "stop")
        if hasattr(whole, "take_all"):
            self.take_all = self._take_all

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Key) -> Any:
        return self._numbered(self.whole[self._there(key)], key[1])

    def take(self, epoch: int | None, index: int, stored: int) -> Any:
        """As Samples.take; of a dataset without it, one key is all that says which sample it is."""
        (epoch, there), (_, stored) = self._there((epoch, index)), self._there((epoch, stored))
        whole = self.whole
        sample = whole.take(epoch, there, stored) if hasattr(whole, "take") else whole[epoch, stored]
        return self._numbered(sample, index)

    def _take_all(self, keys: Sequence[Key]) -> list[Any]:
        samples = self.whole.take_all([self._there(key) for key in keys])
        return [self._numbered(sample, index) for sample, (_, index) in zip(samples, keys, strict=True)]

    def _numbered(self, sample: Any, index: int) -> Any:
        return (*sample, index) if self.numbered else sample

    def _there(self, key: Key) -> Key:
        epoch, index = key
        return epoch if self.augmented else None, int(self.indices[index])

    def normalize(self, images: Tensor) -> Tensor:
        return self.whole.normalize(images)


class Minibatches(Dataset):
    """Of each key `count` samples, stacked, for as many networks, none of which meets a sample twice in an epoch.

    A batch of N keys is so a minibatch of N samples for each network, in an order of its own: a function of
    (seed, epoch), for networks that are compared as if each had been given the next minibatch.
    """

    def __init__(self, part: Part, count: int, seed: int) -> None:
        self.part, self.count, self.seed = part, count, seed
        self.on_error = part.on_error
        self._orders: tuple[int | None, list[list[int]]] = (-1, [])

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        epoch, index = key
        keys: list[Key] = [(None, order[index]) for order in self._of_epoch(epoch)]
        take_all = getattr(self.part, "take_all", None)
        samples = take_all(keys) if take_all else [self.part.take(None, i, i) for _, i in keys]
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.tensor(labels)

    def _of_epoch(self, epoch: int | None) -> list[list[int]]:
        if self._orders[0] != epoch:
            seeds = [mix_seed(self.seed, -1 if epoch is None else epoch, k) for k in range(self.count)]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            self._orders = epoch, [torch.randperm(len(self), generator=g).tolist() for g in generators]
        return self._orders[1]

    def normalize(self, images: Tensor) -> Tensor:
        return self.part.normalize(images)


def parted(whole: Any, share: float) -> tuple[Integers, Integers]:
    """Indices of all samples but a fixed `share` of every class, and of that share: the last, of unknown classes."""
    labels_N = getattr(whole, "labels_N", None)
    if labels_N is None:
        kept, every = round(len(whole) * (1 - share)), np.arange(len(whole))
        return every[:kept], every[kept:]
    return held_out(labels_N, "train", 1 - share), held_out(labels_N, "val", 1 - share)
