"""What a run is doing, seen from outside: from the files in its folder, so that nothing in a run serves the chaos."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normlab.runs.folder import RunFolder, checkpoint_file
from normlab.writing import TEMPORARY

# In the order of a run's life. "estimation" begins with the evaluation that follows the last update, and ends when the
# weights are written; "final writes" are those of weights, statistics, summary and figures.
PHASES = ("start", "updates", "checkpoint write", "evaluation", "estimation", "final writes")
TRAINING = PHASES[1:4]


class Watch:
    """Follows one attempt at a run.

    lowest: the fewest updates that metrics.jsonl told of after the start: those that the attempt went on from.
    spans: seconds of each phase, in the order of their coming.
    """

    def __init__(self, run: RunFolder, updates: int, per_epoch: int) -> None:
        self.run, self.updates, self.per_epoch = run, updates, per_epoch
        self.lowest = updates
        self.spans: list[tuple[str, float]] = []
        self._began = time.time_ns()
        self._entered = time.monotonic()

    def look(self) -> str:
        """The phase now."""
        phase, now = self._phase(), time.monotonic()
        if not self.spans or phase != self.spans[-1][0]:
            self.spans.append((phase, 0.0))
            self._entered = now
        self.spans[-1] = (phase, now - self._entered)
        return phase

    def entries(self, phase: str) -> int:
        """How often the attempt came into a phase."""
        return sum(name == phase for name, _ in self.spans)

    def _phase(self) -> str:
        if self._is_earlier(self.run.status_file):
            return "start"
        last = last_row(self.run)
        step, epoch_is_written = last.get("step", 0), any(key.startswith("val/") for key in last)
        if not self._is_earlier(self.run.weights):
            return "final writes"
        if unfinished_writes(self.run):
            return "checkpoint write"
        if step == self.updates and epoch_is_written:
            return "estimation"
        if self._is_earlier(self.run.metrics):
            return "start"
        self.lowest = min(self.lowest, step)
        if step and step % self.per_epoch == 0 and not epoch_is_written:  # the checkpoint comes first
            saved = checkpoint_file(self.run.checkpoints, step).is_file()
            return "evaluation" if saved else "checkpoint write"
        return "updates"

    def _is_earlier(self, path: Path) -> bool:
        """Whether this attempt has not written the file yet."""
        return _settled(lambda: path.stat().st_mtime_ns >= self._began, False) is False


def last_row(run: RunFolder) -> dict[str, Any]:
    """The last whole row of metrics.jsonl."""

    def read() -> dict[str, Any]:
        with run.metrics.open("rb") as file:
            file.seek(max(0, run.metrics.stat().st_size - 4096))
            return json.loads(file.read().split(b"\n")[-2])

    return _settled(read, {})


def unfinished_writes(run: RunFolder) -> list[Path]:
    """Temporary files of checkpoints: a write is under way, or was cut short."""
    return [path for path in run.checkpoints.glob(TEMPORARY) if ".pt." in path.name]


def _settled(read: Callable[[], Any], otherwise: Any) -> Any:
    """What `read` gives; `otherwise` while the file is not there, or is just being written."""
    try:
        return read()
    except (OSError, ValueError, IndexError):
        return otherwise
