"""How far runs are, from their folders. No torch here."""

from collections.abc import Iterable

from rich.table import Column, Table

from normlab.console import PlainConsole
from normlab.errors import UserError
from normlab.runs.folder import RunFolder
from normlab.runs.lock import is_abandoned
from normlab.runs.records import metrics_of_run


def print_status(folders: Iterable[RunFolder]) -> None:
    """A line a run: name, status, updates done, and what it reached or why it failed."""
    table = Table(Column("run", overflow="fold"), "status", "updates", Column("outcome", overflow="fold"))
    counts: dict[str, int] = {}
    for folder in folders:
        try:
            status, updates, outcome = _of(folder)
        except UserError as error:  # the others are shown all the same
            status, updates, outcome = "damaged", "", str(error)
        counts[status] = counts.get(status, 0) + 1
        table.add_row(folder.path.name, status, updates, outcome)
    console = PlainConsole()
    console.print(table)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()) or "no runs")


def _of(folder: RunFolder) -> tuple[str, str, str]:
    """Status, updates done and outcome of a run. Raises UserError on records that cannot be read."""
    status = folder.status()
    if status["status"] == "running" and is_abandoned(folder.path):
        status = {"status": "killed", "error": "the same command goes on from the last checkpoint"}
    outcome = status.get("error", "")
    if folder.is_over and folder.summary_file.is_file():
        headline = folder.summary()["headline"]
        metric, value = headline["metric"], headline["value"]
        info = metrics_of_run(folder).get(metric)
        outcome = "-" if value is None else f"{metric} {value:.{info.decimals if info else 2}f}"
    return status["status"], str(folder.updates_done()), outcome
