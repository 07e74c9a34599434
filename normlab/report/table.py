"""A paper's table as data: conf/table/NAME.yaml, the scales it is measured at (conf/scale), what the paper prints.

load_table("table2") -> Table                         checked; no torch here
cells(table, scale, seeds) -> [Cell, ...]             each with the words of its command line
printed(table) -> {("bn", "8x32"): 76.4, ...}         from results/paper; None: a dash
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from normlab import schema
from normlab.config import conf_dir
from normlab.errors import UserError, unknown
from normlab.reading import read_yaml


@dataclass
class Source:
    """A table of results/paper."""

    file: str
    table: str


@dataclass
class Line:
    """A row or a column: the paper's label for it, and what it sets in a run."""

    label: str
    overrides: list[str]


@dataclass
class ExceptionalCell:
    """What a cell sets beyond its row and column, and why."""

    row: str
    column: str
    overrides: list[str]
    note: str


@dataclass
class Difference:
    """A derived row: one row minus another. Its name is the paper's label."""

    of: str
    minus: str


@dataclass
class Claim:
    """What a paper says, as tests that must all hold: nodes with a `_target_` in normlab.report.verdicts."""

    statement: str
    source: str
    tests: list[Any]


@dataclass
class Scale:
    """How large a table is measured: the protocol of its runs."""

    title: str
    guessing: float
    margin: float
    overrides: list[str]


@dataclass
class Table:
    """conf/table/NAME.yaml; see conf/table/sn_table2.yaml for what the settings mean."""

    name: str  # of the file
    title: str
    aliases: list[str]
    paper: list[Any]  # Source
    metric: str
    decimals: int
    seeds: list[int]
    scales: dict[str, str]  # name -> file of conf/scale
    rows: dict[str, Any]  # name -> Line
    columns: dict[str, Any]  # name -> Line
    exceptions: list[Any]  # ExceptionalCell
    differences: dict[str, Any]  # the paper's label -> Difference
    claims: dict[str, Any]  # name -> Claim
    figures: dict[str, Any]  # file -> node with a _target_

    def scale(self, name: str) -> Scale:
        """Raises UserError on a scale the table does not have."""
        if name not in self.scales:
            raise unknown(f"{self.name}: scale", name, self.scales)
        return _checked(Scale, _read("scale", self.scales[name]), f"scale {name}")

    @property
    def default_scale(self) -> str:
        return next(iter(self.scales))


class Cell(NamedTuple):
    """One run of a table."""

    row: str
    column: str
    seed: int
    overrides: list[str]  # for normlab.config.load


def tables() -> dict[str, Path]:
    """Name and aliases of each table -> its file."""
    named = {file.stem: file for file in sorted((conf_dir() / "table").glob("*.yaml"))}
    aliases = {alias: file for file in named.values() for alias in read_yaml(file).get("aliases", ())}
    return named | aliases


def load_table(name: str) -> Table:
    """A table by its name or alias. Raises UserError, in one line, on an unknown name or a setting that cannot work."""
    known = tables()
    if name not in known:
        raise unknown("table", name, known)
    path = known[name].stem
    table = _checked(Table, read_yaml(known[name]) | {"name": path}, path)
    table.paper = [_checked(Source, node, f"{path}.paper.{i}") for i, node in enumerate(table.paper)]
    table.rows = _each(Line, table.rows, f"{path}.rows")
    table.columns = _each(Line, table.columns, f"{path}.columns")
    table.exceptions = [_checked(ExceptionalCell, e, f"{path}.exceptions.{i}") for i, e in enumerate(table.exceptions)]
    table.differences = _each(Difference, table.differences, f"{path}.differences")
    table.claims = _each(Claim, table.claims, f"{path}.claims")
    for key, claim in table.claims.items():
        claim.tests = [
            schema.check_target(test, f"{path}.claims.{key}.tests.{i}") for i, test in enumerate(claim.tests)
        ]
    table.figures = {key: schema.check_target(node, f"{path}.figures.{key}") for key, node in table.figures.items()}
    _check_names(table)
    return table


