"""A table as it came out: each cell beside the paper's, each claim with its verdict. No torch here."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from normlab.errors import UserError
from normlab.report.makers import are_mixed, makers
from normlab.report.printed import metric_words, printed, subject
from normlab.report.quantities import Measured, measured
from normlab.report.records import Key, Record, recorded, scores, table_folder
from normlab.report.table import Claim, Difference, Scale, Table
from normlab.report.verdicts import Evidence, Verdict, verdict
from normlab.schema import bind


@dataclass(frozen=True)
class Entry:
    """A cell of the report: a row or a difference of rows, at a column or a difference of columns."""

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
    verdict: Verdict | None  # None: this scale cannot test it
    evidence: Sequence[tuple[Evidence, float]]


@dataclass(frozen=True)
class Results:
    """All that a report shows."""

    table: Table
    scale_name: str
    scale: Scale
    records: Sequence[Record]
    entries: Mapping[tuple[str, str], Entry]  # by (row, column), or the labels of differences
    judged: Mapping[str, Judged]
    disagreements: Sequence[str]  # where the papers print different numbers
    made: Mapping[Key, str]  # by which version each cell and seed was made (makers.py)
    measured: Measured

    @property
    def seeds(self) -> list[int]:
        return sorted({record["seed"] for record in self.records})

    @property
    def changed(self) -> list[str]:
        """What was set beyond the table and its scale: [epochs=1]. Then the scale is not what was measured."""
        return sorted({word for record in self.records for word in record.get("changed", ())})

    @property
    def subject(self) -> str:
        """What was trained on what, by the records: digits_resnet on digits."""
        return ", ".join(sorted({f"{record['model']} on {record['data']}" for record in self.records}))

    @property
    def paper_subject(self) -> str:
        return subject(self.table)

    @property
    def metric(self) -> str:
        """In words: top-1 accuracy in percent."""
        return metric_words(self.table)

    def is_printed(self, row: str) -> bool:
        """Whether the papers have a number in a row."""
        return any(self.entries[row, column].printed is not None for column in self.table.column_labels)


def load_results(table: Table, scale: str, results: Path) -> Results:
    """From the records of a table. Raises UserError if there are none."""
    folder = table_folder(table, scale, results)
    records = recorded(table, folder)
    if not records:
        raise UserError(f"{folder}/records.jsonl: there are no records; `normlab reproduce TABLE` makes them")
    return results_of(table, scale, records)


def results_of(table: Table, scale: str, records: Sequence[Record]) -> Results:
    """What the records of a table add up to; the seeds that any of them has are those there should be."""
    settings, papers = table.scale(scale), printed(table)
    by_key = scores(records, table)
    by_key |= _differences(table.differences, by_key, 0)
    by_key |= _differences(table.column_differences, by_key, 1)
    seeds = sorted({record["seed"] for record in records})
    entries = {cell: _entry(cell, value, by_key, seeds) for cell, value in papers.values.items()}
    ours = measured(records, table, settings.guessing)
    theirs = Measured({"metric": {(*cell, 0): value for cell, value in papers.values.items() if value is not None}})
    made = makers(records)
    judged = {
        name: _judge(claim, ours, theirs, settings.margin, made)
        if scale in (claim.scales or table.scales)
        else Judged(claim, None, [])
        for name, claim in table.claims.items()
    }
    return Results(table, scale, settings, records, entries, judged, papers.disagreements, made, ours)


def _entry(
    cell: tuple[str, str], value: float | None, by_key: Mapping[Key, float | None], seeds: Sequence[int]
) -> Entry:
    found = [by_key[*cell, seed] for seed in seeds if (*cell, seed) in by_key]
    finished = [score for score in found if score is not None]
    return Entry(value, finished, diverged=len(found) - len(finished), missing=len(seeds) - len(found))


def _differences(
    differences: Mapping[str, Difference], by_key: Mapping[Key, float | None], axis: int
) -> dict[Key, float | None]:
    """Of rows (axis 0) or columns (1), seed by seed, where both have a run; None where either diverged."""
    found: dict[Key, float | None] = {}
    for label, difference in differences.items():
        for key, score in by_key.items():
            other_key, own_key = _replaced(key, axis, difference.minus), _replaced(key, axis, label)
            if key[axis] == difference.of and other_key in by_key:
                other = by_key[other_key]
                found[own_key] = None if score is None or other is None else score - other
    return found


def _replaced(key: Key, axis: int, name: str) -> Key:
    row, column, seed = key
    return (name, column, seed) if axis == 0 else (row, name, seed)


def _judge(claim: Claim, ours: Measured, papers: Measured, margin: float, made: Mapping[Key, str]) -> Judged:
    tests, own = [bind(test) for test in claim.tests], replace(ours, asked=set())
    evidence = [(test(own, margin), test(papers, margin).effect) for test in tests]
    mixed = are_mixed(made, own.asked)
    return Judged(claim, "mixed versions" if mixed else verdict([found for found, _ in evidence]), evidence)
