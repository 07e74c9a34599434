"""What the types of a table's settings cannot tell: names that lead nowhere, and lines that do not go together."""

from itertools import product
from typing import Any

from normlab.errors import UserError, unknown
from normlab.report.metrics import quantities_of
from normlab.report.table import PRETRAINING, Line, Table
from normlab.tasks.metrics import info_of


def check_names(table: Table) -> None:
    """Raise UserError where a cell, difference, source or test names what is not there, or a claim has no test."""
    tests = [test for claim in table.claims.values() for test in claim.tests]
    cells_named = [(e.row, e.column) for e in table.exceptions]
    cells_named += [tuple(test[key]) for test in tests for key in ("of", "than", "cell", "reference") if test.get(key)]
    cells_named += [tuple(cell) for test in tests for pair in test.get("pairs", ()) for cell in pair]
    rows = [row for row, _ in cells_named] + [name for d in table.differences.values() for name in (d.of, d.minus)]
    columns = [column for _, column in cells_named]
    columns += [name for d in table.column_differences.values() for name in (d.of, d.minus)]
    quantities = [test[key] for test in tests for key in ("quantity", "than_quantity") if test.get(key)]
    for test in tests:
        rows += [test["row"]] if "row" in test else []
        columns += test.get("columns", [])
    starts = [line.start for line in _lines(table) if line.start]
    rows += [start.row for start in starts if start.row]
    columns += [start.column for start in starts if start.column]
    first = table.pretraining
    for kind, names, valid in (
        ("row", rows, table.rows),
        ("column", columns, table.columns),
        ("row", [name for source in table.paper for name in source.rows], table.row_labels),
        ("column", [name for source in table.paper for name in source.columns], table.column_labels),
        ("quantity", quantities, quantities_of(table.metrics)),
        ("scale", [name for part in (*_lines(table), *table.exceptions) for name in part.by_scale], table.scales),
        ("scale", [name for claim in table.claims.values() for name in claim.scales], table.scales),
        ("scale", [name for line in _lines(table) for name in line.protocols], table.scales),
        ("pretraining", [start.run for start in starts if start.run], first.runs if first else {}),
        ("pretraining", [*first.by_scale, *first.shared] if first else [], first.runs if first else {}),
        ("scale", [scale for own in first.by_scale.values() for scale in own] if first else [], table.scales),
        ("pretraining's scale", list(table.scales) if first else [], first.scales if first else {}),
    ):
        for name in names:
            if name not in valid:
                raise unknown(f"{table.name}: {kind}", name, valid)
    if PRETRAINING in table.rows:
        raise UserError(
            f"{table.name}.rows.{PRETRAINING}: this names the runs that cells begin from; call it otherwise"
        )
    for metric in (*_of_lines(table, "metric"), *filter(None, [table.metric])):
        if info_of(metric, table.metrics) is None:
            raise unknown(f"{table.name}: metric", metric, table.metrics)
    for name, claim in table.claims.items():
        if not claim.tests:
            raise UserError(f"{table.name}.claims.{name}.tests=[]: expected a test; a claim without one always holds")


def check_lines(table: Table) -> None:
    """Raise UserError where a row and a column both say what to read off a run, or a start leads to itself."""
    for (row, line), (column, other) in product(table.rows.items(), table.columns.items()):
        for what in ("metric", "estimator"):
            if getattr(line, what) is not None and getattr(other, what) is not None:
                raise UserError(f"{table.name}: row '{row}' and column '{column}' both say which {what}; one may")
        seen = {(row, column)}
        while (start := table.start_of(row, column)) is not None:
            row, column, *_ = start
            if (row, column) in seen:
                raise UserError(
                    f"{table.name}: {row} {column} starts from itself; its start needs another row or column"
                )
            seen.add((row, column))


def _lines(table: Table) -> list[Line]:
    return [*table.rows.values(), *table.columns.values()]


def _of_lines(table: Table, what: str) -> list[Any]:
    return [value for line in _lines(table) if (value := getattr(line, what)) is not None]
