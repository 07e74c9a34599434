"""From the command line into a run: its folder, its ranks, its end."""

import shutil

from normlab.config import Config
from normlab.engine.launch import num_devices
from normlab.engine.record import RunFolder
from normlab.errors import UserError
from normlab.report.progress import progress_bar
from normlab.schema import bind


def start(config: Config, folder: RunFolder) -> str:
    """Start a run, or go on with it; returns its status. Raises UserError before any work on what cannot run."""
    if config.rerun and folder.path.exists():
        shutil.rmtree(folder.path)
    is_new = not folder.path.exists()
    folder.create(config)
    try:
        with progress_bar() as progress:
            return bind(config.launch)(folder, num_devices(config), progress)
    except UserError:
        if is_new and not folder.metrics.exists():
            shutil.rmtree(folder.path)
        raise
