"""Commands that are started only to be killed: a server that has torch imported forks each, and watches over its end.

A forked command runs `normlab.cli.main` in a session of its own, as a shell's would: all but the import is the real
path. The server is the reaper of whatever its commands leave behind, so no orphan escapes it. Linux only.

    python -m normlab.doctor.attempts       requests and answers, a line of JSON each, on stdin and stdout
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from normlab.errors import RunError

GRACE = 30.0  # seconds for what a killed process leaves behind
_PR_SET_CHILD_SUBREAPER = 36
_IMPORTED = (  # what a run loads sooner or later
    *("normlab.launch.start", "normlab.launch.life", "normlab.tasks.classification", "normlab.models.resnet"),
    *("normlab.data.digits", "torch._dynamo", "matplotlib.backends.backend_agg"),
    *("normlab.sweeps.reproduce", "normlab.engine.saved", "normlab.figures.command"),
)


class Server:
    """Starts one command at a time; a context manager.

    Args:
        module: what is run to serve: it imports, and calls `serve`.
    """

    def __init__(self, module: str = "normlab.doctor.attempts") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # a thread pool would not survive the fork
            start_new_session=True,  # Ctrl-C is for the chaos, which ends the server
        )

        assert self._process.stdin and self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for pid in [*descendants(self._process.pid), self._process.pid]:
            _kill(pid)
        self._process.communicate()

    def start(
        self, words: list[str], log: Path, out: Path | None = None, *, typed: bool = False, verb: str = "normlab"
    ) -> "Attempt":
        """Run a command, its output added to `log`.

        Args:
            words: of the command.
            log: a file.
            out: a file of its own for stdout; None: `log` has it too.
            typed: a new process that imports everything, as when the command is typed, instead of a fork.
            verb: "normlab", or "save" for the loop in `normlab.doctor.saving`.
        """
        request = {"verb": verb, "words": words, "log": str(log), "out": str(out or log), "typed": typed}
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.flush()
        return Attempt(self, self.answer()["pid"])

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self) -> dict[str, Any]:
        """The next line from the server. Raises RunError if it has ended."""
        line = self._answers.readline()
        if not line:
            raise RunError(f"the server of the attempts ended with status {self._process.wait()}")
        return json.loads(line)

    def has_answer(self, seconds: float) -> bool:
        """Whether there is one; waits so long for it."""
        return bool(select.select([self._answers], [], [], seconds)[0])


class Attempt:
    """A command under way.

    status: of its end, negative for a signal; None before.
    left: processes that it left behind when it ended.
    orphans: those of them that were still there after GRACE seconds; they were killed then.
    """

    def __init__(self, server: Server, pid: int) -> None:
        self.pid, self._server = pid, server
        self.began = time.monotonic()
        self.status: int | None = None
        self.left = self.orphans = 0

    def ended(self, seconds: float) -> bool:
        """Whether it ended, and all that it started; waits so long."""
        if self.status is None and self._server.has_answer(seconds):
            end = self._server.answer()
            self.status, self.left, self.orphans = end["status"], end["left"], end["orphans"]
        return self.status is not None

    def children(self) -> dict[str, list[int]]:
        """The ranks, and the other processes that it and they started: loader workers; by pid."""
        found: dict[str, list[int]] = {"rank": [], "worker": []}
        for pid in descendants(self.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            is_rank = b"normlab.launch.rank" in words and _parent(pid) == self.pid
            found["rank" if is_rank else "worker"].append(pid)
        return found

    def kill(self, pid: int | None = None) -> None:
        """SIGKILL one process; without a pid, all at once."""
        if pid is not None:
            _kill(pid)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # ranks are in groups of their own
        for other in descendants(self._server.pid):
            _kill(other)


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (parent := _parent(int(entry))) is not None:
            children.setdefault(parent, []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


def _parent(pid: int) -> int | None:
    """None for a process that is gone, or dead and not waited for yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[1])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ---- in the server ---------------------------------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """The command as it is installed."""
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="normlab")
    return command.load()(words)


def serve() -> None:
    """Answer each request with the pid of its command, and again when it and all that it started have ended."""
    for module in _IMPORTED:
        importlib.import_module(module)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps(_end(pid)), flush=True)


def _become(request: dict[str, Any]) -> None:
    """In the child: the command, to its end."""
    os.setsid()
    out, err = (os.open(request[key], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for key in ("out", "log"))
    for target, stream in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(target, stream)
    if request["verb"] == "save":
        from normlab.doctor.saving import save_forever

        save_forever(*map(Path, request["words"]))
    if request["typed"]:
        os.execv(sys.executable, [sys.executable, "-m", "normlab.cli", *request["words"]])
    sys.exit(main(request["words"]))


def _end(pid: int) -> dict[str, int]:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left, until = len(descendants(os.getpid())), time.monotonic() + GRACE
    while (orphans := descendants(os.getpid())) and time.monotonic() < until:
        time.sleep(0.01)
    for orphan in orphans:
        _kill(orphan)
    try:
        while os.waitpid(-1, 0 if orphans else os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    return {"status": status, "left": left, "orphans": len(orphans)}


if __name__ == "__main__":
    serve()
