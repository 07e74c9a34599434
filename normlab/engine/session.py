"""What one process holds while it works on a run: the config, its share of the replicas, the model on its device."""

from dataclasses import dataclass

import torch

from normlab.config import Config
from normlab.engine.build import Experiment, build
from normlab.processes import devices, threads
from normlab.processes.signals import Stop
from normlab.progress import Progress, silent
from normlab.replicas import Share
from normlab.runs.folder import RunFolder


@dataclass
class Session:
    config: Config
    folder: RunFolder
    experiment: Experiment
    device: torch.device
    share: Share
    progress: Progress
    stop: Stop

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes the records."""
        return self.share.rank == 0


def open_session(
    folder: RunFolder, progress: Progress = silent, stop: Stop | None = None, *, weights_follow: bool = False
) -> Session:
    """Build the run's experiment on this rank's device; `weights_follow` as of `build`.

    Raises UserError on what only building can tell.
    """
    stop = stop or Stop()
    config, device = folder.config(), devices.this_device()
    devices.prepare(config, device)
    experiment = build(config, weights_follow=weights_follow)
    devices.place(experiment.model, config, device)
    share = Share(config.replicas, config.per_replica, *devices.rank_and_size(), config.replicas_per_pass)
    rows = config.per_replica * max(map(len, share.passes()))
    number = config.threads
    if number is None and device.type == "cpu":
        number = threads.fitting(experiment.model, experiment.task.example, rows)
    if number is not None:
        torch.set_num_threads(number)
    for helper in experiment.task.helpers():
        devices.place(helper, config, device).eval().requires_grad_(False)
    return Session(config, folder, experiment, device, share, _Watched(progress, stop), stop)


class _Watched(Progress):
    """Progress of work that a signal may end."""

    def __init__(self, progress: Progress, stop: Stop) -> None:
        self._progress, self._stop = progress, stop

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        self._progress(what, done, total, note)
        self._stop.check()

    def say(self, line: str) -> None:
        self._progress.say(line)
