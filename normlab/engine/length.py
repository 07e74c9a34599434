"""How long a run is, counted in updates, and which phase each update is of.

An update is `accumulate` iterations of G x N samples. In each epoch the phases of a task take turns: all updates of the
first, then all of the second.
"""

from typing import NamedTuple

from normlab.config import Config
from normlab.errors import UserError, unknown
from normlab.tasks.task import Task


class Span(NamedTuple):
    """The updates of one phase in each epoch."""

    first: int  # updates of the epoch ahead of it
    updates: int
    of_data: int  # updates for which its split has samples; from there on it begins again, in another order


class Length:
    """Of a run.

    Attributes:
        spans: of the phases, in order.
        per_epoch: updates of all phases in an epoch.
        total: updates of the run.
    """

    def __init__(self, config: Config, task: Task) -> None:
        """Raises UserError if a split is smaller than one update, or a phase that settings name does not exist."""
        self.spans: list[Span] = []
        first = 0
        names = [phase.name for phase in task.phases]
        for name in config.phases:
            if name not in names:
                raise unknown("phases: phase", name, names)
        for phase in task.phases:
            num_samples = len(task.dataset(phase.split))  # type: ignore[arg-type]
            of_data = num_samples // config.update_samples
            if of_data == 0:
                raise UserError(
                    f"batch={config.batch} accumulate={config.accumulate} needs {config.update_samples} samples an "
                    f"update, and the {task.splits.get(phase.split, phase.split)} set has {num_samples}"
                )
            updates = config.phases.get(phase.name, {}).get("updates") or phase.updates or of_data
            self.spans.append(Span(first, updates, of_data))
            first += updates
        self.per_epoch = first
        self.total = config.iterations or max(1, round(config.epochs * self.per_epoch))
        self._evaluate_every = self.per_epoch if config.evaluate_every == "epoch" else config.evaluate_every

    def epoch(self, updates: int) -> float:
        """Epochs done after so many updates."""
        return updates / self.per_epoch

    def updates(self, share: float) -> int:
        """Done after this share of the run, at least one."""
        return max(1, round(share * self.total))

    def phase_of(self, update: int) -> int:
        """The phase, by number, of an update, counted from 0."""
        within = update % self.per_epoch
        return next(k for k, span in enumerate(self.spans) if within < span.first + span.updates)

    def done(self, phase: int, updates: int) -> int:
        """How many of the first so many updates are of a phase."""
        span = self.spans[phase]
        epochs, within = divmod(updates, self.per_epoch)
        return epochs * span.updates + min(max(within - span.first, 0), span.updates)

    def ends_epoch(self, updates: int) -> bool:
        """Whether an epoch, or the run, is over after so many updates."""
        return updates == self.total or updates % self.per_epoch == 0

    def is_evaluated(self, updates: int) -> bool:
        """Whether the run is evaluated after so many updates: every so many, and at its end."""
        return updates == self.total or updates % self._evaluate_every == 0
