"""Batches of a rank, in the order of its passes, for training, estimation and evaluation."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

from normlab.data.dataset import SampleError
from normlab.engine.session import Session
from normlab.errors import UserError
from normlab.processes import devices
from normlab.processes.lifetimes import prepare_loader_worker
from normlab.replicas import Pass, normalizers
from normlab.runs import data_errors
from normlab.runs.data_errors import DataErrors
from normlab.tasks.task import Batch, Task

_TOLERATED = 100  # bad samples in a row, or in a batch: more of them are no few bad files, but a bad folder


class _Fetched(NamedTuple):
    samples: list[Any]
    keys: list[tuple[int | None, int]]  # whose samples these are, or stand in for
    errors: list[dict[str, Any]]  # of samples that the dataset could not give
    stop: SampleError | None = None  # what ends the run; as data, which come whole out of a worker


class _Samples(Dataset):
    """The samples of a pass, and what becomes of bad ones where the dataset says data.on_error=skip.

    In training the next good sample of the split takes the place of a bad one, under the randomness of its place: as
    if the one's file were a copy of the other's. In evaluation nothing is counted twice, so a bad one is left out.
    """

    def __init__(self, dataset: Any, leave_out: bool) -> None:
        self.dataset, self.leave_out = dataset, leave_out
        self.skips = getattr(dataset, "on_error", "stop") == "skip"

    def __getitems__(self, keys: list[tuple[int | None, int]]) -> _Fetched:
        take_all = getattr(self.dataset, "take_all", None)
        if take_all is not None:  # of a dataset without bad samples
            return _Fetched(take_all(keys), keys, [])
        fetched = _Fetched([], [], [])
        for key in keys:
            try:
                fetched.samples.append(self._sample(*key, key[1]))
                fetched.keys.append(key)
            except SampleError as error:
                if not self.skips:
                    return _Fetched([], [], [], error)
                fetched.errors.append(data_errors.row(error))
                if not self.leave_out:
                    fetched.samples.append(self._stand_in(*key))
                    fetched.keys.append(key)
                elif len(fetched.errors) > _TOLERATED:
                    raise UserError(
                        f"more than {_TOLERATED} of {len(keys)} samples are bad; the last: {error}"
                    ) from None
        return fetched

    def _sample(self, epoch: int | None, index: int, stored: int) -> Any:
        """What is stored under one index, under the randomness of another if the dataset can tell them apart."""
        take = getattr(self.dataset, "take", None)
        return self.dataset[epoch, stored] if take is None else take(epoch, index, stored)

    def _stand_in(self, epoch: int | None, index: int) -> Any:
        for distance in range(1, _TOLERATED + 1):
            try:
                return self._sample(epoch, index, (index + distance) % len(self.dataset))
            except SampleError as error:
                last = error
        raise UserError(f"sample {index} and the {_TOLERATED} behind it are bad; the last: {last}")


class _Collate:
    """The samples of a pass, replica by replica -> one stacked batch, or one a replica where the task cannot stack.

    No batch if no sample is left; beside it the keys, the errors, and what ends the run.
    """

    def __init__(self, task: Task, split: str, per_replica: int) -> None:
        self.task, self.split, self.per_replica = task, split, per_replica

    def __call__(
        self, fetched: _Fetched
    ) -> tuple[list[Batch], list[tuple[int | None, int]], list[dict[str, Any]], Any]:
        samples = fetched.samples
        starts = range(0, len(samples), self.per_replica)
        replicas = [self.task.collate(samples[start : start + self.per_replica], self.split) for start in starts]
        stacked = self.task.stack(replicas) if replicas else None
        return replicas if stacked is None else [stacked], fetched.keys, fetched.errors, fetched.stop


class _Keys:
    """A batch sampler: the keys of the samples of each pass."""

    def __init__(self, passes: Callable[[], Iterator[Pass]]) -> None:
        self.passes = passes

    def __iter__(self) -> Iterator[list[tuple[int | None, int]]]:
        return (current.keys for current in self.passes())


def batches(
    session: Session, split: str, passes: Callable[[], Iterator[Pass]], per_replica: int, *, leave_out: bool = False
) -> Iterator[tuple[Pass, Batch]]:
    """Each pass with its batch on the session's device.

    What the task cannot stack comes as passes of one replica each. `passes` is called twice: the keys it gives run
    ahead of the data. With data.on_error=skip, bad samples are replaced, or left out of their batches and of
    the keys of their pass; the run's folder lists them.

    Raises SampleError on a bad sample otherwise, UserError where too many are bad.
    """
    task, device, dtype = session.experiment.task, session.device, devices.dtype(session.config)
    dataset = task.dataset(split)
    loader = DataLoader(
        _Samples(dataset, leave_out),
        batch_sampler=_Keys(passes),  # type: ignore[arg-type]
        collate_fn=_Collate(task, split, per_replica),  # type: ignore[arg-type]
        num_workers=session.config.workers,
        worker_init_fn=prepare_loader_worker,
        pin_memory=device.type == "cuda",
    )
    met = DataErrors(session.folder.path, session.share.rank)
    given = lost = False
    for current, (loaded, keys, errors, stop) in zip(passes(), _plain_errors(loader), strict=True):
        if stop is not None:
            raise stop
        met.add(errors)
        given, lost = given or bool(loaded), lost or not loaded
        if not loaded:
            continue
        current = replace(current, keys=keys)
        trips = [current] if len(loaded) == 1 else current.one_by_one()
        if len(trips) > 1 and any(layer.sync for layer in normalizers(session.experiment.model)):
            raise UserError(
                f"norm.sync=true needs the {len(trips)} replicas of a device in one pass, and this task cannot stack "
                f"them; use devices={session.config.replicas}"
            )
        for trip, batch in zip(trips, loaded, strict=True):
            yield trip, _floating_as(dtype, task.prepare(_on_device(batch, device), split))
    if lost and not given:
        raise UserError(f"all samples of {split} are bad; {met.path} lists them")


def _plain_errors(loader: Iterable[Any]) -> Iterator[Any]:
    """A UserError from a worker process comes wrapped in that process's traceback: its last line is the message."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None


def _on_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors in nested lists, tuples and dicts."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def _floating_as(dtype: torch.dtype, batch: Batch) -> Batch:
    """Those of floating point become `dtype`."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, batch)
