"""Learning-rate schedules: what an update's learning rate is multiplied with.

All take the update's number (from 0), the number of updates of the run and of an epoch. Lengths are in `unit`:
fractions of the run, epochs or iterations (updates). `warmup` rises linearly from 0 over its length.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Unit = Literal["fraction", "epochs", "iterations"]


def step(
    update: int,
    total: int,
    per_epoch: int,
    *,
    milestones: Sequence[Annotated[float, Ge(0)]] = (0.3, 0.6, 0.9),
    factor: Annotated[float, Gt(0)] = 0.1,
    unit: Literal["fraction", "epochs", "iterations"] = "fraction",
    warmup: Annotated[float, Ge(0)] = 0.0,
) -> float:
    """Multiply with `factor` at each milestone."""
    passed = sum(update >= round(_updates(m, unit, total, per_epoch)) for m in milestones)
    return _warmup(update, _updates(warmup, unit, total, per_epoch)) * factor**passed


def cosine(
    update: int,
    total: int,
    per_epoch: int,
    *,
    unit: Literal["fraction", "epochs", "iterations"] = "fraction",
    warmup: Annotated[float, Ge(0)] = 0.0,
) -> float:
    """Half a cosine from 1 to 0, after the warm-up."""
    start = _updates(warmup, unit, total, per_epoch)
    done = max(0.0, update - start) / max(1.0, total - start)
    return _warmup(update, start) * 0.5 * (1 + math.cos(math.pi * done))


def cosine_restarts(
    update: int,
    total: int,
    per_epoch: int,
    *,
    first: Annotated[float, Gt(0)] = 10,
    times: Annotated[float, Ge(1)] = 2,
    least: Annotated[float, Ge(0), Lt(1)] = 0.01,
    each: Literal["update", "epoch"] = "update",
    unit: Literal["fraction", "epochs", "iterations"] = "epochs",
) -> float:
    """Half a cosine from 1 to `least`, over and over: the first of length `first`, each of `times` the one before.

    SGDR (Loshchilov and Hutter 2017).

    Args:
        update, total, per_epoch: as above.
        first: length of the first cosine, in `unit`; an update at least.
        times: by which each is longer than the one before.
        least: the smallest factor of the rate, that each ends in.
        each: when the rate moves: at each update, or once an epoch, as in ENAS's code.
        unit: of `first`.
    """
    done: float = update if each == "update" else update // per_epoch * per_epoch
    length = max(1.0, _updates(first, unit, total, per_epoch))
    if times == 1:
        done %= length
    while done >= length:
        done, length = done - length, length * times
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * done / length))


def poly(
    update: int,
    total: int,
    per_epoch: int,
    *,
    power: Annotated[float, Gt(0)] = 0.9,
    unit: Literal["fraction", "epochs", "iterations"] = "fraction",
    warmup: Annotated[float, Ge(0)] = 0.0,
) -> float:
    """(1 - done)^power; WS leaves the power open, 0.9 is DeepLab's."""
    return _warmup(update, _updates(warmup, unit, total, per_epoch)) * (1 - update / total) ** power


def exponential(
    update: int,
    total: int,
    per_epoch: int,
    *,
    every: Annotated[float, Gt(0)] = 0.1,
    factor: Annotated[float, Gt(0)] = 0.7,
    least: Annotated[float, Ge(0)] = 0.0,
    unit: Literal["fraction", "epochs", "iterations"] = "fraction",
    warmup: Annotated[float, Ge(0)] = 0.0,
) -> float:
    """Multiply with `factor` after every so long, down to `least` (DGCNN's TensorFlow code)."""
    passed = update // max(1, round(_updates(every, unit, total, per_epoch)))
    return _warmup(update, _updates(warmup, unit, total, per_epoch)) * max(least, factor**passed)


def _updates(length: float, unit: Unit, total: int, per_epoch: int) -> float:
    return length * {"fraction": total, "epochs": per_epoch, "iterations": 1}[unit]


def _warmup(update: int, length: float) -> float:
    return min(1.0, (update + 1) / length) if length > 0 else 1.0
