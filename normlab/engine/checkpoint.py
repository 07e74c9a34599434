"""Checkpoints, written whole or not at all, and read without executing anything."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from normlab.errors import UserError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write beside the target, flush to the disk, then take the target's name."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    _take_name(temporary, path)


def load(path: Path, run_id: str) -> dict[str, Any]:
    """A checkpoint of this run, on the CPU. Raises UserError if it is another run's."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["id"] != run_id:
        raise UserError(f"{path} belongs to run {state['id']}, not to {run_id}; remove it or pass rerun=true")
    return state


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file: weights, or statistics, by their names in the model."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    _take_name(temporary, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def _take_name(temporary: Path, path: Path) -> None:
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
