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

SAMPLES_AT_ONCE = 256


@torch.no_grad()
def evaluate(session: Session, split: str = "val") -> dict[str, float]:
    """The task's metrics on a split, with the statistics that the layers hold; accuracies in percent."""
    task, model = session.experiment.task, session.experiment.model
    samples = range(session.share.rank, len(task.dataset(split)), session.share.ranks)  # type: ignore[arg-type]

    def passes() -> Iterator[Pass]:
        for k, start in enumerate(range(0, len(samples), SAMPLES_AT_ONCE)):
            yield Pass(k, range(1), [(None, i) for i in samples[start : start + SAMPLES_AT_ONCE]], last=True)

    metric = task.metric().to(session.device)
    was_training = model.training
    model.eval()
    for current, batch in batches(session, split, passes, SAMPLES_AT_ONCE, leave_out=True):
        with devices.autocast(session.config, session.device):
            predictions = task.predict(model, batch)
        task.update(metric, predictions, batch)
        session.progress("evaluating", min((current.iteration + 1) * SAMPLES_AT_ONCE, len(samples)), len(samples))
    model.train(was_training)
    return task.results(metric)


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
