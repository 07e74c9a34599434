"""Processes that a run starts: none outlives it, and signals meant for the run do not end them."""

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


LAUNCHER = "NORMLAB_LAUNCHER"  # environment variable: the process that starts ranks


def takes_signals() -> bool:
    """Whether this is the thread that Python gives signals to; in another no handler can be set, and none is needed."""
    return threading.current_thread() is threading.main_thread()


def die_with_parent(parent: int = 0) -> None:
    """Have the kernel kill this process when the one that started it ends, however that ends. On Linux.

    Args:
        parent: the process that started it, where that is known; else the parent of now, which may be another already.
    """
    if sys.platform == "linux":
        parent = parent or os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended meanwhile
            os.kill(os.getpid(), signal.SIGKILL)


def prepare_loader_worker(_worker: int) -> None:
    """In a process that loads data: only the run itself may end it.

    Schedulers and terminals signal all processes of a run, and the run needs its workers to finish the update.
    """
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()


def _end_for(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
