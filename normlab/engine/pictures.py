"""What a network predicts of a few samples, kept beside a run's records for a figure."""

import json
from collections.abc import Iterator

import torch

from normlab.engine.loader import batches
from normlab.engine.session import Session
from normlab.processes import devices
from normlab.replicas import Pass
from normlab.runs import checkpoint
from normlab.runs.records import CLASSES
from normlab.tasks.task import Task

SAMPLES = 8  # spread over the split that the run is tested on


@torch.no_grad()
def keep(session: Session) -> None:
    """Save inputs, targets and predictions of some samples by the weights and statistics that the model holds.

    With them go the names of the labels, where the data have some (`classes`). Nothing is saved where the task shows
    none (Task.pictures). One rank does it, without the others.
    """
    task, model = session.experiment.task, session.experiment.model
    if type(task).pictures is Task.pictures or not session.is_first:
        return
    split = task.tested[0]
    number = len(task.dataset(split))  # type: ignore[arg-type]
    chosen = sorted({k * number // SAMPLES for k in range(SAMPLES)})

    def passes() -> Iterator[Pass]:
        return (Pass(k, range(1), [(None, index)], last=True) for k, index in enumerate(chosen))

    was_training = model.training
    model.eval()
    kept: dict[str, torch.Tensor] = {}
    for current, batch in batches(session, split, passes, 1, leave_out=True):
        with devices.autocast(session.config, session.device):
            shown = task.pictures(batch, task.predict(model, batch))
        for sample in shown:
            kept |= {f"{current.keys[0][1]}.{name}": _small(tensor) for name, tensor in sample.items()}
    model.train(was_training)
    names = getattr(task.dataset(split), "classes", None)
    words = {} if names is None else {CLASSES: json.dumps(list(names))}
    checkpoint.save_tensors(session.folder.predictions, kept, words)


def _small(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float16) if tensor.is_floating_point() else tensor
