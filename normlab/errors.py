"""What went wrong, said in one line. The command line prints it and exits with `exit_status`."""

import difflib
import re
from collections.abc import Iterable

_SHOWN = 12  # names of a list
_NEAR = 0.5  # difflib's ratio: sm is as near to sn
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Input that cannot work. The message names the value, what is allowed and the nearest valid name."""

    exit_status = 2


class BusyError(UserError):
    """Another command works on the run; its records are left alone."""


class RunError(Exception):
    """What ended a run that was under way. The same command goes on with it."""

    exit_status = 1


class DiskFullError(RunError):
    """A file that could not be written. The message names it, and the room that it needs."""

    exit_status = 74  # EX_IOERR


def nearest(name: str, valid: Iterable[str]) -> str:
    """`did you mean 'sn'?`, or the list of valid names when none is near, with the nearest of a long one."""
    names = sorted({str(v) for v in valid})
    if not names:
        return "nothing is allowed here"
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=_NEAR)
    if close:
        return f"did you mean '{lower[close[0]]}'?"
    if len(names) <= _SHOWN:
        return f"allowed: {', '.join(names)}"
    (best,) = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0)
    return f"allowed: {', '.join(names[:_SHOWN])}, ...; the nearest is '{lower[best]}'"


def unknown(what: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a name that is not among the valid ones."""
    return UserError(f"{what} '{name}' does not exist; {nearest(name, valid)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch's allocator of the CPU (a RuntimeError) or that of a GPU had no room left."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


def plain(text: str) -> str:
    """A text for a terminal: without control characters, which could move the cursor or colour and rename a terminal,
    and without those that turn text around."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
