"""Batches of a rank, in the order of its passes, for training, estimation and evaluation."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from normlab.engine import devices
from normlab.engine.session import Session
from normlab.errors import UserError
from normlab.replicas import Pass, normalizers
from normlab.tasks.task import Batch, Task


class _Collate:
    """The samples of a pass, replica by replica -> one stacked batch, or one a replica where the task cannot stack."""

    def __init__(self, task: Task, per_replica: int) -> None:
        self.task, self.per_replica = task, per_replica

    def __call__(self, samples: list[Any]) -> list[Batch]:
        starts = range(0, len(samples), self.per_replica)
        replicas = [self.task.collate(samples[start : start + self.per_replica]) for start in starts]
        stacked = self.task.stack(replicas)
        return replicas if stacked is None else [stacked]


class _Keys:
    """A batch sampler: the keys of the samples of each pass."""

    def __init__(self, passes: Callable[[], Iterator[Pass]]) -> None:
        self.passes = passes

    def __iter__(self) -> Iterator[list[tuple[int | None, int]]]:
        return (current.keys for current in self.passes())


def batches(
    session: Session, split: str, passes: Callable[[], Iterator[Pass]], per_replica: int
) -> Iterator[tuple[Pass, Batch]]:
    """Each pass with its batch on the session's device.

    What the task cannot stack comes as passes of one replica each. `passes` is called twice: the keys it gives run
    ahead of the data.
    """
    task, device, dtype = session.experiment.task, session.device, devices.dtype(session.config)
    loader = DataLoader(
        task.dataset(split),
        batch_sampler=_Keys(passes),  # type: ignore[arg-type]
        collate_fn=_Collate(task, per_replica),
        num_workers=session.config.workers,
        pin_memory=device.type == "cuda",
    )
    for current, loaded in zip(passes(), _plain_errors(loader), strict=True):
        trips = [current] if len(loaded) == 1 else current.one_by_one()
        if len(trips) > 1 and any(layer.sync for layer in normalizers(session.experiment.model)):
            raise UserError(
                f"norm.sync=true needs the {len(trips)} replicas of a device in one pass, and this task cannot stack "
                f"them; use devices={session.config.replicas}"
            )
        for trip, batch in zip(trips, loaded, strict=True):
            yield trip, to_device(batch, device, dtype)


def _plain_errors(loader: Iterable[Any]) -> Iterator[Any]:
    """A UserError from a worker process comes wrapped in that process's traceback: its last line is the message."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Move the tensors in nested lists, tuples and dicts; those of floating point become `dtype`."""
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device, dtype) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device, dtype) for value in batch)
    return batch
