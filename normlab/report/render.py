"""Results as Markdown, CSV, LaTeX and on the terminal, with their figures."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from normlab.console import PlainConsole
from normlab.figures.style import save
from normlab.report.deviations import deviations
from normlab.report.judging import ALPHA, POWER
from normlab.report.makers import cells_by_maker, shown
from normlab.report.markup import in_latex, in_markdown
from normlab.report.metrics import guessed
from normlab.report.records import table_folder
from normlab.report.results import Entry, Judged, Results, load_results
from normlab.report.table import Table
from normlab.report.verdicts import Evidence
from normlab.schema import bind
from normlab.writing import write_text

DASH, MINUS = "–", "−"
_CSV_COLUMNS = (
    *("scale", "row", "column", "paper", "mean", "std", "difference"),
    *("finished", "diverged", "missing", "values"),
)
_TERMINAL, _ROW_WIDTH = 80, 25  # characters: of a terminal, and of a row's three numbers on it
METHOD = (
    "Seeds are the sample: Welch's t-test, one-sided, for differences, Student's where both numbers are of one run "
    "(paired) and for slopes. The p of a claim is the largest of its tests'. It is adjusted for the number of claims "
    f"of the table (Holm), and a claim holds where the adjusted one is below {ALPHA:g}. It does not hold where a test "
    "is contradicted as surely, and is equal within the margin where two one-sided tests show that. Else it points the "
    "other way, or the seeds are not enough: those that it needs would show it with a chance of "
    f"{POWER:g}, if the effect and the spread are as seen."
)
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
    for name, text in (("md", markdown(found)), ("csv", comma_separated(found)), ("tex", latex(found))):
        written.append(folder / f"report.{name}")
        write_text(written[-1], text)
    print_results(found, console or PlainConsole())
    return written


# ---- the words of a cell ---------------------------------------------------------------------------------------------


def measured_text(entry: Entry, decimals: int) -> str:
    """98.9 ± 0.2 (1 of 3 missing); a dash where all runs diverged; missing where there is none."""
    if entry.missing == entry.runs:
        return "missing"
    text = DASH if entry.mean is None else _number(entry.mean, decimals)
    if entry.std is not None:
        text += f" ± {entry.std:.{decimals}f}"
    counts = {"diverged": entry.diverged, "missing": entry.missing}
    notes = [f"{count} of {entry.runs} {what}" for what, count in counts.items() if 0 < count < entry.runs]
    return f"{text} ({', '.join(notes)})" if notes else text


def printed_text(entry: Entry, decimals: int) -> str:
    return DASH if entry.printed is None else _number(entry.printed, decimals)


def difference_text(entry: Entry, decimals: int) -> str:
    return DASH if entry.difference is None else _number(entry.difference, decimals, sign="+")


def evidence_text(evidence: Evidence, papers: float) -> str:
    """bn 8x32 − bn 8x2: 3.6, needs > 1 (p = 0.003, n = 3; paper 11.1)"""
    paper = "" if math.isnan(papers) else f"; paper {_significant(papers)}"
    if math.isnan(evidence.effect):
        return f"{evidence.what}: missing{paper and f' ({paper[2:]})'}"
    p = "" if math.isnan(evidence.p) else f"p = {evidence.p:.2g}, " + "paired, " * evidence.is_paired
    threshold = _significant(evidence.threshold)
    return f"{evidence.what}: {_significant(evidence.effect)}, needs > {threshold} ({p}n = {evidence.seeds}{paper})"


def verdict_text(judged: Judged) -> str:
    return judged.verdict or f"needs the scale {' or '.join(judged.claim.scales)}"


def reasons_text(judged: Judged) -> str:
    """p = 0.012, adjusted 0.048; needs about 7 seeds. What there is of it."""
    parts = []
    if not math.isnan(judged.p):
        parts.append(f"p = {judged.p:.2g}, adjusted {judged.adjusted:.2g}")
    if judged.verdict == "not enough seeds" and math.isfinite(judged.needs):
        parts.append(f"needs about {judged.needs:.0f} seeds")
    if judged.verdict == "stated later":
        parts.append(f"stated {str(judged.claim.since)[:10]}, after runs that it is about")
    return "; ".join(parts)


def _number(value: float, decimals: int, sign: str = "") -> str:
    rounded = round(value, decimals) + 0.0  # no minus before a zero
    return f"{rounded:{sign}.{decimals}f}".replace("-", MINUS)


def _significant(value: float) -> str:
    return f"{round(value, 5) + 0.0:.3g}".replace("-", MINUS)  # what is less is rounding, of equal accuracies


# ---- what all forms say ----------------------------------------------------------------------------------------------


def _guessing(results: Results) -> str:
    """In the metric that runs are known by: 10%."""
    name, info = next(iter(results.table.metrics.items()))
    return f"{guessed(name, results.scale.guessing, results.table.metrics):g}{info.unit}"


def _heading(results: Results) -> str:
    return f"{results.table.title}, at {results.scale_name} scale" + ", changed" * bool(results.changed)


def _subtitle(results: Results) -> str:
    metric = results.metric[0].upper() + results.metric[1:]
    changed = f", but with {' '.join(results.changed)}" if results.changed else ""
    return (
        f"Measured: {results.scale.title}{changed}. Paper: {results.paper_subject}. "
        f"{metric}, mean ± standard deviation over {_count(len(results.seeds), 'seed')}."
    )


def _notes(results: Results) -> list[str]:
    table = results.table
    exceptions = [e.note for e in table.exceptions if e.overrides or e.by_scale.get(results.scale_name)]
    of_scale = [results.scale.note] if results.scale.note else []
    return [*of_scale, *dict.fromkeys(exceptions + table.notes), *results.disagreements]


def _mixture(results: Results, escaped: Callable[[str], str]) -> list[str]:
    """What makes cells hard to compare, and what to do; nothing where one version made them all."""
    by_maker = cells_by_maker(results.made)
    if len(by_maker) < 2:
        return []
    lines = "\n".join(f"- {escaped(f'{name}: {shown(cells)}')}" for name, cells in by_maker.items())
    return [
        "These cells were not made by one version of the code from the same data, and a claim that needs cells of "
        f"several has no verdict. `normlab reproduce {results.table.name} scale={results.scale_name} --renew` makes "
        f"those of other versions again.\n\n{lines}",
    ]


def _footer(results: Results) -> str:
    records = list({record["id"]: record for record in results.records}.values())  # cells may share a run
    versions = {f"{package} {v}" for r in records for package, v in r["versions"].items() if v is not None}
    days = sorted(record["finished"][:10] for record in records)
    commits = sorted({record["commit"] or "unknown" for record in records})
    papers = ", ".join(f"{source.file} {source.table or source.claim}" for source in results.table.paper)
    return (
        f"{_count(len(records), 'run')} of {results.subject}, {sum(r['seconds'] for r in records):,.0f} s in all, "
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}, on {', '.join(sorted({r['device'] for r in records}))}; "
        f"commit {', '.join(commits)}; {', '.join(sorted(versions))}"
        + (f"; printed values: {papers} in results/paper." if papers else ".")
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _lines(results: Results) -> Iterator[tuple[str, str, list[str]]]:
    """A row's label (on its first line), whose numbers, and these along the columns.

    Three lines for each row and each difference; one where the papers print nothing.
    """
    decimals = results.table.decimals
    data = "/".join(sorted({record["data"] for record in results.records}))
    texts = {"paper": printed_text, data: measured_text, "difference": difference_text}
    for row, label in results.table.row_labels.items():
        for whose, text in texts.items():
            if whose == data or results.is_printed(row):
                entries = [results.entries[row, column] for column in results.table.column_labels]
                yield label, whose, [text(entry, decimals) for entry in entries]
                label = ""


# ---- forms -----------------------------------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """The table, the verdicts with the numbers behind them, and the figures."""
    header = ["", "", *map(in_markdown, results.table.column_labels)]
    rows = [
        [f"**{in_markdown(label)}**" if label else "", in_markdown(whose), *map(in_markdown, values)]
        for label, whose, values in _lines(results)
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
        f"# {in_markdown(_heading(results))}",
        in_markdown(_subtitle(results)),
        _markdown_table(header, rows),
        *_notes(results),
        *_mixture(results, in_markdown),
        "## Claims",
        _markdown_table(["claim", "verdict", "evidence"], claims),
        f"{METHOD} Margins are counted in {results.scale.margin:g} points here; a diverged run counts as guessing, "
        f"{_guessing(results)}.",
        *(f"![{name}]({name}.png)" for name in results.table.figures),
        *_where_papers_differ(results),
        in_markdown(_footer(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _where_papers_differ(results: Results) -> list[str]:
    lines = deviations(results.table)
    return ["## Where papers and code differ", "\n".join(f"- {line}" for line in lines)] if lines else []


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


def latex(results: Results) -> str:
    """A table environment; it needs the package booktabs."""
    columns = list(results.table.column_labels)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        f"\\caption{{{in_latex(' '.join([_heading(results) + '.', _subtitle(results), *_notes(results)]))}}}",
        f"\\begin{{tabular}}{{ll{'r' * len(columns)}}}",
        "\\toprule",
        f"& & {' & '.join(map(in_latex, columns))} \\\\",
    ]
    for label, whose, values in _lines(results):
        lines += ["\\midrule"] * bool(label)
        cells = [label, whose, *values]
        lines.append(f"{' & '.join(map(in_latex, cells))} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def print_results(results: Results, console: Console) -> None:
    """Settings down and rows across, a few at a time, so that it fits a terminal; then the verdicts."""
    table = results.table
    console.print(f"\n{_heading(results)}", style="bold", highlight=False, markup=False)
    console.print(_subtitle(results), highlight=False, markup=False)
    across = max(1, (_TERMINAL - max(map(len, table.column_labels))) // _ROW_WIDTH)
    for names in (list(table.rows), list(table.differences)):
        for first in range(0, len(names), across):
            console.print(_terminal_table(results, names[first : first + across]))
    for note in [*_notes(results), *_mixture(results, str)]:
        console.print(note, highlight=False, markup=False)
    for judged in results.judged.values():
        _print_judged(judged, console)
    console.print(_footer(results), style="dim", highlight=False, markup=False)


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
