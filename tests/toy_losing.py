"""A normlab that loses things, for the chaos to find: `python -m toy_losing` serves attempts at it.

Checkpoints are written in place, rows are not taken back, and the command `leave` leaves a process behind.
"""

import subprocess
from pathlib import Path

from normlab import cli
from normlab.doctor import attempts
from normlab.runs import checkpoint, resumption

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
    attempts.main = main
    attempts.GRACE = 0.3
    attempts.serve()
