"""What the papers print (results/paper), cell by cell of a table of ours.

printed(table) -> {("bn", "8x32"): 76.4, ...}         None: a dash, or nothing
"""

from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from normlab.errors import UserError, unknown
from normlab.reading import read_yaml
from normlab.report.table import SAME_LABEL, Difference, Line, Source, Table
from normlab.tasks.metrics import info_of

Numbers = dict[tuple[str, str], float | None]  # (row or difference, column or difference) -> printed


class Printed(NamedTuple):
    """The numbers that count, and where papers print others."""

    values: Numbers
    disagreements: list[str]


def paper_dir() -> Path:
    """The papers' printed numbers: results/paper of the repository, or of the installed package."""
    here = Path(__file__).resolve().parents[1]
    return next(folder for folder in (here / "paper", here.parent / "results" / "paper") if folder.is_dir())


@cache
def papers() -> dict[str, Mapping[str, Any]]:
    """Every file of results/paper by its name."""
    return {file.stem: read_yaml(file) for file in sorted(paper_dir().glob("*.yaml"))}


def paper_claims() -> dict[str, Mapping[str, Any]]:
    """Every claim of the papers, by file.id: its statement, section, values and the test it asks for."""
    return {f"{file}.{claim['id']}": claim for file, paper in papers().items() for claim in paper["claims"]}


def printed(table: Table) -> Printed:
    """What the papers print of each cell and each difference; of several sources the first that has a number counts.

    Raises UserError where a reference leads nowhere.
    """
    values: Numbers = dict.fromkeys(product(table.row_labels, table.column_labels))
    whose: dict[tuple[str, str], str] = {}
    disagreements = []
    for source in table.paper:
        name = f"{source.file} {source.table or source.claim}"
        for cell, value in _of_source(table, source).items():
            if value is None:
                continue
            if values[cell] is None:
                values[cell], whose[cell] = value, name
            elif values[cell] != value:
                row, column = table.row_labels[cell[0]], table.column_labels[cell[1]]
                disagreements.append(f"{name} prints {value:g} at {row}, {column}; {whose[cell]} {values[cell]:g}.")
    return Printed(values, disagreements)


def subject(table: Table) -> str:
    """The paper's model and data, in its words."""
    if table.subject is not None or not table.paper:
        return table.subject or "no numbers"
    found = _printed_table(table.paper[0])
    return f"{found['model']} on {found['dataset']}"


def metric_words(table: Table) -> str:
    """What the numbers are: top-1 accuracy in percent."""
    shown = {table.metric_of(row, column): None for row, column in product(table.rows, table.columns)}
    known = (info_of(metric, table.metrics) for metric in shown)
    return " or ".join(dict.fromkeys(info.in_words for info in known if info is not None))


def _of_source(table: Table, source: Source) -> Numbers:
    labels, columns, rows = _grid(source)
    ours_down = _printed_labels(table.rows | table.differences, source.rows)
    ours_across = _printed_labels(table.columns | table.column_differences, source.columns)
    if source.transpose:
        ours_down, ours_across = ours_across, ours_down
    name = f"{source.file} {source.table or source.claim}"
    found: Numbers = {}
    for (down, row), (across, column) in product(ours_down.items(), ours_across.items()):
        for kind, label, valid in (("row", row, labels), ("column", column, columns)):
            if label not in valid:
                raise unknown(f"{name}: {kind}", label, valid)
        cell = (across, down) if source.transpose else (down, across)
        found[cell] = rows[labels.index(row)][columns.index(column)]
    return found


def _printed_labels(lines: Mapping[str, Line | Difference], only: list[str]) -> dict[str, str]:
    """The paper's label of each of our rows or columns that it has."""
    labels = {}
    for name, line in lines.items():
        if line.printed is not None and (not only or name in only):
            own = line.label if isinstance(line, Line) else name
            labels[name] = own if line.printed == SAME_LABEL else line.printed
    return labels


def _grid(source: Source) -> tuple[list[str], list[str], list[list[float | None]]]:
    """The labels down, those across, and the numbers. Raises UserError where there is no such table or claim."""
    if (source.table is None) == (source.claim is None):
        raise UserError(f"paper {source.file}: expected a table or a claim, and not both")
    if source.table is not None:
        found = _printed_table(source)
        rows = found["rows"]
        return [str(row["label"]) for row in rows], list(map(str, found["columns"])), [row["values"] for row in rows]
    if source.file not in papers():
        raise unknown("results/paper:", source.file, papers())
    claims = {claim["id"]: claim for claim in papers()[source.file]["claims"]}
    if source.claim not in claims:
        raise unknown(f"{source.file}: claim", str(source.claim), claims)
    numbers = {str(label): value for label, value in claims[source.claim].get("values", {}).items()}
    listed = {label: value if isinstance(value, list) else [value] for label, value in numbers.items()}
    whole = {label: value for label, value in listed.items() if len(value) == len(source.values)}
    return list(whole), source.values, list(whole.values())


def _printed_table(source: Source) -> Mapping[str, Any]:
    """A table of results/paper: title, dataset, model, metric, columns, rows. Raises UserError if there is none."""
    if source.file not in papers():
        raise unknown("results/paper:", source.file, papers())
    by_id = {str(table["id"]): table for table in papers()[source.file]["tables"]}
    if source.table not in by_id:
        raise unknown(f"{source.file}: table", str(source.table), by_id)
    return by_id[source.table]
