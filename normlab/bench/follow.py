"""Commands that are followed by what they record: when each record appears tells how fast they are."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from normlab.errors import UserError

POLL = 0.01  # seconds; a look at a file costs microseconds
PATIENCE = 600  # seconds without news


class Moment(NamedTuple):
    """When a record appeared, in seconds since the command started, and how many updates it says were done."""

    seconds: float
    updates: int


def follow(
    command: Sequence[str], records: Callable[[Path], Path | None], updates_in: Callable[[str], int | None], until: int
) -> list[Moment]:
    """Run a command until its records tell of `until` updates, then end it; returns the moments of its records.

    Args:
        command: the words.
        records: the file where they appear, once it exists; it is given the file of the command's output.
        updates_in: how many updates a line of that file says were done, None for other lines.
        until: updates.

    Raises:
        UserError: the command ended before, or was silent for PATIENCE seconds; with the last line of its output.
    """
    moments: list[Moment] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        start = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            read, news = 0, start
            while not moments or moments[-1].updates < until:
                ended = process.poll() is not None
                file = records(log)
                lines = _new_lines(file, read) if file is not None else b""
                now = time.perf_counter()
                read += len(lines)
                found = [done for line in lines.decode(errors="replace").splitlines() if (done := updates_in(line))]
                if found:
                    moments.append(Moment(now - start, max(found)))
                news = now if lines else news
                if not lines and (ended or now - news > PATIENCE):
                    raise UserError(f"{command[0]} ended after {_done(moments)} updates of {until}: {_last_line(log)}")
                if not lines:
                    time.sleep(POLL)
        finally:
            _end(process)
    return moments


def rate(moments: Sequence[Moment], samples: int, warmup: int) -> float:
    """Samples per second from the first record after `warmup` updates to the last record."""
    steady = [moment for moment in moments if moment.updates >= warmup]
    first, last = steady[0], steady[-1]
    return (last.updates - first.updates) * samples / (last.seconds - first.seconds)


def _done(moments: Sequence[Moment]) -> int:
    return moments[-1].updates if moments else 0


def _new_lines(file: Path, start: int) -> bytes:
    """Whole lines behind the first `start` bytes."""
    with file.open("rb") as opened:
        opened.seek(start)
        new = opened.read()
    return new[: new.rfind(b"\n") + 1]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and its workers: there is nothing left to wait for."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
