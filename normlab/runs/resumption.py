"""Going on from where an earlier attempt at a run left off: which checkpoint, and what of the records stays."""

import hashlib
import logging
from pathlib import Path

from normlab.runs import checkpoint
from normlab.runs.checkpoint import State
from normlab.runs.folder import RunFolder, checkpoint_files
from normlab.writing import cut, size_on_disk

Rows = dict[str, int | str]

_log = logging.getLogger(__name__)


def last_good(folder: RunFolder) -> State | None:
    """The newest checkpoint that is whole, and whose records are."""
    had_some = bool(checkpoint_files(folder.checkpoints))
    for state in checkpoint.good_ones(folder.checkpoints, folder.run()["id"]):
        others = [name for name, rows in state["rows"].items() if _rows(folder.path / name, rows["bytes"]) != rows]
        if not others:
            return state
        _log.warning(
            "%s: rows up to update %d are missing or damaged; going back", folder.path / others[0], state["updates"]
        )
    if had_some:
        _log.warning("%s: no checkpoint is left to go on from; starting from the beginning", folder.path)
    return None


def rows(folder: RunFolder) -> dict[str, Rows]:
    """Of each record that only grows, now that they are on the disk: a part of a checkpoint."""
    return {file.name: _rows(file, size_on_disk(file)) for file in folder.rows}


def _rows(file: Path, size: int) -> Rows:
    """The first bytes of a record: how many there are, and their digest."""
    data = b""
    if file.exists():
        with file.open("rb") as opened:
            data = opened.read(size)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def take_back(folder: RunFolder, state: State | None, keep: int) -> None:
    """Drop the rows behind a checkpoint (None: all of them), and all checkpoints but the last `keep`."""
    checkpoint.prune(folder.checkpoints, keep)  # a kill may come ahead of it
    for file in folder.rows:
        cut(file, state["rows"][file.name]["bytes"] if state is not None and file.name in state["rows"] else 0)
