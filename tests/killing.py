"""Runs in processes of their own that end as asked: by a signal at a moment, or at a write to the disk.

Processes fork from a server that has torch loaded, so that one more costs little.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

from normlab.config import Config, load
from normlab.launch.start import start
from normlab.progress import Progress
from normlab.runs import checkpoint
from normlab.runs.folder import TIME_FIELDS, RunFolder, checkpoint_files

SMALL = ("batch=4x4", "model.width=4", "data.fraction=0.1", "task.dropout=0.3", "tracker=none", "threads=1")
SHORT = ("epochs=2", "checkpoint.every=0.25")  # 16 updates, a checkpoint every second of them


class Told(Progress):
    """Progress that goes to a function."""

    def __init__(self, tell: Callable[[str, float, int], object]) -> None:
        self._tell = tell

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        self._tell(what, done, total)


Moment = tuple[str, int]  # a piece of work, as the progress bar names it, or WRITE; and how much of it was done

WRITE = "write"  # the n-th call that makes a file durable, or gives it its name
_context = get_context("forkserver")
_context.set_forkserver_preload(
    ["normlab.sweeps.cell_server", "normlab.data.digits", "normlab.models.resnet", "torch._dynamo", "matplotlib.pyplot"]
)


def attempt(config: Config, moment: Moment | None = None, number: int = signal.SIGKILL) -> int:
    """Start or resume a run in a process, which sends itself a signal at the moment; returns its exit code."""
    process = _context.Process(target=_run, args=(config, moment, number))
    process.start()
    process.join(120)
    assert process.exitcode is not None, f"still alive: {moment}"
    return process.exitcode


def _run(config: Config, moment: Moment | None, number: int) -> None:
    def report(what: str, done: float, total: int) -> None:
        if (what, done) == moment:
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if moment and moment[0] == WRITE:
        _signal_at_write(moment[1], number)
    if start(config, RunFolder.of(config), Told(report)) == "interrupted":
        os._exit(128 + number)


def _signal_at_write(which: int, number: int) -> None:
    calls = 0

    def counted(call: Callable) -> Callable:
        def wrapper(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == which:
                os.kill(os.getpid(), number)
            return call(*arguments, **options)

        return wrapper

    os.fsync, os.replace, os.truncate = counted(os.fsync), counted(os.replace), counted(os.truncate)  # type: ignore


def config(out: Path, *more: str) -> Config:
    return load([*SMALL, *SHORT, f"out={out}", *more])


def outcome(settings: Config) -> dict[str, object]:
    """All that a finished run leaves, but for what measures time."""
    folder = RunFolder.of(settings)
    summary = folder.summary()
    last = checkpoint.load(checkpoint_files(folder.checkpoints)[-1], folder.run()["id"])
    for field in TIME_FIELDS:
        del summary[field], last[field]
    names = sorted(str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file())
    compared = [name for name in names if Path(name).suffix in (".jsonl", ".safetensors", ".png")]
    state = dict(_leaves(last))
    return {"summary": summary, "status": folder.status(), "files": names, **state} | {
        name: (folder.path / name).read_bytes() for name in compared
    }


def _leaves(value: object, name: str = "checkpoint") -> list[tuple[str, object]]:
    """Each tensor as its bytes: what is compared is compared bit for bit."""
    if isinstance(value, dict):
        return [leaf for key, inside in value.items() for leaf in _leaves(inside, f"{name}.{key}")]
    if isinstance(value, list):
        return [leaf for i, inside in enumerate(value) for leaf in _leaves(inside, f"{name}.{i}")]
    return [(name, value.numpy().tobytes() if isinstance(value, torch.Tensor) else value)]


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of what is not the same in two outcomes."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def use_up(disk: Path) -> Path:
    """Leave no room on a disk; returns the file that takes it."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096 if shutil.disk_usage(disk).free >= 4096 else 1))
    assert shutil.disk_usage(disk).free == 0
    return filler
