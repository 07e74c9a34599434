"""Weights & Biases, online or offline."""

import contextlib
import itertools
import logging
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from normlab.dynamics.ratios import MOMENTS, Row, averages_by_key
from normlab.reading import EPOCH, read_jsonl, read_metrics
from normlab.trackers.tracker import first_line
from normlab.writing import is_full

if TYPE_CHECKING:
    import wandb

_log = logging.getLogger(__name__)
_INIT_SECONDS = 20.0
_FINISH_SECONDS = 20.0  # what is not uploaded by then is on the disk, and nobody waits for a server that hangs
_ATTEMPT_FOLDER = re.compile(r"(?P<offline>offline-)?run-[0-9_]+-(?P<id>.+)")


class WandB:
    """Weights & Biases, with its files in <run>/wandb.

    Online, all attempts at a run continue one W&B run. Offline, each attempt has a folder and a W&B run of its own
    (ID, ID-2, ...; from the second on in a group ID), because uploading two folders of one id with `wandb sync` lets
    the later replace the earlier (github.com/wandb/wandb/issues/5865). To upload: wandb sync <run>/wandb/offline-run-*

    W&B's own process talks to the server, and training never waits for it: a server that refuses, hangs or fails costs
    a run at most 20 seconds at its start and 20 at its end, and one line says how to upload later. Where that process
    dies, rows that it had not written yet die with it; another is started, offline, with all rows of the run so far.

    Ratios are charts of their averages, by range of receptive fields and by part of the model; those of every layer at
    every moment are one table, ratios_of_layers, that comes at the end.

    Args:
        run: folder of the run.
        run_id: the same for every attempt at this run.
        title: what the run is called where nothing else says so.
        config: nested, as in config.yaml.
        project: W&B project; null: as WANDB_PROJECT says, else normlab.
        entity: W&B user or team; null: as WANDB_ENTITY says, else the account's default.
        mode: auto obeys WANDB_MODE, else is online where `wandb login` or WANDB_API_KEY left a key, and offline
            elsewhere. What cannot start online is kept offline.
        name: of the W&B run; null: as WANDB_NAME says, else the run's folder.
        group: null: as WANDB_RUN_GROUP says, else the sweep's.
        job_type: null: as WANDB_JOB_TYPE says.
        notes: null: as WANDB_NOTES says.
        tags: none: as WANDB_TAGS says.
        id: null: as WANDB_RUN_ID says, else the run's. In a sweep each cell's own id stands behind it.
        system_metrics: whether W&B measures the machine, as its GPUs' load, beside the run.
        git: whether W&B notes the commit of the working folder; the code itself is never sent.
        sweep: of which the run is a cell; sweeps and tables set it.
    """

    shows_images: ClassVar = True

    def __init__(
        self,
        run: Path,
        run_id: str,
        title: str,
        config: dict[str, Any],
        *,
        project: str | None = None,
        entity: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] = (),
        id: str | None = None,
        system_metrics: bool = True,
        git: bool = True,
        sweep: str | None = None,
    ) -> None:
        own_id = id or _environ("WANDB_RUN_ID")
        if own_id is not None:
            run_id = f"{own_id}-{run_id}" if sweep else own_id

        def start(mode: str | None) -> "wandb.Run":
            import wandb

            attempt = _attempt_id(run / "wandb", run_id, offline=mode == "offline")
            return wandb.init(
                dir=run,
                id=attempt,
                name=name or _environ("WANDB_NAME") or title + attempt.removeprefix(run_id),
                group=group or _environ("WANDB_RUN_GROUP") or sweep or (None if attempt == run_id else run_id),
                job_type=job_type,  # where these are null, W&B reads its own variables
                notes=notes,
                config=config,
                project=project or _environ("WANDB_PROJECT") or "normlab",
                entity=entity,
                tags=list(tags) or None,
                mode=mode,  # type: ignore[arg-type]
                resume="allow",
                settings=_settings(system_metrics=system_metrics, git=git),
            )

        logging.raiseExceptions = False  # where a disk is full, W&B's own log would be a traceback for each line of it
        self._folder, self._start = run, start
        self._run: wandb.Run | None = None
        self._restarted = False
        try:
            self._run = start(usable_mode(mode))
        except Exception as error:
            self._go_offline("W&B could not start", error)

    @property
    def place(self) -> str:
        if self._run is None:
            return "none"
        return "W&B, offline" if self._run.offline else f"W&B, {self._run.url}"

    def log(self, values: dict[str, float], step: int) -> None:
        self._try(lambda run: run.log(values, step=step))

    def ratios(self, rows: Sequence[Row], epoch: float, step: int) -> None:
        self.log(averages_by_key(rows), step)

    def image(self, key: str, path: Path, step: int) -> None:
        def log_image(run: "wandb.Run") -> None:
            import wandb

            run.log({key: wandb.Image(str(path))}, step=step)

        self._try(log_image)

    def finish(self, summary: dict[str, Any]) -> None:
        def finish(run: "wandb.Run") -> None:
            run.summary.update(summary)
            self._log_layers(run)
            try:
                run.finish(exit_code=int(summary.get("status") in ("failed", "interrupted")))
            except TimeoutError:
                _log.warning("W&B's server did not take all data within %g s; %s", _FINISH_SECONDS, _how_to_sync(run))
            else:
                if _was_refused(run):
                    _log.warning("W&B's server refused data; %s", _how_to_sync(run))

        self._try(finish)

    def _try(self, action: Callable[["wandb.Run"], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if self._restarted or is_full(error):  # another start would take what room is left
                again = " again" * self._restarted
                _log.warning("W&B stopped%s, going on without: %s", again, first_line(error))
                self._run = None
                return
            self._restarted = True
            self._go_offline("W&B stopped", error)
            self._try(self._replay)
            self._try(action)

    def _go_offline(self, what: str, error: Exception) -> None:
        """Start again, with a service of its own where the old one is gone, and say what happened."""
        if isinstance(error, ConnectionError):
            _abandon_service()
        try:
            self._run = self._start("offline")
        except Exception as second:
            self._run = None
            _log.warning("%s, going on without: %s; %s", what, first_line(error), first_line(second))
        else:
            _log.warning("%s, keeping its data offline: %s; %s", what, first_line(error), _how_to_sync(self._run))

    def _log_layers(self, run: "wandb.Run") -> None:
        """Every layer's ratios as one table; of more moments than it has room for, evenly spaced ones and the last."""
        import wandb

        moments = self._moments()
        if not moments:
            return
        rows = [[row for layer in moment["layers"] for row in _layer_rows(moment, layer)] for moment in moments]
        room = max(1, wandb.Table.MAX_ARTIFACT_ROWS // max(map(len, rows)))
        every = -(-len(rows) // room)
        kept = rows[::-1][::every][::-1]
        table = wandb.Table(columns=list(_COLUMNS), data=[row for moment in kept for row in moment])
        run.log({"ratios_of_layers": table}, step=moments[-1]["step"])

    def _moments(self) -> list[dict[str, Any]]:
        return read_jsonl(self._folder / "ratios.jsonl", EPOCH)

    def _replay(self, run: "wandb.Run") -> None:
        """All rows and ratios so far, in the order of their steps; W&B ignores those that come again."""
        rows = [(row["step"], row) for row in read_metrics(self._folder / "metrics.jsonl")]
        rows += [(moment["step"], averages_by_key(moment["layers"])) for moment in self._moments()]
        for step, values in sorted(rows, key=lambda row: row[0]):
            run.log({key: value for key, value in values.items() if key != "step"}, step=step)


_COLUMNS = ("epoch", "step", "layer", "index", "part", "receptive_field", "moment", "scope", "ratio")


def _layer_rows(moment: dict[str, Any], layer: Row) -> list[list[Any]]:
    """Of a layer at a moment, a row for each ratio."""
    ahead = [moment["epoch"], moment["step"], *(layer.get(name) for name in _COLUMNS[2:6])]
    return [[*ahead, which, scope, ratio] for which in MOMENTS for scope, ratio in layer[which].items()]


def _environ(name: str) -> str | None:
    """One of W&B's own variables, which users expect to be obeyed; None where it is not set, or empty."""
    return os.environ.get(name) or None


def _abandon_service() -> None:
    """W&B's own process is shared by all runs of this one; where it died, the next start brings another."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def _how_to_sync(run: "wandb.Run") -> str:
    online = "" if run.offline else "--include-online "  # which `wandb sync` takes for uploaded
    return f"`wandb sync {online}{shlex.quote(run.settings.sync_dir)}` uploads them"


def _was_refused(run: "wandb.Run") -> bool:
    """Whether the server refused data for good: W&B says so in its own log and nowhere else, at a level above error."""
    log = Path(run.settings.log_internal)
    return log.is_file() and '"level":"ERROR+4"' in log.read_text(encoding="utf-8", errors="replace")


def usable_mode(mode: str) -> str | None:
    """The mode for `wandb.init`; None leaves it to W&B's own settings.

    Raises wandb.errors.AuthenticationError for a malformed key.
    """
    import wandb

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its reports about itself wait for the server at exit
    chosen = os.environ.get("WANDB_MODE") if mode == "auto" else mode
    if chosen in ("offline", "disabled", "dryrun"):
        return chosen
    wandb.setup(settings=_settings())
    return chosen if wandb.login(prompt=False, verify=False) else "offline"


def _settings(*, system_metrics: bool = False, git: bool = False) -> "wandb.Settings":
    """Quiet, bounded in time, and taking no code."""
    import wandb

    return wandb.Settings(
        silent=True,
        reinit="create_new",  # not the run that just failed
        console="off",
        disable_code=True,
        disable_git=not git,
        x_disable_stats=not system_metrics,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
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
