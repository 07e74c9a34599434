"""CSV files in <run>/csv, for a spreadsheet or any other program, up to date while a run trains."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from normlab.dynamics.ratios import MOMENTS, Row
from normlab.errors import UserError
from normlab.trackers.tracker import Guard
from normlab.writing import open_own, write_text

_LAYER = ("layer", "index", "part", "receptive_field")
_UPDATE = "batch/"  # begins the keys of what an update measured


class CSV:
    """updates.csv has a row for each update, evaluations.csv for each evaluation on the way, ratios.csv for each ratio
    of a layer at a moment, summary.csv for each metric under each estimator at the end.

    A run that goes on leaves out what an earlier attempt wrote behind its checkpoint.

    Args:
        run: folder of the run.
        run_id, name, config: of no use here; run.json has them.
    """

    shows_images: ClassVar = False

    def __init__(self, run: Path, run_id: str, name: str, config: dict[str, Any]) -> None:
        self._folder = run / "csv"
        self._columns: dict[str, list[str]] = {}  # of each file that this attempt has written to
        self._try = Guard("CSV")

    def log(self, values: dict[str, float], step: int) -> None:
        name = "updates" if any(key.startswith(_UPDATE) for key in values) else "evaluations"
        row = {"step": step} | {key.removeprefix(_UPDATE): value for key, value in values.items()}
        self._try(lambda: self._write(name, [row]))

    def ratios(self, rows: Sequence[Row], epoch: float, step: int) -> None:
        found = [
            {"step": step, "epoch": epoch, **{key: row.get(key) for key in _LAYER}, "moment": moment}
            | {"scope": scope, "ratio": ratio}
            for row in rows
            for moment in MOMENTS
            for scope, ratio in row[moment].items()
        ]
        self._try(lambda: self._write("ratios", found))

    def image(self, key: str, path: Path, step: int) -> None:
        pass  # the run's folder has it

    def finish(self, summary: dict[str, Any]) -> None:
        step = summary.get("updates", 0)
        found = [
            {"step": step, "estimator": estimator, "metric": metric, "value": value}
            for estimator, metrics in summary.get("metrics", {}).items()
            for metric, value in metrics.items()
        ]
        self._try(lambda: self._write("summary", found))

    def _write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows of one step; the file is written anew where columns are, or where an attempt begins.

        The run's folder may come from anyone: raises UserError on a link, which is never followed.
        """
        if not rows:
            return
        if self._folder.is_symlink():
            raise UserError(f"{self._folder} is a symbolic link, and folders of a run are its own; remove it")
        file, columns = self._folder / f"{name}.csv", self._columns.get(name)
        if columns is not None and set(rows[0]) <= set(columns):
            with os.fdopen(open_own(file, os.O_WRONLY | os.O_APPEND), "a", newline="", encoding="utf-8") as out:
                csv.DictWriter(out, columns, lineterminator="\n").writerows(rows)
            return
        earlier = self._earlier(file, rows[0]["step"] if columns is None else None)
        self._columns[name] = columns = list(dict.fromkeys(key for row in [*earlier[:1], rows[0]] for key in row))
        self._folder.mkdir(parents=True, exist_ok=True)
        written = io.StringIO()
        writer = csv.DictWriter(written, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*earlier, *rows])
        write_text(file, written.getvalue())

    def _earlier(self, file: Path, before: int | None) -> list[dict[str, Any]]:
        """What the file has, of steps before this one alone; None: all of it."""
        if not file.is_file() or file.is_symlink():
            return []
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if row.get("step", "").isdecimal()]
        return [row for row in rows if before is None or int(row["step"]) < before]
