"""From the command line into a run: its folder, its ranks, its end."""

import shutil
from contextlib import nullcontext

from normlab.config import Config
from normlab.engine.launch import num_devices
from normlab.engine.record import RunFolder
from normlab.errors import UserError
from normlab.report.progress import Progress, progress_bar
from normlab.schema import bind


def start(config: Config, folder: RunFolder, progress: Progress | None = None) -> str:
    """Start a run, or go on with it; returns its status. Raises UserError before any work on what cannot run.

    Shows a progress bar unless `progress` takes the news.
    """
    if config.rerun and folder.path.exists():
        if config.launch.get("nodes", 1) > 1:  # each would remove what the others have begun
            raise UserError(f"rerun=true is for one node; remove {folder.path} and leave rerun=true out")
        shutil.rmtree(folder.path)
    is_new = not folder.run_file.exists()
    folder.create(config)
    try:
        with nullcontext(progress) if progress else progress_bar() as report:
            return bind(config.launch)(folder, num_devices(config), report)
    except UserError:
        if is_new and not folder.metrics.exists():
            shutil.rmtree(folder.path, ignore_errors=True)  # another node may be at it too
        raise
