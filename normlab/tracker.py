"""Mirrors of a run outside its folder: W&B, online or offline, or none. The run folder stays the truth, so no failure
of a tracker stops or changes training: it is reported once, and the run goes on without.
"""

import itertools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import wandb

_log = logging.getLogger(__name__)
_INIT_SECONDS = 20.0
_FINISH_SECONDS = 120.0
_ATTEMPT_FOLDER = re.compile(r"(?P<offline>offline-)?run-[0-9_]+-(?P<id>.+)")


class Tracker(Protocol):
    """What the engine calls, on the first rank only."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Metrics by key, such as "train/loss", at a training step. Steps never decrease."""

    def image(self, key: str, path: Path, step: int) -> None:
        """A PNG file."""

    def finish(self, summary: dict[str, Any]) -> None:
        """The last call: what summary.json says."""


class NoTracker:
    """Keeps nothing."""

    def __init__(self, run: Path, run_id: str, name: str, config: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        pass

    def image(self, key: str, path: Path, step: int) -> None:
        pass

    def finish(self, summary: dict[str, Any]) -> None:
        pass


class WandB:
    """Weights & Biases, with its files in <run>/wandb.

    Online, all attempts at a run continue one W&B run. Offline, each attempt has a folder and a W&B run of its own
    (ID, ID-2, ...; from the second on in a group ID), because uploading two folders of one id with `wandb sync` lets
    the later replace the earlier (github.com/wandb/wandb/issues/5865). To upload: wandb sync <run>/wandb/offline-run-*

    Args:
        run: folder of the run.
        run_id: the same for every attempt at this run.
        name: shown in W&B.
        config: nested, as in config.yaml.
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        mode: auto obeys WANDB_MODE, else is online where `wandb login` or WANDB_API_KEY left a key, and offline
            elsewhere. What cannot start online is kept offline.
        tags: of the W&B run.
    """

    def __init__(
        self,
        run: Path,
        run_id: str,
        name: str,
        config: dict[str, Any],
        *,
        project: str = "normlab",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        tags: Sequence[str] = (),
    ) -> None:
        def start(mode: str | None) -> "wandb.Run":
            import wandb

            attempt = _attempt_id(run / "wandb", run_id, offline=mode == "offline")
            return wandb.init(
                dir=run,
                id=attempt,
                name=name if attempt == run_id else name + attempt.removeprefix(run_id),
                group=None if attempt == run_id else run_id,
                config=config,
                project=project,
                entity=entity,
                tags=list(tags),
                mode=mode,  # type: ignore[arg-type]
                resume="allow",
                settings=_settings(),
            )

        self._run: wandb.Run | None = None
        try:
            self._run = start(_usable_mode(mode))
        except Exception as error:
            _log.warning("W&B could not start, keeping its data offline: %s", _first_line(error))
            try:
                self._run = start("offline")
            except Exception as error:
                _log.warning("W&B could not start offline either, going on without: %s", _first_line(error))

    def log(self, values: dict[str, float], step: int) -> None:
        self._try(lambda run: run.log(values, step=step))

    def image(self, key: str, path: Path, step: int) -> None:
        def log_image(run: "wandb.Run") -> None:
            import wandb

            run.log({key: wandb.Image(str(path))}, step=step)

        self._try(log_image)

    def finish(self, summary: dict[str, Any]) -> None:
        def finish(run: "wandb.Run") -> None:
            run.summary.update(summary)
            run.finish(exit_code=int(summary.get("status") in ("failed", "interrupted")))

        self._try(finish)

    def _try(self, action: Callable[["wandb.Run"], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._run = None
            _log.warning("W&B stopped, going on without: %s", _first_line(error))


def _usable_mode(mode: str) -> str | None:
    """The mode for `wandb.init`; None leaves it to W&B's own settings.

    Raises wandb.errors.AuthenticationError for a malformed key.
    """
    import wandb

    chosen = os.environ.get("WANDB_MODE") if mode == "auto" else mode
    if chosen in ("offline", "disabled", "dryrun"):
        return chosen
    wandb.setup(settings=_settings())
    return chosen if wandb.login(prompt=False, verify=False) else "offline"


def _settings() -> "wandb.Settings":
    """Quiet, bounded in time, and looking at nothing but what is logged."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )


def _attempt_id(folder: Path, run_id: str, offline: bool) -> str:
    """The W&B id of this attempt, given the folders that earlier ones left."""
    earlier = [match for path in sorted(folder.glob("*")) if (match := _ATTEMPT_FOLDER.fullmatch(path.name))]
    online = [match["id"] for match in earlier if not match["offline"]]
    if online and not offline:
        return online[0]
    taken = {match["id"] for match in earlier}
    ids = itertools.chain([run_id], (f"{run_id}-{number}" for number in itertools.count(2)))
    return next(attempt for attempt in ids if attempt not in taken)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
