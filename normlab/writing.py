"""Writing files so that nothing is lost: whole or not at all, or line by line. No torch here.

A kill leaves the file as it was before or as it is after, never a part of it; with its bytes and its name
flushed to the disk, so does what a power failure leaves. A full disk is a DiskFullError of one line.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normlab.errors import DiskFullError, UserError

SEAL = "sha256"  # the first field of a JSON object that tells of damage by itself
TEMPORARY = ".*.tmp"  # what a killed write may leave; its name ends in chance, for ranks and nodes write side by side
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it is over the limit on the size of a file (ulimit -f)",
}


def write_bytes(path: Path, *pieces: bytes | memoryview) -> None:
    """Replace a file whole or not at all. Raises DiskFullError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _room(path, sum(map(len, pieces))):
        try:
            with temporary.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file whole or not at all. Raises DiskFullError."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Replace a file whole or not at all; `sealed`: with the digest of its text. Raises DiskFullError."""
    text = json.dumps(value, indent=2)
    write_text(path, (seal(text) if sealed else text) + "\n")


def overwrite_sealed(path: Path, value: Any) -> None:
    """Replace the bytes of a file that is there, in its own place: a full disk has room for that, but a kill may leave
    half of it. Raises DiskFullError."""
    data = (seal(json.dumps(value, indent=2)) + "\n").encode()
    with _room(path, len(data)), os.fdopen(open_own(path, os.O_RDWR), "rb+") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def seal(text: str) -> str:
    """A JSON object as text, with the SHA-256 of all that follows it as its first field; reading.py looks at it."""
    rest = text[1:]  # behind the brace
    indent = rest[: len(rest) - len(rest.lstrip())]
    rest = f"{indent or ' '}{rest.lstrip()}"
    return f'{{{indent}"{SEAL}": "{hashlib.sha256(rest.encode()).hexdigest()}",{rest}'


def is_full(error: BaseException) -> bool:
    """Whether there is no room for a file."""
    return isinstance(error, OSError) and error.errno in _FULL


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]], *, sealed: bool = False) -> None:
    """A line a row, behind the whole lines that there are; `sealed`: each with its digest. Raises DiskFullError."""
    lines = (json.dumps(row) for row in rows)
    data = "".join(f"{seal(line) if sealed else line}\n" for line in lines).encode()
    with _room(path, len(data)), os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "rb+") as file:
        _drop_torn_line(file)
        file.write(data)


def size_on_disk(path: Path) -> int:
    """Bytes of a file that only grows, now that all of them are on the disk; 0 where there is none."""
    if not path.exists():
        return 0
    with _room(path, 0):
        _sync(path)
        _sync(path.parent)
    return path.stat().st_size


def cut(path: Path, size: int) -> None:
    """Drop what a file has beyond its first bytes."""
    if path.exists():
        descriptor = open_own(path, os.O_WRONLY)
        try:
            os.truncate(descriptor, size)
        finally:
            os.close(descriptor)


def open_own(path: Path, flags: int) -> int:
    """The descriptor of a file of a run, which is not executable.

    A run's folder may come from anyone, so a symbolic link in it is never followed: raises UserError.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a symbolic link, and files of a run are its own; remove it") from None
        raise


@contextmanager
def _room(path: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        free = shutil.disk_usage(path.parent).free
        raise DiskFullError(
            f"{path}: {_FULL[error.errno or 0]}; it needs {_megabytes(needed)}, and {_megabytes(free)} are free. What "
            "was saved before is whole; the same command goes on from there once there is room"
        ) from None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size >= 1000 else f"{size} bytes"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drop_torn_line(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
