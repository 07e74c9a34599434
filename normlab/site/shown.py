"""The runs that the site shows: those of a runs folder, and those that only the records of tables tell of. No torch.

A run folder has its curves; a record has the end of a run, and one value an epoch. What both have is one run here.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from normlab.config.initial import RUN_ID
from normlab.errors import UserError
from normlab.reading import EPOCH, read_metrics
from normlab.report.records import Record, key_of
from normlab.report.results import Results
from normlab.runs.folder import RunFolder
from normlab.runs.records import NoRecordsError, Run
from normlab.tasks.metrics import MetricInfo

Rows = list[dict[str, Any]]

_SETTINGS = (
    "norm",
    "weight",
    "model",
    "data",
    "task",
    "batch",
    "accumulate",
    "epochs",
    "iterations",
    "seed",
    "precision",
)
_MADE = ("commit", "made_by", "device", "devices", "inputs", "seconds", "parameters", "norm_layers")


@dataclass(frozen=True)
class Cell:
    """A cell of a table that shows a run."""

    table: str
    title: str
    scale: str
    row: str  # labels
    column: str

    @property
    def page(self) -> str:
        return f"tables/{self.table}-{self.scale}.html"


@dataclass
class ShownRun:
    """A run, as far as its folder or its record tells of it.

    Attributes:
        key: what its page is called; letters, digits and dashes alone.
        name: for people.
        status: as its folder says, or its record.
        outcome: its summary.json or its record; empty where it has not ended.
        known: what its task measures.
        folder: None where only records tell of it.
        cells: of tables that show it.
        identity: id, and the digest of what it read, where that is known.
    """

    key: str
    name: str
    status: str
    outcome: Mapping[str, Any]
    known: Mapping[str, MetricInfo]
    folder: RunFolder | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    identity: tuple[str, str] = ("", "")

    @cached_property
    def settings(self) -> dict[str, str]:
        """Setting -> value, nested ones by their path: optim.lr. A record has the main ones alone."""
        chosen = dict(self.config.get("choices") or {}) if isinstance(self.config.get("choices"), Mapping) else {}
        main = {name: self.outcome[name] for name in _SETTINGS if self.outcome.get(name) is not None}
        nested = {key: value for key, value in self.config.items() if key != "choices"}
        return {key: str(value) for key, value in (main | _flat(nested) | chosen).items()}

    @cached_property
    def made(self) -> dict[str, str]:
        """By what and where it was computed."""
        versions = self.outcome.get("versions")
        packages = {str(k): str(v) for k, v in versions.items() if v} if isinstance(versions, Mapping) else {}
        others = {name: self.outcome[name] for name in _MADE if self.outcome.get(name) not in (None, "", [])}
        return packages | {name.replace("_", " "): _plain(value) for name, value in others.items()}

    @cached_property
    def value(self) -> float | None:
        """What it is known by."""
        found = self.outcome.get("headline", {}).get("value")
        return None if found is None else float(found)

    @cached_property
    def headline(self) -> str:
        """The metric that it is known by."""
        return str(self.outcome.get("headline", {}).get("metric") or next(iter(self.known), "top1"))

    @cached_property
    def epochs(self) -> Rows:
        """A row for each evaluation on the way: epoch, step where it is known, and measures as train/loss, val/top1."""
        if self.folder is not None:
            try:
                return Run.load(self.folder).epochs
            except NoRecordsError:
                return []
        columns = self._columns
        length = max(map(len, columns.values()), default=0)
        rows = [{n: v[k] for n, v in columns.items() if k < len(v)} for k in range(length)]
        return [{"epoch": self._moment(row.get("step"), k + 1)} | row for k, row in enumerate(rows)]

    @property
    def clock(self) -> str:
        """What its moments are counted in: a record that knows its updates, and not its epochs, has those alone."""
        each_epoch = self._columns and "step" not in self._columns
        return "update" if self.folder is None and not each_epoch and self._length is None else "epoch"

    def _moment(self, step: float | None, epoch: int) -> float:
        """Of an evaluation behind so many updates; a record without them has one each epoch."""
        updates = self.outcome.get("updates")
        if step is None:
            return epoch
        return step * self._length / updates if self._length is not None and updates else step

    @property
    def _columns(self) -> Mapping[str, Sequence[float]]:
        return self.outcome.get("epochs_of", {})

    @property
    def _length(self) -> float | None:
        """Epochs of training, as a record has them."""
        found = self.outcome.get("epochs")
        return float(found) if isinstance(found, int | float) and 0 < found < math.inf else None

    @cached_property
    def updates(self) -> Rows:
        """A row for each update: epoch, step and what its batch measured; a record has none."""
        if self.folder is None:
            return []
        return read_metrics(self.folder.whole(self.folder.metrics), EPOCH, holding='"batch/')

    @cached_property
    def moments(self) -> Rows:
        """The ratios of each layer, moment by moment; of a record, the last moment alone."""
        if self.folder is not None:
            try:
                return Run.load(self.folder).ratios
            except NoRecordsError:
                return []
        layers = self.outcome.get("layers", [])
        updates = self.outcome.get("updates") or 0
        epoch = self._length or (updates if self.clock == "update" else len(self.epochs))
        return [{"epoch": float(epoch), "layers": [_LAYER | dict(layer) for layer in layers]}] if layers else []

    def pictures(self) -> list[Path]:
        """Its figures and samples: PNG files of its folder, with plain names; links lead elsewhere and are none."""
        if self.folder is None:
            return []
        found = sorted(self.folder.path.glob("*.png"))
        return [path for path in found if path.is_file() and not path.is_symlink() and _FIGURE.fullmatch(path.stem)]


_FIGURE = re.compile("[A-Za-z0-9_]{1,80}")  # a name of one
_LAYER = {"layer": "", "receptive_field": None, "kernel_size": None, "shortcut": False, "part": None}


def collect(results: Iterable[Results], runs: Path, problems: list[str]) -> list[ShownRun]:
    """Every run, newest name last; what cannot be read is a line of `problems`."""
    found: dict[tuple[str, str], ShownRun] = {}
    taken: set[str] = set()

    def add(run: ShownRun) -> None:
        run_id, read = run.identity
        place = run_id if RUN_ID.fullmatch(run_id) else hashlib.sha256(run_id.encode()).hexdigest()[:12]
        if read:
            place += "-" + hashlib.sha256(read.encode()).hexdigest()[:8]
        names = itertools.chain([place], (f"{place}-{number}" for number in itertools.count(2)))
        run.key = next(key for key in names if key not in taken)
        taken.add(run.key)
        found[run.identity] = run

    for file in sorted(runs.glob("*/run.json")):
        try:
            run = _of_folder(RunFolder(file.parent))
            if run.identity in found:
                problems.append(f"{file.parent}: the same run as {found[run.identity].name}, which is shown")
            else:
                add(run)
        except (UserError, OSError) as error:
            problems.append(" ".join(str(error).split()))
    for one in results:
        for record in one.records:
            identity = identity_of(record)
            if identity not in found:
                add(_of_record(record, one.table.metrics))
            row, column, _ = key_of(record)
            table, labels = one.table, (one.table.row_labels, one.table.column_labels)
            cell = Cell(table.name, table.title, one.scale_name, labels[0][row], labels[1][column])
            found[identity].cells.append(cell)
    return sorted(found.values(), key=lambda run: run.name)


def identity_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """Of a record or a run.json: id, and the digest of what the run read, where that is known."""
    return str(record["id"]), str(record.get("inputs") or "")


def _of_folder(folder: RunFolder) -> ShownRun:
    run, status = folder.run(), folder.status()["status"]
    loaded = Run.load(folder)
    outcome = (
        folder.summary() if folder.is_over and folder.summary_file.is_file() else {"versions": run.get("versions")}
    )
    known, settings = loaded.metrics, run["config"]
    shown = ShownRun("", folder.path.name, status, outcome, known, folder, settings, identity=identity_of(run))
    _ = shown.epochs, shown.updates, shown.moments  # what is wrong with them is said of the whole run, and now
    return shown


def _of_record(record: Record, known: Mapping[str, MetricInfo]) -> ShownRun:
    name = str(record.get("name") or record["id"])
    return ShownRun("", name, record["status"], record, known, identity=identity_of(record))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _plain(value)
    return found


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
