"""One command at a time works on a run's folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from normlab.errors import BusyError
from normlab.writing import open_own

NAME = "lock"
_SETTLING = 2.0  # seconds in which a node may be about to share its lock
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path, shared_by: str | None = None, patience: float = 0) -> Iterator[None]:
    """Hold the folder; it is made if there is none. Raises BusyError, which says who holds it.

    The lock is flock's on a file in the folder: it ends with the process, however that ends, so that nothing stale can
    block; the file only says who holds it. On NFS it holds between machines too, from Linux 2.6.12 on; where a file
    system has no locks at all, nothing is locked.

    Args:
        folder: of the run.
        shared_by: what the nodes of one run have in common and no other command has, as their meeting point; None
            where a command is alone.
        patience: seconds to wait for another that holds it.
    """
    file = _open(folder, shared_by, patience)
    try:
        yield
    finally:
        if _try(file, fcntl.LOCK_EX):  # else another node is still at it
            (folder / NAME).unlink(missing_ok=True)
        os.close(file)


def is_abandoned(folder: Path) -> bool:
    """Whether the command that worked on a folder is gone, as far as this machine can tell. Nothing is locked."""
    try:
        file = os.open(folder / NAME, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        holder = _holder(file)
    finally:
        os.close(file)
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except (OSError, ValueError):  # another user's
        pass
    return False


def _open(folder: Path, shared_by: str | None, patience: float) -> int:
    """The descriptor of the lock file, locked."""
    give_up = time.monotonic() + max(patience, _SETTLING if shared_by else 0)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open_own(folder / NAME, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        try:
            if _try(file, fcntl.LOCK_EX):
                if _is_still(file, folder / NAME):
                    _sign(file, shared_by)
                    if shared_by and not _try(file, fcntl.LOCK_SH):
                        raise BlockingIOError
                    return file
                os.close(file)  # its holder removed it while it was opened here
                continue
            holder = _holder(file)
            if shared_by and holder.get("shared_by") == shared_by and _try(file, fcntl.LOCK_SH):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        if time.monotonic() > give_up:
            who = "host {host}, process {pid}, since {since}".format_map(holder) if holder else "another command"
            raise BusyError(f"run {folder.name} is at work already: {who}; wait for its end, or stop it")
        time.sleep(0.1)


def _try(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def _is_still(file: int, path: Path) -> bool:
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _sign(file: int, shared_by: str | None) -> None:
    now = datetime.now().isoformat(" ", "seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "shared_by": shared_by}
    with contextlib.suppress(OSError):  # on a full disk it holds all the same
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)


def _holder(file: int) -> dict[str, str]:
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return holder if {"host", "pid", "since"} <= holder.keys() else {}
    except (ValueError, AttributeError):  # about to be written
        return {}
