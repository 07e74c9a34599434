"""The samples that a run did without (data.on_error=skip), in data_errors.RANK.jsonl of its folder.

Each rank writes a line when it first meets a bad sample, and a resumed run may meet it again: the bad samples of a run
are the union of the files, the same set however often it was stopped and on however many devices it ran.
"""

import logging
from pathlib import Path
from typing import Any

from normlab.data.dataset import SampleError
from normlab.reading import Fields, read_jsonl
from normlab.schema import Parameter
from normlab.writing import append_jsonl, size_on_disk

SHOWN = 20  # named in the summary
_ROW: Fields = {"split": Parameter(str), "index": Parameter(int)}

_log = logging.getLogger(__name__)


class DataErrors:
    """What one rank met."""

    def __init__(self, run: Path, rank: int) -> None:
        self.path = run / f"data_errors.{rank}.jsonl"
        self.known = {_key(row) for row in read_jsonl(self.path, _ROW)}

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep what is new, on the disk when this returns: no checkpoint is later than what it passed over."""
        new = {_key(row): row for row in rows if _key(row) not in self.known}
        if not new:
            return
        if not self.known:
            first = next(iter(new.values()))
            _log.warning(
                "%s: %s; going on without it (data.on_error=skip), and %s lists all", first["file"], first["reason"],
                self.path,
            )  # fmt: skip
        append_jsonl(self.path, new.values())
        size_on_disk(self.path)
        self.known |= new.keys()


def row(error: SampleError) -> dict[str, Any]:
    """What is kept of a bad sample; plain values, which travel from a loader's worker."""
    return {"split": error.split, "index": error.index, "file": error.file, "reason": error.reason}


def data_errors(run: Path) -> dict[str, Any]:
    """How many samples the run did without, and the first of them by split and index."""
    rows = {_key(row): row for path in sorted(run.glob("data_errors.*.jsonl")) for row in read_jsonl(path, _ROW)}
    return {"count": len(rows), "samples": [rows[key] for key in sorted(rows)[:SHOWN]]}


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["split"], row["index"]
