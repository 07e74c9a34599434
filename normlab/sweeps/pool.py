"""Many runs: each in a process of its own, several side by side; what happens to one costs no other.

Processes fork from a server that has imported torch, so that a cell starts in milliseconds. A cell tells how far it is
through a pipe of its own: a killed process cannot hold up the others.
"""

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from typing import Any

import torch
from rich.console import Console

from normlab.config import Config, identity, inputs
from normlab.console import PlainConsole
from normlab.errors import BusyError, DiskFullError, UserError
from normlab.launch.elastic import num_devices
from normlab.launch.start import start
from normlab.processes.lifetimes import takes_signals
from normlab.processes.threads import cores
from normlab.progress import Progress, progress_bar
from normlab.runs.folder import RunFolder
from normlab.runs.lock import locked
from normlab.writing import open_own

LOG = "log.txt"
BUSY = 75  # exit status of a cell that another command works on (EX_TEMPFAIL)
Pipe = connection.Connection


@dataclass
class Cell:
    """One run of a sweep."""

    config: Config
    folder: RunFolder
    weight: float = 1.0  # expected share of the sweep's time, relative
    done: float = 0.0  # 0 to 1

    @property
    def name(self) -> str:
        return self.folder.path.name


@dataclass
class _Job:
    """A cell under way."""

    cell: Cell
    process: Any
    pipe: Pipe
    gpus: list[int] = field(default_factory=list)


def sweep(configs: list[Config], jobs: int = 0, on_failure: str = "continue", console: Console | None = None) -> int:
    """Run what is not finished yet, `jobs` cells at a time; returns the exit status.

    Args:
        configs: a cell each, checked.
        jobs: cells side by side; 0: one a core, or as many as the GPUs allow.
        on_failure: "continue" with the other cells, or "stop" starting them.
        console: to print on.

    Raises:
        UserError: an option is none of the allowed.
    """
    if on_failure not in ("continue", "stop"):
        raise UserError(f"on_failure={on_failure}: expected continue or stop")
    console = console or PlainConsole(stderr=True)
    cells = plan(configs)
    waiting = [cell for cell in cells if not cell.folder.is_over or cell.config.rerun]
    console.print(f"{len(cells)} cells: {len(cells) - len(waiting)} finished already, {len(waiting)} to run")
    pool = _Pool(waiting, jobs, on_failure)
    if waiting:
        pool.run(console)
    return conclude(cells, console, pool.signal, pool.disk_is_full)


def plan(configs: list[Config]) -> list[Cell]:
    """A cell for each different experiment; the same one given twice runs once."""
    different = {(identity(config), inputs(config)): config for config in configs}
    return [Cell(config, RunFolder.of(config), relative_time(config)) for config in different.values()]


def relative_time(config: Config) -> float:
    """Expected, to compare runs: iterations cost their samples, and as much again as some samples for each pass."""
    samples = config.replicas * config.per_replica
    iterations = config.iterations * config.accumulate if config.iterations else config.epochs * 1000 / samples
    return iterations * (samples + 32)


def conclude(cells: list[Cell], console: Console, ended_by: int = 0, disk_is_full: bool = False) -> int:
    """Say what failed, each with its own error, and how to go on; returns the exit status.

    `ended_by` is the signal that ended the sweep, as the status of a run that it ends says; 0: none.
    """
    statuses = [cell.folder.status() for cell in cells]
    failed = [(c, s) for c, s in zip(cells, statuses, strict=True) if s["status"] == "failed"]
    counts = {name: sum(s["status"] == name for s in statuses) for name in dict.fromkeys(s["status"] for s in statuses)}
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()))
    for cell, status in failed:
        console.print(f"failed: {cell.name}: {status['error']} (log: {cell.folder.path / LOG})", soft_wrap=True)
    if ended_by:
        console.print("Interrupted; the same command goes on from there.")
        return 128 + ended_by
    if disk_is_full:
        console.print("The disk is full; the same command goes on from there once there is room.")
        return DiskFullError.exit_status
    return 1 if failed or len(counts.keys() - {"finished", "diverged"}) else 0


def num_jobs(jobs: int) -> int:
    """Cells side by side; 0 stands for one a GPU, or one a core."""
    return jobs or torch.cuda.device_count() or cores()