def cells(table: Table, scale: str, seeds: Sequence[int], extra: Sequence[str] = ()) -> list[Cell]:
    """Every run of a table, row by row, with its overrides: the scale's, the column's, the row's, the cell's, `extra`.

    Where two set the same key the later one counts. Raises UserError on a scale the table does not have.
    """
    exceptions = {(e.row, e.column): e.overrides for e in table.exceptions}
    common = table.scale(scale).overrides
    found = []
    for (row, line), (column, other), seed in product(table.rows.items(), table.columns.items(), seeds):
        own = exceptions.get((row, column), [])
        words = [*common, *other.overrides, *line.overrides, *own, f"seed={seed}", *extra]
        by_key = {word.partition("=")[0]: word for word in words}
        found.append(Cell(row, column, seed, list(by_key.values())))
    return found


# ---- what the papers print -------------------------------------------------------------------------------------------


def paper_dir() -> Path:
    """The papers' printed numbers: results/paper of the repository, or of the installed package."""
    here = Path(__file__).resolve().parents[1]
    return next(folder for folder in (here / "paper", here.parent / "results" / "paper") if folder.is_dir())


def printed_table(source: Source) -> Mapping[str, Any]:
    """A table of results/paper: title, dataset, model, metric, columns, rows. Raises UserError if there is none."""
    files = {file.stem: file for file in paper_dir().glob("*.yaml")}
    if source.file not in files:
        raise unknown("results/paper:", source.file, files)
    by_id = _tables_of(files[source.file])
    if source.table not in by_id:
        raise unknown(f"{source.file}: table", source.table, by_id)
    return by_id[source.table]


@cache
def _tables_of(paper: Path) -> dict[str, Mapping[str, Any]]:
    return {str(table["id"]): table for table in read_yaml(paper)["tables"]}


def printed(table: Table) -> dict[tuple[str, str], float | None]:
    """What the papers print: by (row, column), and by (label of a difference, column). None: a dash.

    Raises UserError where a reference leads nowhere, or where the papers disagree.
    """
    labels = {row: line.label for row, line in table.rows.items()} | {name: name for name in table.differences}
    values: dict[tuple[str, str], float | None] = {}
    for source in table.paper:
        found = printed_table(source)
        rows = {str(row["label"]): row["values"] for row in found["rows"]}
        positions = {str(label): i for i, label in enumerate(found["columns"])}
        for (row, label), (column, line) in product(labels.items(), table.columns.items()):
            for kind, name, valid in (("row", label, rows), ("column", line.label, positions)):
                if name not in valid:
                    raise unknown(f"{source.file} {source.table}: {kind}", name, valid)
            value = rows[label][positions[line.label]]
            if values.setdefault((row, column), value) != value:
                raise UserError(
                    f"{table.name}: {source.file} prints {value} at {label} {line.label}, another paper not"
                )
    return values


# ---- reading and checking --------------------------------------------------------------------------------------------


def _read(group: str, name: str) -> Any:
    files = {file.stem: file for file in (conf_dir() / group).glob("*.yaml")}
    if name not in files:
        raise unknown(group, name, files)
    return read_yaml(files[name])


def _checked(settings: type, node: Any, path: str) -> Any:
    """A dataclass of settings from a YAML node. Raises UserError on a key or value that it does not have."""
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={schema.shown(node)}: expected settings with names")
    return settings(**schema.check(node, schema.parameters_of(settings), path))


def _each(settings: type, nodes: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {key: _checked(settings, node, f"{path}.{key}") for key, node in nodes.items()}


def _check_names(table: Table) -> None:
    """Raise UserError where a cell, a difference or a test names a row or column the table does not have."""
    tests = [test for claim in table.claims.values() for test in claim.tests]
    cells_named = [(e.row, e.column) for e in table.exceptions]
    cells_named += [tuple(test[key]) for test in tests for key in ("of", "than") if key in test]
    rows = [row for row, _ in cells_named] + [name for d in table.differences.values() for name in (d.of, d.minus)]
    columns = [column for _, column in cells_named]
    for test in tests:
        rows += [test["row"]] if "row" in test else []
        columns += test.get("columns", [])
    for kind, names, valid in (("row", rows, table.rows), ("column", columns, table.columns)):
        for name in names:
            if name not in valid:
                raise unknown(f"{table.name}: {kind}", name, valid)
