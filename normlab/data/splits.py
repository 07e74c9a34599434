"""Which samples belong to a split: fixed choices, balanced over the classes, independent of the run's seed."""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def balanced_subset(labels_N: Integers, fraction: float) -> Integers:
    """Indices, ascending, of the given fraction of every class (rounded, at least one sample).

    The choice is fixed, and the subset of a smaller fraction lies within that of a larger one.
    """
    random = np.random.RandomState(0)  # numpy promises that this generator never changes
    counts_K = np.unique(labels_N, return_counts=True)[1]
    by_class = np.split(np.argsort(labels_N, kind="stable"), np.cumsum(counts_K)[:-1])
    chosen = [random.permutation(members)[: max(1, round(fraction * len(members)))] for members in by_class]
    return np.sort(np.concatenate(chosen))


def held_out(labels_N: Integers, split: str, train_share: float) -> Integers:
    """Indices of "train", a fixed `train_share` of every class, or of "val", all the others."""
    train = balanced_subset(labels_N, train_share)
    return train if split == "train" else np.setdiff1d(np.arange(len(labels_N)), train)


def training_fraction(labels_N: Integers, split: str, fraction: float) -> Integers:
    """Indices of a fixed, balanced fraction of the training split; the validation split is always whole."""
    chosen = balanced_subset(labels_N, fraction)
    return chosen if split == "train" else np.arange(len(labels_N))
