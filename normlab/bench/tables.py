"""Results of a benchmark as tables on a terminal, as Markdown, and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as TerminalTable

from normlab.bench.rounds import Spread
from normlab.console import PlainConsole
from normlab.writing import write_json

Row = dict[str, Any]


@dataclass
class Table:
    """Text, ready to be shown."""

    title: str
    header: list[str]
    lines: list[list[str]]


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".removesuffix(".") if abs(value) < 1000 else f"{value:.0f}"


def shown(value: Spread | float | str | None) -> str:
    """A spread as "0.53 (0.52-0.55)": median and quartiles."""
    if isinstance(value, Mapping):
        return f"{number(value['median'])} ({number(value['low'])}-{number(value['high'])})"
    if value is None:
        return "-"
    return value if isinstance(value, str) else number(value)


def plain(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> Table:
    """A line a row; columns: key of a row -> heading."""
    return Table(title, list(columns.values()), [[shown(row.get(key)) for key in columns] for row in rows])


def pivot(title: str, rows: Sequence[Row], index: Mapping[str, str], across: str, value: str) -> Table:
    """A line for each combination of the index's keys, a column for each value of `across`, in it the median.

    What is the same in all lines stands in the title instead.
    """
    rows = [row for row in rows if row.get(value) is not None]
    names = list(dict.fromkeys(row[across] for row in rows))
    varying = [key for key in index if len({row[key] for row in rows}) > 1] or list(index)[-1:]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        median = row[value]["median"] if isinstance(row[value], Mapping) else row[value]
        lines.setdefault(tuple(str(row[key]) for key in varying), {})[row[across]] = number(median)
    same = [str(rows[0][key]) for key in index if key not in varying] if rows else []
    texts = [[*key, *(line.get(name, "-") for name in names)] for key, line in lines.items()]
    return Table(", ".join([title, *same]), [*(index[key] for key in varying), *names], texts)


def markdown(table: Table) -> str:
    rule = ["---"] * len(table.header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (table.header, rule, *table.lines))


def show(result: Mapping[str, Any], tables: Sequence[Table], out: Path) -> None:
    """Print the tables and the machine, and write the result to `out`."""
    console = PlainConsole()
    wide = console.options.update(width=1000)
    for table in tables:
        terminal = TerminalTable(title=table.title, title_justify="left")
        for place, heading in enumerate(table.header):
            terminal.add_column(heading, justify="right" if place else "left")
        for line in table.lines:
            terminal.add_row(*line)
        console.width = max(console.width, console.measure(terminal, options=wide).maximum)
        console.print(terminal)
    console.print(about(result["machine"]), soft_wrap=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    console.print(f"written: {out}", soft_wrap=True)


def about(machine: Mapping[str, Any]) -> str:
    """The machine in a line or two."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    kernels = "; ".join(f"{device}: {what}" for device, what in machine["kernels"].items())
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; GPU: {machine['gpu']}"
    return f"{where}; {versions}\nkernels: {kernels}"


def load(path: Path) -> dict[str, Any]:
    """A result as `show` wrote it."""
    return json.loads(path.read_text(encoding="utf-8"))
