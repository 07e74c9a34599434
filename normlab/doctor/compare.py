"""Whether two runs of one experiment left the same, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from normlab.runs import checkpoint
from normlab.runs.folder import TIME_FIELDS, RunFolder, checkpoint_files
from normlab.writing import SEAL

_PLACES = ("out",)  # the runs lie in different folders
_BESIDE = ("lock", "log.txt", "estimates.jsonl")  # who works on a run, what its cell printed, what came later


def differences(expected: RunFolder, found: RunFolder) -> list[str]:
    """What is not the same, a line each: files, records, weights, statistics, and the state in the last checkpoint."""
    lines = []
    names = {path.relative_to(run.path).as_posix() for run in (expected, found) for path in _records(run)}
    for name in sorted(names):
        one, other = expected.path / name, found.path / name
        if not one.is_file() or not other.is_file():
            lines.append(f"{name}: only in the {'interrupted' if other.is_file() else 'uninterrupted'} run")
        elif one.suffix in _READERS:
            trees = [_without_times_and_places(_READERS[one.suffix](path.read_text())) for path in (one, other)]
            lines += [f"{name}: {line}" for line in unequal("", *trees)]
        elif one.read_bytes() != other.read_bytes():
            lines.append(f"{name}: other bytes")
    states = [
        _without_times_and_places(load_state(run, checkpoint_files(run.checkpoints)[-1])) for run in (expected, found)
    ]
    return lines + [f"last checkpoint: {line}" for line in unequal("", *states)]


def missing_or_repeated(run: RunFolder, updates: int, epochs: int) -> list[str]:
    """Lines on steps with no row, or several: each update has one, each epoch one, each moment of ratios one."""
    rows, moments = ([json.loads(line) for line in file.read_text().splitlines()] for file in (run.metrics, run.ratios))
    lines = []
    steps = [row["step"] for row in rows if "batch/loss" in row]
    if steps != list(range(1, updates + 1)):
        lines.append(f"metrics.jsonl: the rows of the updates are those of {steps}")
    ends = [row["step"] for row in rows if any(key.startswith("val/") for key in row)]
    if len(ends) != epochs or ends != sorted(set(ends)):
        lines.append(f"metrics.jsonl: the rows of the epochs are those of the updates {ends}")
    steps = [row["step"] for row in moments]
    if not steps or steps != sorted(set(steps)):
        lines.append(f"ratios.jsonl: the rows are those of the updates {steps}")
    return lines


def load_state(run: RunFolder, path: Path) -> dict[str, Any]:
    """A checkpoint of a run, read as a resumption reads it."""
    return checkpoint.load(path, json.loads(run.run_file.read_text())["id"])


def unequal(name: str, one: Any, other: Any) -> list[str]:
    """The leaves of two trees of dicts, lists and tensors that differ in any bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [line for key in one for line in unequal(f"{name}.{key}".lstrip("."), one[key], other[key])]
    if isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        return [line for i, pair in enumerate(zip(one, other, strict=True)) for line in unequal(f"{name}[{i}]", *pair)]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and _bits(one).equal(_bits(other))
    else:
        same = type(one) is type(other) and repr(one) == repr(other)  # repr: -0.0 is not 0.0, and nan is nan
    return [] if same else [f"{name or 'all of it'} differs"]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _records(run: RunFolder) -> list[Path]:
    """What is compared as files: all that a run leaves but its checkpoints, and what may be added to it."""
    files = (path for path in run.path.rglob("*") if path.is_file())
    return [path for path in files if path.suffix != ".pt" and path.name not in _BESIDE]


def _without_times_and_places(tree: Any) -> Any:
    if isinstance(tree, dict):
        left_out = (*TIME_FIELDS, *_PLACES, SEAL)
        return {key: _without_times_and_places(v) for key, v in tree.items() if key not in left_out}
    return [_without_times_and_places(v) for v in tree] if isinstance(tree, list) else tree


_READERS: dict[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": yaml.safe_load}
