"""How far runs are, from their folders. No torch here."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from normlab.engine.record import RunFolder


def print_status(folders: Iterable[RunFolder]) -> None:
    """A line a run: name, status, updates done, and what it reached or why it failed."""
    table = Table("run", "status", "updates", "outcome")
    counts: dict[str, int] = {}
    for folder in folders:
        status = folder.status()
        name = status["status"]
        counts[name] = counts.get(name, 0) + 1
        outcome = status.get("error", "")
        if folder.is_over and folder.summary_file.is_file():
            headline = folder.summary()["headline"]
            outcome = "-" if headline["value"] is None else f"{headline['metric']} {headline['value']:.2f}"
        table.add_row(folder.path.name, name, str(folder.updates_done()), outcome)
    console = Console(markup=False)
    console.print(table)
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()) or "no runs")
