"""What a run writes down while it trains: losses, accuracies and ratios, in its folder and to its tracker.

Losses stay on the device until somebody looks: reading a number waits for the device.
"""

import math
from typing import Any, NamedTuple

import torch

from normlab.dynamics import ratios
from normlab.engine.length import Length
from normlab.engine.phase import Sums
from normlab.engine.session import Session
from normlab.processes import devices
from normlab.trackers.tracker import Tracker
from normlab.writing import append_jsonl


class _Noted(NamedTuple):
    """An update whose losses nobody has looked at yet."""

    phase: int
    update: int  # counted from 1
    sums: Sums
    lr: float


class Journal:
    """The records of the session's run; the first rank alone writes them.

    Attributes:
        sums: measures of the updates since the last evaluation, by name, summed.
        evaluated: updates that were done then.
        diverged_at: the first update whose loss was not finite.
    """

    def __init__(self, session: Session, tracker: Tracker, length: Length) -> None:
        self.session, self.tracker, self.length = session, tracker, length
        self.sums: dict[str, float] = {}
        self.evaluated = 0
        self.diverged_at: int | None = None
        self._names = [phase.name for phase in session.experiment.task.phases]
        self._noted: list[_Noted] = []

    def note(self, phase: int, update: int, sums: Sums, lr: float) -> None:
        """Keep what an update measured until the next look."""
        self._noted.append(_Noted(phase, update, sums, lr))

    def look(self) -> None:
        """Join what was noted over the ranks, write a row an update, find divergence."""
        config = self.session.config
        rows: list[dict[str, Any]] = []
        means: dict[int, dict[str, float]] = {}
        for phase in sorted({noted.phase for noted in self._noted}):
            own = [noted for noted in self._noted if noted.phase == phase]
            names = list(own[0].sums)
            sums = torch.stack([torch.stack([noted.sums[name].double() for name in names]) for noted in own])
            joined = (devices.sum_over_ranks(sums) / (config.replicas * config.accumulate)).tolist()
            means |= {n.update: dict(zip(names, values, strict=True)) for n, values in zip(own, joined, strict=True)}
        for noted in self._noted:
            values = self._named(noted.phase, means[noted.update] | {"lr": noted.lr})
            moment = {"step": noted.update, "epoch": self.length.epoch(noted.update)}
            rows.append(moment | _prefixed("batch", values))
            if not math.isfinite(means[noted.update]["loss"]):
                self.diverged_at = noted.update
                break
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        self._noted = []
        self._write(rows)

    def evaluation(self, updates: int, values: dict[str, float]) -> dict[str, float]:
        """A row with the means over the updates since the last one, and what was evaluated now, by its full name.

        Returns the means.
        """
        means = {name: total / self._updates_of(name, updates) for name, total in self.sums.items()}
        self.sums, self.evaluated = {}, updates
        moment = {"step": updates, "epoch": self.length.epoch(updates)}
        self._write([moment | _prefixed("train", means) | values])
        return means

    def ratios(self, updates: int) -> None:
        """The ratios of every layer now, if any layer chooses between scopes."""
        rows = self.session.experiment.ratios()
        if self.session.is_first and ratios.switchable(rows):
            moment = {"epoch": self.length.epoch(updates), "step": updates}
            append_jsonl(self.session.folder.ratios, [moment | {"layers": rows}])
            self.tracker.ratios(rows, moment["epoch"], updates)

    def _named(self, phase: int, values: dict[str, float]) -> dict[str, float]:
        """The first phase's values are the run's; those of the others are called by their phase, as search/loss."""
        return values if phase == 0 else _prefixed(self._names[phase], values)

    def _updates_of(self, name: str, updates: int) -> int:
        """How many updates since the last evaluation are of the phase that a measure is of."""
        phase = next((k for k, phase in enumerate(self._names) if k and name.startswith(f"{phase}/")), 0)
        return self.length.done(phase, updates) - self.length.done(phase, self.evaluated)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if self.session.is_first:
            append_jsonl(self.session.folder.metrics, rows)
            for row in rows:
                self.tracker.log({k: v for k, v in row.items() if k != "step"}, row["step"])


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
