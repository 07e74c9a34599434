"""A normlab that loses things, for the chaos to find: `python -m toy_losing` serves attempts at it.

Checkpoints are written in place, rows are not taken back, digests are not looked at, the last record of a table is
not written, and the command `leave` leaves a process behind.
"""

import subprocess
from pathlib import Path

from normlab import cli
from normlab.doctor import attempts
from normlab.runs import checkpoint, resumption
from normlab.runs.folder import RunFolder
from normlab.sweeps import reproduce

PIECE = 8  # bytes, so that writing takes a while


def write_in_place(path: Path, *pieces: bytes | memoryview) -> None:
    data = b"".join(pieces)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), PIECE):
            file.write(data[start : start + PIECE])


def main(words: list[str]) -> int:
    if words == ["leave"]:
        subprocess.Popen(["sleep", "60"], start_new_session=True)
        return 3
    return cli.main(words)


if __name__ == "__main__":
    checkpoint.write_bytes = write_in_place
    resumption.cut = lambda path, size: None
    RunFolder.whole = lambda self, path: path  # type: ignore[method-assign]
    collect = reproduce.collect
    reproduce.collect = lambda table, cells, runs, *more: collect(table, cells[:-1], runs[:-1], *more)
    attempts.main = main
    attempts.GRACE = 5
    attempts.serve()
