"""The tables of conf/table, read and checked. No torch here.

load_table("table2") -> Table
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from normlab import schema
from normlab.config import BatchAverage, files_of
from normlab.errors import UserError, unknown
from normlab.reading import naming, read_mapping
from normlab.report.table import (
    Claim,
    Difference,
    ExceptionalCell,
    Line,
    Pretraining,
    Source,
    Start,
    Table,
    checked,
)
from normlab.report.table_checks import check_lines, check_names
from normlab.values import coerce


def tables() -> dict[str, Path]:
    """Name and aliases of each table -> its file."""
    named = files_of("table")
    return named | {alias: file for file in named.values() for alias in _aliases(file)}


def _aliases(file: Path) -> list[str]:
    with naming(file):
        return coerce(read_mapping(file).get("aliases", []), list[str], "aliases")


def load_table(name: str) -> Table:
    """A table by its name or alias. Raises UserError, in one line, on an unknown name or a setting that cannot work."""
    known = tables()
    if name not in known:
        raise unknown("table", name, known)
    return _load(known[name])


def all_tables() -> list[Table]:
    """Every table, by the names of their files."""
    return [_load(file) for file in files_of("table").values()]


def tables_at(scale: str) -> list[Table]:
    """All tables that have a scale. Raises UserError if none does."""
    known = all_tables()
    found = [table for table in known if scale in table.scales]
    if not found:
        raise unknown("scale", scale, {name for table in known for name in table.scales})
    return found


def _load(file: Path) -> Table:
    with naming(file):
        return _checked_table(file.stem, read_mapping(file))


def _checked_table(path: str, node: dict[str, Any]) -> Table:
    table = checked(Table, node | {"name": path}, path)
    table.paper = [checked(Source, node, f"{path}.paper.{i}") for i, node in enumerate(table.paper)]
    table.rows = {key: _line(node, f"{path}.rows.{key}") for key, node in table.rows.items()}
    table.columns = {key: _line(node, f"{path}.columns.{key}") for key, node in table.columns.items()}
    table.exceptions = [checked(ExceptionalCell, e, f"{path}.exceptions.{i}") for i, e in enumerate(table.exceptions)]
    if table.pretraining is not None:
        table.pretraining = checked(Pretraining, table.pretraining, f"{path}.pretraining")
    table.differences = _each(Difference, table.differences, f"{path}.differences")
    table.column_differences = _each(Difference, table.column_differences, f"{path}.column_differences")
    table.claims = _each(Claim, table.claims, f"{path}.claims")
    for key, claim in table.claims.items():
        claim.tests = [
            schema.check_target(test, f"{path}.claims.{key}.tests.{i}") for i, test in enumerate(claim.tests)
        ]
    table.figures = {key: schema.check_target(node, f"{path}.figures.{key}") for key, node in table.figures.items()}
    check_names(table)
    check_lines(table)
    return table


def _each(settings: type, nodes: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {key: checked(settings, node, f"{path}.{key}") for key, node in nodes.items()}


def _line(node: Any, path: str) -> Line:
    line = checked(Line, node, path)
    if line.start is not None:
        line.start = checked(Start, line.start, f"{path}.start")
        if line.start.at is not None and not 0 < line.start.at <= 1:
            raise UserError(f"{path}.start.at={line.start.at:g}: expected a share above 0, up to 1")
    if isinstance(line.estimator, Mapping):
        line.estimator = checked(BatchAverage, line.estimator, f"{path}.estimator")
        _ = line.estimator.num_samples
    elif line.estimator is not None:
        coerce(line.estimator, Literal["moving_average", "batch_average"], f"{path}.estimator")
    return line
