"""Results as Markdown, CSV, LaTeX and on the terminal, with their figures."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from normlab.console import PlainConsole
from normlab.figures.style import save
from normlab.report.deviations import concerning, page_from
from normlab.report.latex import latex
from normlab.report.markup import in_markdown
from normlab.report.records import table_folder
from normlab.report.results import Judged, Results, load_results
from normlab.report.table import Table
from normlab.report.wording import (
    METHOD,
    difference_text,
    evidence_text,
    footer,
    guessing,
    heading,
    lines_of,
    measured_text,
    mixture,
    notes,
    printed_text,
    reasons_text,
    subtitle,
    verdict_text,
)
from normlab.schema import bind
from normlab.writing import write_text

_CSV_COLUMNS = (
    *("scale", "row", "column", "paper", "mean", "std", "difference"),
    *("finished", "diverged", "missing", "values"),
)
_TERMINAL, _ROW_WIDTH = 80, 25  # characters: of a terminal, and of a row's three numbers on it
_STYLES = {"holds": "green", "does not hold": "red"}


def report(table: Table, scale: str, results: Path, console: Console | None = None) -> list[Path]:
    """Make report.md, report.csv, report.tex and the figures from a table's records, and show them on the terminal.

    Returns what was written. Raises UserError if there are no records.
    """
    found = load_results(table, scale, results)
    folder = table_folder(table, scale, results)
    written = []
    for name, node in table.figures.items():
        written.append(folder / f"{name}.png")
        save(bind(node)(found), written[-1])
    for name, text in (
        ("md", markdown(found, page_from(folder))),
        ("csv", comma_separated(found)),
        ("tex", latex(found)),
    ):
        written.append(folder / f"report.{name}")
        write_text(written[-1], text)
    print_results(found, console or PlainConsole())
    return written


# ---- forms -----------------------------------------------------------------------------------------------------------


def markdown(results: Results, ledger: str | None = None) -> str:
    """The table, the verdicts with the numbers behind them, and the figures.

    `ledger` is a link to docs/deviations.md, whose entries it links; None: there is none, and topics are named.
    """
    header = ["", "", *map(in_markdown, results.table.column_labels)]
    rows = [
        [f"**{in_markdown(label)}**" if label else "", in_markdown(whose), *map(in_markdown, values)]
        for label, whose, values in lines_of(results)
    ]
    claims = [
        [
            in_markdown(judged.claim.statement),
            f"**{in_markdown(verdict_text(judged))}**" + "".join(f"<br>{r}" for r in [reasons_text(judged)] if r),
            "<br>".join(in_markdown(evidence_text(*e)) for e in judged.evidence),
        ]
        for judged in results.judged.values()
    ]
    parts = [
        f"# {in_markdown(heading(results))}",
        in_markdown(subtitle(results)),
        _markdown_table(header, rows),
        *notes(results),
        *mixture(results, in_markdown),
        "## Claims",
        _markdown_table(["claim", "verdict", "evidence"], claims),
        f"{METHOD} Margins are counted in {results.scale.margin:g} points here; a diverged run counts as guessing, "
        f"{guessing(results)}.",
        *(f"![{name}]({name}.png)" for name in results.table.figures),
        *_where_papers_differ(results.table, ledger),
        in_markdown(footer(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _where_papers_differ(table: Table, ledger: str | None) -> list[str]:
    """The topics alone: the ledger says what is written where."""
    topics = [
        in_markdown(d.topic) if ledger is None else f"[{in_markdown(d.topic)}]({ledger}#{d.anchor})"
        for d in concerning(table)
    ]
    where = "" if ledger else " (docs/deviations.md)"
    return [f"Where papers and code differ{where}: {', '.join(topics)}."] if topics else []


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comma_separated(results: Results) -> str:
    """A line per cell, with every seed's value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for (row, column), entry in results.entries.items():
        numbers = [entry.printed, entry.mean, entry.std, entry.difference]
        shown = ["" if number is None else f"{number:.6g}" for number in numbers]
        counts = [len(entry.values), entry.diverged, entry.missing]
        values = " ".join(f"{value:.6g}" for value in entry.values)
        writer.writerow([results.scale_name, row, column, *shown, *counts, values])
    return file.getvalue()


def print_results(results: Results, console: Console) -> None:
    """Settings down and rows across, a few at a time, so that it fits a terminal; then the verdicts."""
    table = results.table
    console.print(f"\n{heading(results)}", style="bold", highlight=False, markup=False)
    console.print(subtitle(results), highlight=False, markup=False)
    across = max(1, (_TERMINAL - max(map(len, table.column_labels))) // _ROW_WIDTH)
    for names in (list(table.rows), list(table.differences)):
        for first in range(0, len(names), across):
            console.print(_terminal_table(results, names[first : first + across]))
    for note in [*notes(results), *mixture(results)]:
        console.print(note, highlight=False, markup=False)
    for judged in results.judged.values():
        _print_judged(judged, console)
    console.print(footer(results), style="dim", highlight=False, markup=False)


def _terminal_table(results: Results, names: Sequence[str]) -> RichTable:
    labels, decimals = results.table.row_labels, results.table.decimals
    shown = RichTable(box=None, padding=(0, 1))
    shown.add_column(no_wrap=True)
    for name in names:
        if results.is_printed(name):
            shown.add_column(f"{labels[name]}\npaper", justify="right", style="dim")
            shown.add_column("\nmeasured", justify="right", style="bold")
            shown.add_column("\ndiff.", justify="right")
        else:
            shown.add_column(f"{labels[name]}\nmeasured", justify="right", style="bold")
    for column in results.table.column_labels:
        texts = []
        for name in names:
            wanted = (printed_text, measured_text, difference_text) if results.is_printed(name) else (measured_text,)
            texts += [text(results.entries[name, column], decimals) for text in wanted]
        texts = [text.replace(" ± ", "±") for text in texts]  # fits 80 columns
        shown.add_row(column, *texts)
    return shown


def _print_judged(judged: Judged, console: Console) -> None:
    text, reasons = verdict_text(judged), reasons_text(judged)
    shown = f"{text}: {judged.claim.statement}" + f" ({reasons})" * bool(reasons)
    console.print(shown, style=_STYLES.get(text, "yellow"), highlight=False, markup=False)
    for evidence in judged.evidence:
        console.print(f"    {evidence_text(*evidence)}", style="dim", highlight=False, markup=False)
