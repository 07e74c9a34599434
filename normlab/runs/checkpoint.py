"""Checkpoints: written whole or not at all, told from damaged ones by their digest, read without executing anything.

checkpoints/000120.pt, after 120 updates: a line with the SHA-256 of all that follows, then what torch.save makes.
"""

import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from normlab.errors import UserError
from normlab.runs.folder import checkpoint_file, checkpoint_files
from normlab.writing import write_bytes

State = dict[str, Any]

_log = logging.getLogger(__name__)
_HEADER = b"normlab checkpoint, sha256 %s\n"
_HEADER_LENGTH = len(_HEADER % (b"0" * 64))


class DamagedError(Exception):
    """A checkpoint that is not what was written."""


def save(folder: Path, state: State, keep: int) -> None:
    """Write a checkpoint, then remove all but the last `keep`. Raises DiskFullError; what there was stays then.

    Args:
        folder: of the run's checkpoints.
        state: what torch.load(weights_only=True) can read: tensors, numbers, texts; "id" of the run and "updates".
        keep: at least 1.
    """
    payload = io.BytesIO()
    torch.save(state, payload)
    data = payload.getbuffer()
    write_bytes(checkpoint_file(folder, state["updates"]), _HEADER % hashlib.sha256(data).hexdigest().encode(), data)
    prune(folder, keep)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last `keep`."""
    for path in checkpoint_files(folder)[:-keep]:
        path.unlink(missing_ok=True)


def load(path: Path, run_id: str) -> State:
    """A checkpoint of this run, on the CPU.

    Raises DamagedError if it is not what was written, UserError if it is another run's, or something else altogether.
    """
    data = memoryview(path.read_bytes())
    payload = data[_HEADER_LENGTH:]
    if data[:_HEADER_LENGTH] != _HEADER % hashlib.sha256(payload).hexdigest().encode():
        raise DamagedError(f"{path} is damaged: it is not what was written")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        run, _ = state["id"], state["updates"]
    except Exception:  # torch raises whatever the bytes happen to provoke
        raise UserError(f"{path} is no checkpoint of normlab; nothing in it was executed; remove it") from None
    if run != run_id:
        raise UserError(f"{path} belongs to run {run}, not to {run_id}; remove it or pass rerun=true")
    if not {"phases", "rows", "evaluated"} <= state.keys():
        raise UserError(f"{path} was written by an older version of normlab; rerun=true starts the run over")
    return state


def good_ones(folder: Path, run_id: str) -> Iterator[State]:
    """The newest good checkpoint of this run, then those before it; damaged ones are named and removed.

    Raises UserError if one is another run's.
    """
    for path in reversed(checkpoint_files(folder)):
        try:
            yield load(path, run_id)
        except DamagedError as error:
            _log.warning("%s; removed, and the one before it is used", error)
            path.unlink()


def save_tensors(path: Path, tensors: dict[str, Tensor], words: dict[str, str] | None = None) -> None:
    """A safetensors file: weights, or statistics, by their names in the model; `words` go with them as its metadata.

    Raises DiskFullError.
    """
    held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_bytes(path, safetensors.torch.save(held, words))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What save_tensors wrote. Raises UserError if it is no whole safetensors file."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError:
        raise UserError(f"{path}: this is no safetensors file, or it is damaged; nothing in it was executed") from None
