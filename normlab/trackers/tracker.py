"""What a tracker is: a mirror of a run outside its records. The run folder stays the truth, so no failure of a tracker
stops or changes training: it is reported once, and the run goes on without.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from normlab import schema
from normlab.dynamics.ratios import Row

_log = logging.getLogger(__name__)

SEVERAL = f"{__name__}.Several"


class Tracker(Protocol):
    """What the engine calls, on the first rank only.

    It may say where it keeps a run, in words, as `place`.
    """

    @property
    def shows_images(self) -> bool:
        """Whether somebody looks at figures there."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Metrics by key, such as "train/loss", at a training step. Steps never decrease."""

    def ratios(self, rows: Sequence[Row], epoch: float, step: int) -> None:
        """The ratios of every layer (dynamics/ratios.py). All moments so far are in <run>/ratios.jsonl."""

    def image(self, key: str, path: Path, step: int) -> None:
        """A PNG file."""

    def finish(self, summary: dict[str, Any]) -> None:
        """The last call: what summary.json says."""


class NoTracker:
    """Keeps nothing."""

    place = "none"
    shows_images: ClassVar = False

    def __init__(self, run: Path, run_id: str, name: str, config: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        pass

    def ratios(self, rows: Sequence[Row], epoch: float, step: int) -> None:
        pass

    def image(self, key: str, path: Path, step: int) -> None:
        pass

    def finish(self, summary: dict[str, Any]) -> None:
        pass


class Several:
    """Several trackers at once, each on its own: what becomes of one costs no other.

    Args:
        run, run_id, name, config: as of each.
        of: names of files in conf/tracker.
        settings: of each, by its name, as tracker.settings.wandb.project=mine; composing adds their targets.
    """

    def __init__(
        self,
        run: Path,
        run_id: str,
        name: str,
        config: dict[str, Any],
        *,
        of: Sequence[str],
        settings: Mapping[str, Any] = {},
    ) -> None:
        self._trackers: list[Tracker] = [schema.bind(settings[one])(run, run_id, name, config) for one in of]

    @property
    def shows_images(self) -> bool:
        return any(tracker.shows_images for tracker in self._trackers)

    @property
    def place(self) -> str:
        return ", ".join(getattr(tracker, "place", type(tracker).__name__) for tracker in self._trackers)

    def log(self, values: dict[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step)

    def ratios(self, rows: Sequence[Row], epoch: float, step: int) -> None:
        for tracker in self._trackers:
            tracker.ratios(rows, epoch, step)

    def image(self, key: str, path: Path, step: int) -> None:
        for tracker in self._trackers:
            tracker.image(key, path, step)

    def finish(self, summary: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.finish(summary)


class Guard:
    """Calls what may fail, until it fails: that is said once, and nothing is called any more."""

    def __init__(self, name: str) -> None:
        self.name, self.failed = name, False

    def __call__(self, action: Callable[[], Any]) -> None:
        if self.failed:
            return
        try:
            action()
        except Exception as error:
            self.failed = True
            _log.warning("%s stopped, going on without: %s", self.name, first_line(error))


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def in_sweep(settings: Mapping[str, Any] | None, sweep: str) -> dict[str, Any] | None:
    """The settings of a tracker for a cell of a sweep: a tracker that asks for its name (`sweep`) is told it."""
    if settings is None:
        return None
    found = dict(settings)
    if "sweep" in schema.signature(found["_target_"]):
        found["sweep"] = sweep
    if found["_target_"] == SEVERAL:
        found["settings"] = {name: in_sweep(node, sweep) for name, node in found["settings"].items()}
    return found