class _Pool:
    """Starts cells while there is room, and watches them."""

    def __init__(self, waiting: list[Cell], jobs: int, on_failure: str) -> None:
        self.waiting, self.on_failure = list(waiting), on_failure
        self.cells = list(waiting)
        self.free_gpus = list(range(torch.cuda.device_count()))
        self.jobs = max(1, min(num_jobs(jobs), len(waiting)))
        self.cores = max(1, cores() // self.jobs)  # of each cell
        self.running: list[_Job] = []
        self.stopping = self.disk_is_full = False
        self.signal = 0
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(["normlab.sweeps.cell_server"])

    def run(self, console: Console) -> None:
        """Run all cells, unless `signal` (Ctrl-C or SIGTERM) or a full disk cuts them short."""
        numbers = (signal.SIGINT, signal.SIGTERM) if takes_signals() else ()
        previous = {number: signal.signal(number, self._stop) for number in numbers}
        total = sum(cell.weight for cell in self.cells)
        try:
            with progress_bar(console) as progress:
                while self.running or (self.waiting and not self.stopping):
                    while self.waiting and not self.stopping and self._has_room(self.waiting[0]):
                        self._launch(self.waiting.pop(0))
                    self._watch()
                    done = sum(cell.weight * cell.done for cell in self.cells)
                    over = len(self.cells) - len(self.waiting) - len(self.running)
                    progress("sweep", 100 * done / total, 100, f"{over} of {len(self.cells)} cells")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: object) -> None:
        """Stop starting cells, and let the running ones save and end; asked again, end them at once."""
        for job in self.running:
            if job.process.is_alive():
                os.kill(job.process.pid, signal.SIGKILL if self.signal else signal.SIGTERM)
        self.signal, self.stopping = self.signal or number, True

    def _has_room(self, cell: Cell) -> bool:
        if len(self.running) >= self.jobs:
            return False
        return not torch.cuda.device_count() or len(self.free_gpus) >= num_devices(cell.config) or not self.running

    def _launch(self, cell: Cell) -> None:
        here, there = self.context.Pipe(duplex=False)
        gpus = [self.free_gpus.pop(0) for _ in range(min(num_devices(cell.config), len(self.free_gpus)))]
        share = None if gpus else max(1, self.cores // num_devices(cell.config))
        process = self.context.Process(
            target=_run_cell, args=(cell.config, cell.folder, gpus, share, there), name=cell.name
        )
        process.start()
        there.close()
        self.running.append(_Job(cell, process, here, gpus))

    def _watch(self) -> None:
        """Wait for news or an end, and take note of it."""
        connection.wait([*(job.pipe for job in self.running), *(job.process.sentinel for job in self.running)], 0.5)
        for job in list(self.running):
            job.cell.done = max(job.cell.done, *_news(job.pipe), 0.0)
            if not job.process.is_alive():
                self.running.remove(job)
                self.free_gpus = sorted(self.free_gpus + job.gpus)
                job.cell.done = 1.0
                self._note_end(job)

    def _note_end(self, job: _Job) -> None:
        job.process.join()
        code, folder = job.process.exitcode, job.cell.folder
        status = folder.status()["status"]
        if code == DiskFullError.exit_status:
            self.disk_is_full = self.stopping = True
        elif status in ("new", "running") and code != BUSY:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            with contextlib.suppress(BusyError), locked(folder.path):  # else another command goes on with it
                folder.set_status("failed", error=f"the process {how}")
                status = "failed"
        if status == "failed" and self.on_failure == "stop":
            self.stopping = True


def _news(pipe: Pipe) -> list[float]:
    received = [0.0]
    try:
        while pipe.poll():
            received.append(pipe.recv())
    except (EOFError, OSError):
        pass
    return received


class _ToSweep(Progress):
    """How far a cell's training is goes into the pipe, and what it says into its log."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._last = pipe, 0.0

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        if what == "training" and (time.monotonic() - self._last > 0.5 or done == total):
            self._last = time.monotonic()
            try:
                self._pipe.send(0.95 * done / total)
            except OSError:  # the sweep was killed: save and end, as it would have asked
                signal.raise_signal(signal.SIGTERM)

    def say(self, line: str) -> None:
        print(line, flush=True)


def _run_cell(config: Config, folder: RunFolder, gpus: list[int], cores: int | None, pipe: Pipe) -> None:
    """In the cell's process: its output goes to its log, its progress into the pipe."""
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    if cores is not None:
        os.environ["OMP_NUM_THREADS"] = str(cores)  # what the cell, and its ranks, take for all the cores there are
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if config.figures == "auto":
        config.figures = "summary"  # all of them can take longer than the cell's training
    folder.path.mkdir(parents=True, exist_ok=True)
    log = open_own(folder.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        start(config, folder, _ToSweep(pipe))
    except BusyError as error:
        print(error, file=sys.stderr)
        sys.exit(BUSY)
    except DiskFullError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
    except UserError as error:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.set_status("failed", error=str(error))
        sys.exit(2)
