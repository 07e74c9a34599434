"""The runs of a table: a config for each cell; cells that ask for the same experiment share it. No torch here."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from normlab.config import EXECUTION, BatchAverage, Config, identity, load
from normlab.errors import UserError
from normlab.report.records import Ids, Key, recorded_seeds, table_folder
from normlab.report.table import PRETRAINING, Cell, Origin, Table, cells, pretraining
from normlab.runs.folder import RunFolder

_PLACES = ("data.root=", "task.loss_weights=", "task.style=")  # of what no paper gives a place
_EXECUTION = (*(f"{name}{sign}" for name in EXECUTION for sign in "=."), *_PLACES, "data.on_error=")


@dataclass
class Plan:
    """A table at a scale, with its cells and what each is a run of."""

    table: Table
    scale: str
    cells: list[Cell]  # of the seeds that are asked for
    pretraining: list[Cell]  # what they begin from and the table does not show
    ids: Ids  # of these and of all that is recorded
    configs: dict[str, Config]  # id -> experiment, those first that others begin from
    folder: Path  # of the records and the report
    changed: list[str]  # what is set beyond the table and its scale, and makes its runs others

    def runs(self) -> list[RunFolder]:
        """Of each cell."""
        return [RunFolder.of(self.config_of(cell)) for cell in self.cells]

    def config_of(self, cell: Cell) -> Config:
        return self.configs[self.ids[cell.row, cell.column, cell.seed]]

    def origin_of(self, cell: Cell) -> str | None:
        """Id of the run whose weights a cell begins from."""
        origin = self.table.start_of(cell.row, cell.column, self.scale)
        return origin and self.ids[origin.row, origin.column, cell.seed]

    def origins(self) -> list[RunFolder | None]:
        """What the run of each cell begins from."""
        ids = map(self.origin_of, self.cells)
        return [None if run_id is None else RunFolder.of(self.configs[run_id]) for run_id in ids]

    def measurements(self) -> Iterator[tuple[RunFolder, BatchAverage]]:
        """Statistics that a cell wants measured anew from the weights of its run."""
        for cell, run in zip(self.cells, self.runs(), strict=True):
            estimator = self.table.estimator_of(cell.row, cell.column)
            if isinstance(estimator, BatchAverage):
                yield run, estimator


def plan(table: Table, scale: str, seeds: Sequence[int], extra: Sequence[str], results: Path) -> Plan:
    """Raises UserError on what cannot work in any cell."""
    known = sorted({*seeds, *recorded_seeds(table, scale, results)})
    planned = [*pretraining(table, scale, known, extra), *cells(table, scale, known, extra)]
    by_key: dict[Key, tuple[Cell, Config]] = {
        (cell.row, cell.column, cell.seed): (cell, _load(cell)) for cell in planned
    }
    ids: dict[Key, str] = {}
    configs: dict[str, Config] = {}

    def add(key: Key) -> str:
        if key not in ids:
            cell, config = by_key[key]
            origin = table.start_of(cell.row, cell.column, scale)
            if origin is not None:
                other = add((origin.row, origin.column, cell.seed))
                _begin(config, origin, configs[other], other)
            ids[key] = identity(config)
            configs.setdefault(ids[key], config)
        return ids[key]

    for key in by_key:
        add(key)
    asked = [cell for cell in planned if cell.seed in seeds]
    first, shown = ([c for c in asked if (c.row == PRETRAINING) == is_first] for is_first in (True, False))
    changed = [word for word in extra if not word.startswith(_EXECUTION)]
    ids = {key: ids[key] for key in by_key}
    return Plan(table, scale, shown, first, ids, configs, table_folder(table, scale, results), changed)


def _load(cell: Cell) -> Config:
    """Cells that differ in their seed alone are composed once, since it takes the time."""
    own = f"seed={cell.seed}"
    config = copy.deepcopy(_composed(tuple(word for word in cell.overrides if word != own)))
    if own in cell.overrides:
        config.seed = cell.seed
    return config


@cache
def _composed(overrides: tuple[str, ...]) -> Config:
    return load(list(overrides))


def _begin(config: Config, origin: Origin, other: Config, other_id: str) -> None:
    """Let a run begin from another, which keeps its weights at that moment."""
    config.init = f"{other_id}@{origin.at:g}" + (":ratios" if origin.take == "ratios" else "")
    if origin.at < 1:
        other.snapshots = sorted({*other.snapshots, origin.at})
    if origin.goes_on:
        _go_on(config, other, origin.at)


def _go_on(config: Config, other: Config, at: float) -> None:
    """The rest of the other run: its epochs, and its schedule from there on. Raises UserError on another schedule."""
    schedule = other.schedule
    if not schedule["_target_"].endswith(".step") or schedule["warmup"] or other.iterations is not None:
        raise UserError("start.goes_on needs a run in epochs, on a step schedule without warm-up")
    length = {"fraction": 1.0, "epochs": other.epochs}[schedule["unit"]]
    config.epochs = other.epochs * (1 - at)
    milestones = [max(0.0, milestone / length - at) * other.epochs for milestone in schedule["milestones"]]
    config.schedule = schedule | {"unit": "epochs", "milestones": [round(m, 9) for m in milestones]}
    config.epochs = round(config.epochs, 9)
