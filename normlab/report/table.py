"""A paper's table as data: conf/table/NAME.yaml, and the scales it is measured at (conf/scale).

load_table("table2") -> Table                         checked; no torch here
cells(table, scale, seeds) -> [Cell, ...]             each with the words of its command line
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

from normlab import schema
from normlab.config import BatchAverage, choices, default_choice, file_of, target_of
from normlab.errors import UserError, unknown
from normlab.reading import naming, read_mapping
from normlab.tasks.metrics import MetricInfo, metrics_of
from normlab.values import shown

SAME_LABEL = "="
PRETRAINING = "pretraining"  # where a cell would have its row


@dataclass
class Source:
    """Where numbers of a table are printed: a table of results/paper, or the values that a claim there names."""

    file: str
    table: str | None = None
    claim: str | None = None
    values: list[str] = field(default_factory=list)  # of a claim: what its numbers are, in order, as labels
    transpose: bool = False  # the paper has our rows as columns
    rows: list[str] = field(default_factory=list)  # ours that it has; empty: all
    columns: list[str] = field(default_factory=list)


@dataclass
class Start:
    """What a cell's runs begin from: the weights of another cell's, of the same seed.

    What a row says and what a column says are put together; a cell without any `at` begins from random weights.
    """

    run: str | None = None  # of the table's pretraining, at its end; else a cell
    row: str | None = None  # null: the row of this cell
    column: str | None = None
    at: float | None = None  # share of the other run's updates; 1: its end
    # What is taken of the other run; null: its weights, all of them; nothing: random weights, whatever the other says
    take: Literal["weights", "ratios", "nothing"] | None = None
    goes_on: bool | None = None  # for the rest of the other run, on its schedule; else a run of full length


@dataclass
class Line:
    """A row or a column: the paper's label for it, what it sets in a run, and what it reads off the run."""

    label: str
    overrides: list[str] = field(default_factory=list)
    by_scale: dict[str, list[str]] = field(default_factory=dict)  # scale -> more overrides
    protocols: dict[str, str] = field(default_factory=dict)  # scale -> file of conf/scale in the place of the table's
    metric: str | None = None  # null: the table's
    estimator: Any = None  # moving_average, batch_average, a BatchAverage to measure; null: the run's own headline
    start: Any = None  # Start
    printed: str | None = SAME_LABEL  # the label in the paper's table, if another; null: the paper has none


@dataclass
class ExceptionalCell:
    """What a cell sets beyond its row and column, and why."""

    row: str
    column: str
    note: str
    overrides: list[str] = field(default_factory=list)
    by_scale: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Pretraining:
    """Runs that cells begin from and that no cell shows, as classifiers of the same pictures; of each cell's seed."""

    scales: dict[str, str | None]  # scale of the table -> file of conf/scale, their protocol; null: there are none
    runs: dict[str, list[str]]  # name -> overrides
    by_scale: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # name -> scale -> more overrides
    task: str | None = None  # of conf/task; null: the default one
    shared: list[str] = field(default_factory=list)  # of these runs there is one, of seed 0, for cells of any seed


@dataclass
class Difference:
    """A derived row (or column): one minus another. Its name is the paper's label."""

    of: str
    minus: str
    printed: str | None = SAME_LABEL


@dataclass
class Claim:
    """What a paper says, as tests that must all hold: nodes with a `_target_` in normlab.report.verdicts."""

    statement: str
    tests: list[Any]
    sources: list[str] = field(default_factory=list)  # claims of results/paper: file.id; none of one's own
    scales: list[str] = field(default_factory=list)  # where it can be tested; empty: at each
    since: str | None = None  # when it was stated, where records are older: these do not count for it; ISO 8601


@dataclass
class Scale:
    """How large a table is measured: the protocol of its runs."""

    title: str
    guessing: float | dict[str, float]  # what a diverged run counts as: of the headline metric, or by metric
    margin: float
    overrides: list[str]
    seeds: int | None = None  # of each cell, where the scale's pilots say how many; null: as the table says
    note: str | None = None  # what a reader of any report at this scale must know


