"""Evaluation: every sample once, on any number of devices."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normlab.config import Config
from normlab.engine.loader import batches
from normlab.engine.session import Session
from normlab.errors import UserError
from normlab.processes import devices
from normlab.replicas import Pass
from normlab.tasks.metrics import info_of, metrics_of, value_of
from normlab.tasks.task import Batch, Task


@torch.no_grad()
def evaluate(session: Session, split: str = "val", samples: int | None = None) -> dict[str, float]:
    """The task's metrics on a split, with the statistics that the layers hold, in the units that it declares.

    Of so many `samples` of it, evenly spaced; None stands for all.
    """
    task, model = session.experiment.task, session.experiment.model
    metric = task.metric(split).to(session.device)
    was_training = model.training
    model.eval()
    for current, batch in evaluated(session, split, samples):
        with devices.autocast(session.config, session.device):
            predictions = task.predict(model, batch)
        task.update(metric, predictions, batch, [index for _, index in current.keys])
    model.train(was_training)
    with warnings.catch_warnings():  # of more ranks than batches, some have counted nothing: that is no mistake
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method")
        return _checked(task.results(metric), session)


def evaluated(session: Session, split: str, samples: int | None = None) -> Iterator[tuple[Pass, Batch]]:
    """This rank's passes of an evaluation, each with its batch."""
    task = session.experiment.task
    at_once, order = task.evaluation(split)
    indices = list(order if order is not None else range(len(task.dataset(split))))  # type: ignore[arg-type]
    if samples is not None and samples < len(indices):
        indices = [indices[k * len(indices) // samples] for k in range(samples)]
    together = [indices[start : start + at_once] for start in range(0, len(indices), at_once)]
    own = together[session.share.rank :: session.share.ranks]  # whole: what is together does not depend on the ranks
    number = sum(map(len, own))

    def passes() -> Iterator[Pass]:
        for k, block in enumerate(own):
            yield Pass(k, range(1), [(None, i) for i in block], last=True)

    for current, batch in batches(session, split, passes, at_once, leave_out=True):
        yield current, batch
        session.progress("evaluating", min((current.iteration + 1) * at_once, number), number)


def _checked(results: Mapping[str, float], session: Session) -> dict[str, float]:
    """As plain numbers. Raises UserError where a task does not give what it declares."""
    target = session.config.task["_target_"]
    declared = metrics_of(target)
    for name in results:
        if info_of(name, declared) is None:
            raise UserError(f"_target_={target}: results have '{name}', which its metrics do not declare")
    found = {name: float(value) for name, value in results.items()}
    first = next(iter(declared))
    if value_of(found, first, declared) is None:
        raise UserError(f"_target_={target}: results lack {first}, which its runs are known by")
    return found


def check_splits(task: Task, config: Config) -> None:
    """Raise UserError, ahead of any work, if a split that a run is tested on has no sample."""
    for split in task.tested:
        if len(task.dataset(split)) == 0:  # type: ignore[arg-type]
            words = task.splits.get(split, split)
            raise UserError(f"data={config.choices['data']}: its {words} split is empty")


@contextmanager
def statistics(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the layers hold these statistics (buffer name -> value); afterwards their own again.

    Raises UserError on statistics of another model.
    """
    buffers = dict(model.named_buffers())
    if any(name not in buffers or buffers[name].shape != value.shape for name, value in state.items()):
        raise UserError("the run's batch averages are not those of its model; `normlab estimate` measures them again")
    own = {name: buffers[name].clone() for name in state}
    try:
        model.load_state_dict(state, strict=False)
        yield
    finally:
        model.load_state_dict(own, strict=False)
