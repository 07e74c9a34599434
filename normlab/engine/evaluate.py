"""Evaluation: every sample once, on any number of devices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normlab.engine.loader import batches
from normlab.engine.session import Session
from normlab.errors import UserError
from normlab.processes import devices
from normlab.replicas import Pass


@torch.no_grad()
def evaluate(session: Session, split: str = "val") -> dict[str, float]:
    """The task's metrics on a split, with the statistics that the layers hold, in the units that it declares."""
    task, model = session.experiment.task, session.experiment.model
    at_once, order = task.evaluation(split)
    share = session.share
    indices = list(order if order is not None else range(len(task.dataset(split))))[share.rank :: share.ranks]  # type: ignore[arg-type]

    def passes() -> Iterator[Pass]:
        for k, start in enumerate(range(0, len(indices), at_once)):
            yield Pass(k, range(1), [(None, i) for i in indices[start : start + at_once]], last=True)

    metric = task.metric(split).to(session.device)
    was_training = model.training
    model.eval()
    for current, batch in batches(session, split, passes, at_once, leave_out=True):
        with devices.autocast(session.config, session.device):
            predictions = task.predict(model, batch)
        task.update(metric, predictions, batch, [index for _, index in current.keys])
        session.progress("evaluating", min((current.iteration + 1) * at_once, len(indices)), len(indices))
    model.train(was_training)
    return task.results(metric)


def check_splits(session: Session) -> None:
    """Raise UserError, ahead of any work, if a split that a run is tested on has no sample."""
    task = session.experiment.task
    for split in task.tested:
        if len(task.dataset(split)) == 0:  # type: ignore[arg-type]
            words = task.splits.get(split, split)
            raise UserError(f"data={session.config.choices['data']}: its {words} split is empty")


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