@dataclass
class Table:
    """conf/table/NAME.yaml; see docs/tables.md for what the settings mean."""

    name: str  # of the file
    title: str
    decimals: int
    seeds: list[int]
    scales: dict[str, str]  # name -> file of conf/scale
    rows: dict[str, Any]  # name -> Line
    columns: dict[str, Any]  # name -> Line
    task: str | None = None  # of conf/task; null: the default one
    metric: str | None = None  # null: the one that the task's runs are known by
    aliases: list[str] = field(default_factory=list)
    paper: list[Any] = field(default_factory=list)  # Source; the first that prints a number counts
    subject: str | None = None  # the paper's model and data; null: as its first source says
    overrides: list[str] = field(default_factory=list)  # of all cells, after the scale's
    exceptions: list[Any] = field(default_factory=list)  # ExceptionalCell
    pretraining: Any = None  # Pretraining
    differences: dict[str, Any] = field(default_factory=dict)  # of rows: the paper's label -> Difference
    column_differences: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)  # name -> Claim
    figures: dict[str, Any] = field(default_factory=dict)  # file -> node with a _target_
    notes: list[str] = field(default_factory=list)  # what a reader of the report must know

    def scale(self, name: str) -> Scale:
        """Raises UserError on a scale the table does not have."""
        if name not in self.scales:
            raise unknown(f"{self.name}: scale", name, self.scales)
        return self.protocol(self.scales[name])

    def protocol(self, file: str) -> Scale:
        """A file of conf/scale. Raises UserError where there is none."""
        if file not in choices("scale"):
            raise unknown(f"{self.name}: scale", file, choices("scale"))
        with naming(file_of("scale", file)):
            return checked(Scale, read_mapping(file_of("scale", file)), f"scale {file}")

    @property
    def default_scale(self) -> str:
        return next(iter(self.scales))

    @property
    def row_labels(self) -> dict[str, str]:
        """Of the rows and of their differences, by name."""
        return _labels(self.rows, self.differences)

    @property
    def column_labels(self) -> dict[str, str]:
        return _labels(self.columns, self.column_differences)

    def metric_of(self, row: str, column: str) -> str:
        """What a cell shows of its run."""
        return self.columns[column].metric or self.rows[row].metric or self.metric or next(iter(self.metrics))

    @cached_property
    def metrics(self) -> dict[str, MetricInfo]:
        """What runs of its task measure."""
        return metrics_of(str(target_of("task", self.task or default_choice("task"))))

    def estimator_of(self, row: str, column: str) -> str | BatchAverage | None:
        """Under which statistics; None: those of the run's headline."""
        return self.columns[column].estimator or self.rows[row].estimator

    def start_of(self, row: str, column: str, scale: str | None = None) -> "Origin | None":
        """What a cell's runs begin from; None: from random weights, or what the command names at this scale."""
        if row == PRETRAINING:
            return None
        said = [asdict(line.start) for line in (self.rows[row], self.columns[column]) if line.start]
        start = Start(**{key: value for node in said for key, value in node.items() if value is not None})
        if start.take == "nothing":
            return None
        if start.run is not None:
            if scale is not None and self.pretraining.scales[scale] is None:
                return None
            return Origin(PRETRAINING, start.run, 1.0, start.take or "weights", False)
        if start.at is None:
            return None
        return Origin(start.row or row, start.column or column, start.at, start.take or "weights", bool(start.goes_on))


class Origin(NamedTuple):
    """The run that another begins from: its cell, or PRETRAINING and its name there, and the share of its updates."""

    row: str
    column: str
    at: float
    take: str
    goes_on: bool


class Cell(NamedTuple):
    """One number of a table. Cells with the same overrides and start are of one run."""

    row: str
    column: str
    seed: int
    overrides: list[str]  # for normlab.config.load, without the init of its start


def cells(table: Table, scale: str, seeds: Sequence[int], extra: Sequence[str] = ()) -> list[Cell]:
    """Every cell of a table, row by row, with its overrides: the scale's, the table's, the column's, the row's, the
    cell's, `extra`.

    Where two set the same key the later one counts, and a group's file (model=NAME) also replaces what was set in the
    group before. Raises UserError on a scale the table does not have.
    """
    exceptions = {(e.row, e.column): e for e in table.exceptions}
    task = [] if table.task is None else [f"task={table.task}"]
    whole = table.scale(scale)
    found = []
    for (row, line), (column, other), seed in product(table.rows.items(), table.columns.items(), seeds):
        file = line.protocols.get(scale) or other.protocols.get(scale)
        protocol = whole if file is None else table.protocol(file)
        common = [*task, *protocol.overrides, *table.overrides]
        parts = [part for part in (other, line, exceptions.get((row, column))) if part is not None]
        own = [word for part in parts for word in (*part.overrides, *part.by_scale.get(scale, ()))]
        words = [*common, *own, f"seed={seed}", *extra]
        found.append(Cell(row, column, seed, _last_of_each_key(words)))
    return found


def pretraining(table: Table, scale: str, seeds: Sequence[int], extra: Sequence[str] = ()) -> list[Cell]:
    """The runs that cells begin from and that the table does not show, as cells of a row of their own."""
    if table.pretraining is None:
        return []
    first, file = table.pretraining, table.pretraining.scales[scale]
    if file is None:
        return []
    task = [] if first.task is None else [f"task={first.task}"]
    common = [*task, *table.protocol(file).overrides]
    return [
        Cell(PRETRAINING, name, seed, _last_of_each_key([*common, *own, *more, own_seed, *extra]))
        for name, own in first.runs.items()
        for more in [first.by_scale.get(name, {}).get(scale, [])]
        for seed in seeds
        for own_seed in [f"seed={0 if name in first.shared else seed}"]
    ]


def _last_of_each_key(words: Sequence[str]) -> list[str]:
    by_key: dict[str, str] = {}
    for word in words:
        key = word.partition("=")[0]
        by_key = {k: w for k, w in by_key.items() if not k.startswith(f"{key}.")}
        by_key[key] = word
    return list(by_key.values())


def checked(settings: type, node: Any, path: str) -> Any:
    """A dataclass of settings from a YAML node. Raises UserError on a key or value that it does not have."""
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={shown(node)}: expected settings with names")
    return settings(**schema.check(node, schema.parameters_of(settings), path))


def _labels(lines: Mapping[str, Line], differences: Mapping[str, Difference]) -> dict[str, str]:
    return {name: line.label for name, line in lines.items()} | {name: name for name in differences}
