"""What a run says while it trains: what it is, and a line each time it is evaluated."""

import time
from collections.abc import Mapping

import torch

from normlab.engine.length import Length
from normlab.engine.session import Session
from normlab.tasks.metrics import metrics_of

_SHOWN = 3  # metrics of a line; all are in metrics.jsonl


class News:
    """Of the session's run, by its first rank."""

    def __init__(self, session: Session, length: Length, mirror: str) -> None:
        """`mirror` says where else the records go."""
        self._session, self._length, self._mirror = session, length, mirror
        self._known = metrics_of(session.config.task["_target_"])
        self._began = self._since = (time.monotonic(), 0)
        self._rate = 0.0

    def begin(self, updates: int) -> None:
        """Training begins after so many updates."""
        session, length = self._session, self._length
        config, device = session.config, session.device
        threads = f", {_number(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
        processes = f" on {session.share.ranks} processes" if session.share.ranks > 1 else ""
        before = f", going on after {updates:,}" if updates else ""
        session.progress.say(f"run      {session.folder.path}")
        session.progress.say(
            f"batch    {config.replicas} x {config.per_replica} samples{processes}, {device.type}{threads}"
        )
        epochs = f"{length.epoch(length.total):.4g}"
        session.progress.say(f"length   {_number(length.total, 'update')}, epochs: {epochs}{before}")
        session.progress.say(f"tracker  {self._mirror}")
        self._began = self._since = (time.monotonic(), updates)

    def pause(self, updates: int) -> None:
        """Training stops for an evaluation."""
        moment, before = self._since
        seconds = time.monotonic() - moment
        self._rate = (updates - before) * self._session.config.update_samples / seconds if seconds else 0.0

    def evaluated(self, updates: int, trained: Mapping[str, float], tested: Mapping[str, float]) -> None:
        """A line: the means over the updates since the last one, what was evaluated, how fast it was, the time left."""
        began, before = self._began
        now = time.monotonic()
        parts = [f"epoch {self._length.epoch(updates):.4g} of {self._length.epoch(self._length.total):.4g}"]
        parts += [self._values(trained), f"validation {self._values(tested)}" if tested else ""]
        if updates > before:
            left = (now - began) / (updates - before) * (self._length.total - updates)
            parts += [f"{self._rate:,.0f} samples/s", f"{_clock(left)} left" if left else ""]
        self._session.progress.say(" | ".join(part for part in parts if part))
        self._since = (now, updates)

    def _values(self, measured: Mapping[str, float]) -> str:
        first = [name for name in ("loss", "lr") if name in measured]
        others = [name for name in measured if "/" not in name and name not in first]
        return "  ".join(f"{name} {self._spelled(name, measured[name])}" for name in first + others[:_SHOWN])

    def _spelled(self, name: str, value: float) -> str:
        if name == "lr":
            return f"{value:.3g}"
        return f"{value:.{self._known[name].decimals if name in self._known else 4}f}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _clock(seconds: float) -> str:
    """0:42, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
