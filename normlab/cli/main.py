"""A command line from its words to an exit status: what goes wrong is one line on stderr."""

import contextlib
import io
import os
import select
import signal
import sys

import click
from click.shell_completion import shell_complete

from normlab.cli.commands import command_line, said
from normlab.errors import DiskFullError, RunError, UserError, is_out_of_memory, plain
from normlab.processes.lifetimes import takes_signals
from normlab.writing import is_full

BAD_INPUT = 2
COMPLETE = "_NORMLAB_COMPLETE"  # the environment variable by which a shell asks for completions
LONGEST_MESSAGE = 2000  # characters; a word of a million is not to be read back whole


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit status. A user's mistake is one line on stderr and status 2."""
    words = sys.argv[1:] if argv is None else argv
    # Threads that wait ask for some microseconds and then sleep. By default they ask on, and beside other programs take
    # the core from those they wait for (docs/performance.md). OpenMP reads this as torch loads it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # GNU's, which goes by it first
    _prepare_streams()
    try:
        with _CtrlC():
            status = _run(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (UserError, RunError) as error:
        return _refuse(str(error), error.exit_status)
    except (BrokenPipeError, ConnectionRefusedError) as error:
        if isinstance(error, ConnectionRefusedError) or _is_read():
            said = f"a process that this one had started has ended; can {sys.executable} be run here?"
            return _refuse(said, RunError.exit_status)
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:  # of a file or folder that cannot be used
        if error.filename is None:
            _discard_output()
        full = error.filename is not None and is_full(error)
        status = DiskFullError.exit_status if full else BAD_INPUT
        return _refuse(f"{error.filename or 'output'}: {error.strerror or error}", status)
    except Exception as error:
        if is_out_of_memory(error):
            return _refuse(f"there is not enough memory for these settings: {error}", RunError.exit_status)
        raise


class _CtrlC:
    """Notes a Ctrl-C: where it cuts an import short, Python may raise anything, and here KeyboardInterrupt again."""

    pressed = False

    def __enter__(self) -> None:
        self._previous = signal.getsignal(signal.SIGINT) if takes_signals() else None
        if self._previous is signal.default_int_handler:  # else someone else takes care
            signal.signal(signal.SIGINT, self._note)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._previous)
        if self.pressed and isinstance(error, Exception):
            raise KeyboardInterrupt from error

    def _note(self, *_: object) -> None:
        self.pressed = True
        raise KeyboardInterrupt


def _run(words: list[str]) -> int:
    commands = command_line()
    if asked := os.environ.get(COMPLETE):
        return shell_complete(commands, {}, "normlab", COMPLETE, asked)
    if words[:1] == ["help"]:
        words = ["--help"]
    try:  # not click's own main, which makes another status of output that nobody reads
        with commands.make_context("normlab", words) as context:
            return int(commands.invoke(context))
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        raise UserError(said(error)) from None


def _refuse(message: str, status: int = BAD_INPUT) -> int:
    line = plain(" ".join(message.split()))
    print(f"normlab: {line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 3] + '...'}", file=sys.stderr)
    return status


def _prepare_streams() -> None:
    """Let every character be written to any terminal, and output be closed (`>&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_read() -> bool:
    """Whether someone reads the output: not so after `normlab list | head -1`."""
    output = select.poll()
    for descriptor in (1, 2):
        output.register(descriptor, 0)  # POLLERR, of a pipe without a reader, is told always
    return not output.poll(0)


def _discard_output() -> None:
    """Nobody can have it, so Python is not to try again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
