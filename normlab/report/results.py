"""A table as it came out: each cell beside the paper's, each claim with its verdict. No torch here."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from normlab.report.records import Key, Measured, Record, measured, read_records, scores, table_folder
from normlab.report.table import Claim, Scale, Table, printed, printed_table
from normlab.report.verdicts import Evidence, Verdict, verdict
from normlab.schema import bind


@dataclass(frozen=True)
class Entry:
    """A cell of the report: a row or a difference of rows, at a column."""

    printed: float | None  # by the paper; None: a dash
    values: Sequence[float]  # of the runs that finished, by seed
    diverged: int
    missing: int

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Over seeds, of the sample (n - 1); None below two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Measured minus printed."""
        return None if self.mean is None or self.printed is None else self.mean - self.printed

    @property
    def runs(self) -> int:
        """Those there should be."""
        return len(self.values) + self.diverged + self.missing


@dataclass(frozen=True)
class Judged:
    """A claim, its verdict, and for each test the evidence and the paper's own effect (NaN: it prints none)."""

    claim: Claim
    verdict: Verdict
    evidence: Sequence[tuple[Evidence, float]]


@dataclass(frozen=True)
class Results:
    """All that a report shows."""

    table: Table
    scale_name: str
    scale: Scale
    records: Sequence[Record]
    entries: Mapping[tuple[str, str], Entry]  # by (row or label of a difference, column)
    judged: Mapping[str, Judged]

    @property
    def seeds(self) -> list[int]:
        return sorted({record["seed"] for record in self.records})

    @property
    def measured(self) -> Measured:
        return measured(self.records, self.table.metric, self.scale.guessing)

    @property
    def subject(self) -> str:
        """What was trained on what, by the records: digits_resnet on digits."""
        return ", ".join(sorted({f"{record['model']} on {record['data']}" for record in self.records}))

    @property
    def paper_subject(self) -> str:
        found = printed_table(self.table.paper[0])
        return f"{found['model']} on {found['dataset']}"

    @property
    def metric(self) -> str:
        """In the paper's words: top-1 accuracy in percent."""
        found = printed_table(self.table.paper[0])["metric"]
        return f"{found['name']} in {found['unit']}"


def load_results(table: Table, scale: str, results: Path) -> Results:
    """From the records of a table. Raises UserError if there are none."""
    return results_of(table, scale, read_records(table_folder(table, scale, results)))


def results_of(table: Table, scale: str, records: Sequence[Record]) -> Results:
    """What the records of a table add up to; the seeds that any of them has are those there should be."""
    settings, papers = table.scale(scale), printed(table)
    by_key = scores(records, table.metric)
    by_key |= _differences(table, by_key)
    seeds = sorted({record["seed"] for record in records})
    entries = {cell: _entry(cell, value, by_key, seeds) for cell, value in papers.items()}
    ours = measured(records, table.metric, settings.guessing)
    theirs = {"metric": {(*cell, 0): value for cell, value in papers.items() if value is not None}}
    judged = {name: _judge(claim, ours, theirs, settings.margin) for name, claim in table.claims.items()}
    return Results(table, scale, settings, records, entries, judged)


def _entry(
    cell: tuple[str, str], value: float | None, by_key: Mapping[Key, float | None], seeds: Sequence[int]
) -> Entry:
    found = [by_key[*cell, seed] for seed in seeds if (*cell, seed) in by_key]
    finished = [score for score in found if score is not None]
    return Entry(value, finished, diverged=len(found) - len(finished), missing=len(seeds) - len(found))


def _differences(table: Table, by_key: Mapping[Key, float | None]) -> dict[Key, float | None]:
    """Seed by seed, where both rows have a run; None where either diverged."""
    found: dict[Key, float | None] = {}
    for label, difference in table.differences.items():
        for (row, column, seed), score in by_key.items():
            if row == difference.of and (difference.minus, column, seed) in by_key:
                other = by_key[difference.minus, column, seed]
                found[label, column, seed] = None if score is None or other is None else score - other
    return found


def _judge(claim: Claim, ours: Measured, papers: Measured, margin: float) -> Judged:
    tests = [bind(test) for test in claim.tests]
    evidence = [(test(ours, margin), test(papers, margin).effect) for test in tests]
    return Judged(claim, verdict([found for found, _ in evidence]), evidence)
