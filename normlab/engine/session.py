"""What one process holds while it works on a run: the config, its share of the replicas, the model on its device."""

import signal
from dataclasses import dataclass

import torch
import torch.distributed as dist

from normlab.config import Config
from normlab.engine import devices
from normlab.engine.build import Experiment, build
from normlab.engine.record import RunFolder
from normlab.replicas import Share
from normlab.report.progress import Progress, silent


@dataclass
class Session:
    config: Config
    folder: RunFolder
    experiment: Experiment
    device: torch.device
    share: Share
    progress: Progress

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes the records."""
        return self.share.rank == 0


def open_session(folder: RunFolder, progress: Progress = silent) -> Session:
    """Build the run's experiment on this rank's device. Raises UserError on what only building can tell."""
    config, device = folder.config(), devices.this_device()
    devices.prepare(config, device)
    experiment = build(config)
    devices.place(experiment.model, config, device)
    rank, ranks = devices.rank_and_size()
    share = Share(config.replicas, config.per_replica, rank, ranks, config.replicas_per_pass)
    return Session(config, folder, experiment, device, share, progress)


class Stop:
    """Set by SIGTERM, SIGINT (Ctrl-C) or SIGUSR2 (submitit's, ahead of a time limit): finish the update, save, go.

    A second Ctrl-C ends a lone process at once; to ranks the launcher repeats every signal.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "Stop":
        self._previous = {number: signal.getsignal(number) for number in self.SIGNALS}
        for number in self._previous:
            signal.signal(number, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        ends_soon = self.signal and dist.is_initialized()  # then a repeated signal must not cut the records short
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ends_soon else handler)

    def _set(self, number: int, _frame: object) -> None:
        if self.signal and number == signal.SIGINT and not dist.is_initialized():
            raise KeyboardInterrupt
        self.signal = number

    def requested(self, device: torch.device) -> int:
        """The signal that any rank got, on all ranks alike; 0: none."""
        if dist.is_initialized():
            flag = torch.tensor(self.signal, device=device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            return int(flag)
        return self.signal
