"""The words of a table's results, in whatever form: of a cell, of a verdict, and the sentences around them."""

import math
from collections.abc import Callable, Iterator

from normlab.report.judging import ALPHA, POWER
from normlab.report.makers import cells_by_maker, shown
from normlab.report.metrics import guessed
from normlab.report.results import Entry, Judged, Results
from normlab.report.verdicts import Evidence

DASH, MINUS = "–", "−"
METHOD = (
    "Seeds are the sample: Welch's t-test, one-sided, for differences, Student's where both numbers are of one run "
    "(paired) and for slopes. The p of a claim is the largest of its tests'. It is adjusted for the number of claims "
    f"of the table (Holm), and a claim holds where the adjusted one is below {ALPHA:g}. It does not hold where a test "
    "is contradicted as surely, and is equal within the margin where two one-sided tests show that. Else it points the "
    "other way, or the seeds are not enough: those that it needs would show it with a chance of "
    f"{POWER:g}, if the effect and the spread are as seen."
)


def measured_text(entry: Entry, decimals: int) -> str:
    """98.9 ± 0.2 (1 of 3 missing); a dash where all runs diverged; missing where there is none."""
    if entry.missing == entry.runs:
        return "missing"
    text = DASH if entry.mean is None else number(entry.mean, decimals)
    if entry.std is not None:
        text += f" ± {entry.std:.{decimals}f}"
    counts = {"diverged": entry.diverged, "missing": entry.missing}
    notes = [f"{count} of {entry.runs} {what}" for what, count in counts.items() if 0 < count < entry.runs]
    return f"{text} ({', '.join(notes)})" if notes else text


def printed_text(entry: Entry, decimals: int) -> str:
    return DASH if entry.printed is None else number(entry.printed, decimals)


def difference_text(entry: Entry, decimals: int) -> str:
    return DASH if entry.difference is None else number(entry.difference, decimals, sign="+")


def evidence_text(evidence: Evidence, papers: float) -> str:
    """bn 8x32 − bn 8x2: 3.6, needs > 1 (p = 0.003, n = 3; paper 11.1)"""
    paper = "" if math.isnan(papers) else f"; paper {significant(papers)}"
    if math.isnan(evidence.effect):
        return f"{evidence.what}: missing{paper and f' ({paper[2:]})'}"
    p = "" if math.isnan(evidence.p) else f"p = {evidence.p:.2g}, " + "paired, " * evidence.is_paired
    threshold = significant(evidence.threshold)
    return f"{evidence.what}: {significant(evidence.effect)}, needs > {threshold} ({p}n = {evidence.seeds}{paper})"


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


def number(value: float, decimals: int, sign: str = "") -> str:
    """With a true minus, and none before a zero."""
    rounded = round(value, decimals) + 0.0  # no minus before a zero
    return f"{rounded:{sign}.{decimals}f}".replace("-", MINUS)


def significant(value: float) -> str:
    return f"{round(value, 5) + 0.0:.3g}".replace("-", MINUS)  # what is less is rounding, of equal accuracies


# ---- sentences -------------------------------------------------------------------------------------------------------


def guessing(results: Results) -> str:
    """In the metric that runs are known by: 10%."""
    name, info = next(iter(results.table.metrics.items()))
    return f"{guessed(name, results.scale.guessing, results.table.metrics):g}{info.unit}"


def heading(results: Results) -> str:
    return f"{results.table.title}, at {results.scale_name} scale" + ", changed" * bool(results.changed)


def subtitle(results: Results) -> str:
    metric = results.metric[0].upper() + results.metric[1:]
    changed = f", but with {' '.join(results.changed)}" if results.changed else ""
    return (
        f"Measured: {results.scale.title}{changed}. Paper: {results.paper_subject}. "
        f"{metric}, mean ± standard deviation over {_count(len(results.seeds), 'seed')}."
    )


def notes(results: Results) -> list[str]:
    table = results.table
    exceptions = [e.note for e in table.exceptions if e.overrides or e.by_scale.get(results.scale_name)]
    of_scale = [results.scale.note] if results.scale.note else []
    return [*of_scale, *dict.fromkeys(exceptions + table.notes), *results.disagreements]


def mixture(results: Results, escaped: Callable[[str], str] = str) -> list[str]:
    """What makes cells hard to compare, and what to do, as Markdown; nothing where one version made them all."""
    by_maker = cells_by_maker(results.made)
    if len(by_maker) < 2:
        return []
    lines = "\n".join(f"- {escaped(f'{name}: {shown(cells)}')}" for name, cells in by_maker.items())
    return [
        "These cells were not made by one version of the code from the same data, and a claim that needs cells of "
        f"several has no verdict. `normlab reproduce {results.table.name} scale={results.scale_name} --renew` makes "
        f"those of other versions again.\n\n{lines}",
    ]


def footer(results: Results) -> str:
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


def lines_of(results: Results) -> Iterator[tuple[str, str, list[str]]]:
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
