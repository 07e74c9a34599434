"""Going on from where an earlier attempt at a run left off: which checkpoint, and what of the records stays."""

import logging

from normlab.runs import checkpoint
from normlab.runs.checkpoint import State
from normlab.runs.folder import RunFolder, checkpoint_files
from normlab.writing import cut, size_on_disk

_log = logging.getLogger(__name__)


def last_good(folder: RunFolder) -> State | None:
    """The newest checkpoint that is whole, and whose records are."""
    had_some = bool(checkpoint_files(folder.checkpoints))
    for state in checkpoint.good_ones(folder.checkpoints, folder.run()["id"]):
        short = [name for name, size in state["records"].items() if size_on_disk(folder.path / name) < size]
        if not short:
            return state
        _log.warning("%s: rows up to update %d are missing; going back", folder.path / short[0], state["updates"])
    if had_some:
        _log.warning("%s: no checkpoint is left to go on from; starting from the beginning", folder.path)
    return None


def records(folder: RunFolder) -> dict[str, int]:
    """Bytes of each record that only grows, now that they are on the disk: a part of a checkpoint."""
    return {file.name: size_on_disk(file) for file in folder.rows}


def take_back(folder: RunFolder, state: State | None, keep: int) -> None:
    """Drop the rows behind a checkpoint (None: all of them), and all checkpoints but the last `keep`."""
    checkpoint.prune(folder.checkpoints, keep)  # a kill may come ahead of it
    for file in folder.rows:
        cut(file, state["records"].get(file.name, 0) if state is not None else 0)
