"""From the command line into a run: its folder, its ranks, its end."""

import shutil
import sys
from contextlib import nullcontext

from normlab.config import Config
from normlab.errors import RunError, UserError
from normlab.launch.elastic import num_devices
from normlab.launch.failure import failed
from normlab.processes.signals import Interrupted, Stop
from normlab.progress import Progress, progress_bar
from normlab.runs import lock
from normlab.runs.folder import RunFolder
from normlab.schema import bind, trust


def start(config: Config, folder: RunFolder, progress: Progress | None = None) -> str:
    """Start a run, or go on with it; returns its status.

    Shows a progress bar unless `progress` takes the news.

    Raises:
        UserError: before any work, on what cannot run.
        BusyError: another command works on the run.
        RunError: it failed.
        SystemExit: a signal came before there was a run.
    """
    nodes = config.launch.get("nodes", 1)
    if config.rerun and nodes > 1 and folder.path.exists():  # each would remove what the others have begun
        raise UserError(f"rerun=true is for one node; remove {folder.path} and leave rerun=true out")
    try:
        with Stop(), lock.locked(folder.path, shared_by=config.launch["rendezvous"] if nodes > 1 else None):
            try:
                return _start(config, folder, progress)
            except Interrupted as end:
                if not folder.run_file.exists():
                    raise
                return folder.interrupted(end.signal)
    except Interrupted as end:
        sys.exit(128 + end.signal)


def _start(config: Config, folder: RunFolder, progress: Progress | None) -> str:
    if config.rerun:
        _clear(folder)
    elif folder.is_over:  # another command has finished it since this one looked
        return folder.status()["status"]
    is_new = not folder.run_file.exists()
    folder.create(config)
    trust(config.targets())  # the folder holds what was asked for here, and the ranks read it from there
    try:
        with nullcontext(progress) if progress else progress_bar() as report:
            return bind(config.launch)(folder, num_devices(config), report)
    except UserError:
        if is_new and not folder.metrics.exists():
            shutil.rmtree(folder.path, ignore_errors=True)  # another node may be at it too
        raise
    except RunError:
        raise
    except Exception as error:
        raise failed(folder, error) from error


def _clear(folder: RunFolder) -> None:
    """All but the lock, which is held; first what says that there is an outcome, since a kill may come in between."""
    for file in (folder.status_file, folder.summary_file):
        file.unlink(missing_ok=True)
    for inside in folder.path.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        elif inside.name != lock.NAME:
            inside.unlink()
