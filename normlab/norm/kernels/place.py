"""Whether a place can hold a library that this user's processes load: code that runs as the user.

safe_place(path, own) -> path, or one in `own` where another user could put a library of theirs there
"""

import grp
import logging
import os
import pwd
import shlex
import stat
from pathlib import Path

_log = logging.getLogger(__name__)


def safe_place(path: Path, own: Path) -> Path:
    """The place of a library; one of its name in the folder `own` where others could write, which a warning says."""
    found = _open_to_others(path)
    if found is None:
        return path
    _log.warning(
        "%s can be written to by other users, and kernels are code: they are not taken from there, but built at each "
        "start; chmod go-w %s, if it is yours, or NORMLAB_CACHE=FOLDER names a folder of your own",
        found,
        shlex.quote(str(found)),
    )
    return own / path.name


def _open_to_others(path: Path) -> Path | None:
    """The file, its folder or a folder above that another user could write to; None where there is none.

    Folders above may be open with the sticky bit, as /tmp is: nobody replaces there what is another's. Where a link
    leads on the way, both ways count.
    """
    for place in (path.absolute(), path.resolve()):
        for inner in (place, place.parent):
            if inner.exists() and (inner.stat().st_uid not in (0, os.geteuid()) or _writable(inner.stat())):
                return inner
        for folder in place.parent.parents:
            if _writable(folder.stat()) and not folder.stat().st_mode & stat.S_ISVTX:
                return folder
    return None


def _writable(found: os.stat_result) -> bool:
    """Whether others can write there: all, or a group that is not the user's alone."""
    return bool(found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid)))


def _is_private(group: int) -> bool:
    """Whether a group is the one that many systems make for each user, by the user's name and without members."""
    try:
        user, entry = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == user and not set(entry.gr_mem) - {user}
