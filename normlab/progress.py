"""A progress bar with the time left, or lines now and then where nobody watches a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

from normlab.console import PlainConsole

SECONDS_BETWEEN_LINES = 30

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Progress]:
    """A function of (what, done, total) that shows how far each piece of work is."""
    console = console or PlainConsole(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        rich_progress.TextColumn("{task.description:<20}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, completed=0)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def _lines(console: Console) -> Progress:
    shown: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - shown.setdefault(what, now) >= SECONDS_BETWEEN_LINES:
            shown[what] = now
            console.print(f"{what}: {done} of {total}")

    return report
