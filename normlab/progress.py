"""A progress bar with the time left, or lines now and then where nobody watches a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

from normlab.console import PlainConsole

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Where work tells how far it is, and what came out on the way; this one is watched by nobody."""

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        """How much of `what` is done, of how much; a note may say what it is made of."""

    def say(self, line: str) -> None:
        """News that stay."""


silent = Progress()


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Progress]:
    """Shows how far each piece of work is, on a bar of its own."""
    console = console or PlainConsole(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        rich_progress.TextColumn("{task.description:<20}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console) as bars:
        yield _Bars(bars)


class _Bars(Progress):
    def __init__(self, bars: rich_progress.Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, rich_progress.TaskID] = {}

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, completed=0, note=note)
        self._bars.update(self._tasks[what], completed=done, total=total, note=note)

    def say(self, line: str) -> None:
        self._bars.console.print(line, soft_wrap=True)


class _Lines(Progress):
    """News go to standard output, as a log file wants them; how far work is goes to the console that was given."""

    def __init__(self, console: Console) -> None:
        self._console, self._news = console, PlainConsole()
        self._shown: dict[str, float] = {}

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._shown.setdefault(what, now) >= SECONDS_BETWEEN_LINES:
            self._shown[what] = now
            self._console.print(f"{what}: {done:.0f} of {total}{note and f', {note}'}")

    def say(self, line: str) -> None:
        self._news.print(line, soft_wrap=True)
