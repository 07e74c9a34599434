"""A table as it came out: each cell beside the paper's, each claim with its verdict. No torch here."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from normlab.errors import UserError
from normlab.report.judging import ALPHA, Ruling, Verdict, rule, seeds_needed
from normlab.report.makers import maker, makers
from normlab.report.metrics import guessed
from normlab.report.printed import metric_words, printed, subject
from normlab.report.quantities import Measured, measured
from normlab.report.records import Key, Record, recorded, scores, table_folder
from normlab.report.table import Claim, Difference, Scale, Table
from normlab.report.verdicts import Evidence
from normlab.schema import bind
from normlab.tasks.metrics import info_of

# Of the way from guessing to the best; a run that has gone less of it, in testing and in training, has not trained.
# Where training measures something else, the test alone has to say that there is nothing.
TRAINED, NOTHING = 0.2, 0.02


@dataclass(frozen=True)
class Entry:
    """A cell of the report: a row or a difference of rows, at a column or a difference of columns."""

    printed: float | None  # by the paper; None: a dash
    values: Sequence[float]  # of the runs that finished, by seed
    diverged: int
    missing: int
    spread: float | None = None  # of a difference of other runs': of one of each, whatever their seeds

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Over seeds, of the sample (n - 1); None below two."""
        if self.spread is not None:
            return self.spread
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
    p: float = math.nan
    adjusted: float = math.nan  # by Holm's method, over the claims of the table that have a p
    needs: float = math.nan  # seeds to hold, at the spread seen; infinite: it points the other way


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
    entries |= _unpaired(entries, table.differences, 0, ours)
    entries |= _unpaired(entries, table.column_differences, 1, ours)
    theirs = Measured({"metric": {(*cell, 0): value for cell, value in papers.values.items() if value is not None}})
    made = makers(records)
    judged = _judge(table, scale, records, ours, theirs)
    return Results(table, scale, settings, records, entries, judged, papers.disagreements, made, ours)


def _entry(
    cell: tuple[str, str], value: float | None, by_key: Mapping[Key, float | None], seeds: Sequence[int]
) -> Entry:
    found = [by_key[*cell, seed] for seed in seeds if (*cell, seed) in by_key]
    finished = [score for score in found if score is not None]
    return Entry(value, finished, diverged=len(found) - len(finished), missing=len(seeds) - len(found))


def _unpaired(
    entries: Mapping[tuple[str, str], Entry], differences: Mapping[str, Difference], axis: int, ours: Measured
) -> dict[tuple[str, str], Entry]:
    """Differences of rows (axis 0) or columns (1) between different runs, with a spread that pairs no seeds.

    Their tests pair none either (verdicts.py), since runs of one seed share little.
    """
    found = {}
    for (row, column), entry in entries.items():
        label = (row, column)[axis]
        if label not in differences or len(entry.values) < 2:
            continue
        one, other = (
            _replaced((row, column, 0), axis, name)[:2] for name in (differences[label].of, differences[label].minus)
        )
        spreads = [entries[cell].std for cell in (one, other) if cell in entries]
        if len(spreads) == 2 and None not in spreads and not ours.are_same_runs(one, other):
            found[row, column] = replace(entry, spread=math.hypot(*spreads))  # type: ignore[arg-type]
    return found


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


def _judge(table: Table, scale: str, records: Sequence[Record], ours: Measured, papers: Measured) -> dict[str, Judged]:
    """All claims of a table: those that this scale can test have evidence, and a verdict."""
    evidence: dict[str, list[tuple[Evidence, float]]] = {}
    no_say: dict[str, Verdict] = {}  # claims whose p-values do not count
    for name, claim in table.claims.items():
        if scale not in (claim.scales or table.scales):
            continue
        own = replace(ours, asked=set())
        tests = [bind(test) for test in claim.tests]
        margin = table.scale(scale).margin
        evidence[name] = [(test(own, margin), test(papers, margin).effect) for test in tests]
        about = [record for record in records if (record["row"], record["column"]) in own.asked]
        if (reason := _without_say(claim, about, table, table.scale(scale))) is not None:
            no_say[name] = reason
    counted = {name: [found for found, _ in evidence[name]] for name in evidence if name not in no_say}
    ruled = rule(counted) | {name: Ruling(reason, math.nan, math.nan) for name, reason in no_say.items()}
    level = ALPHA / max(1, sum(not math.isnan(ruling.p) for ruling in ruled.values()))
    return {
        name: Judged(claim, None, [])
        if name not in evidence
        else Judged(
            *(claim, ruled[name].verdict, evidence[name], ruled[name].p, ruled[name].adjusted),
            max((seeds_needed(found, level) for found, _ in evidence[name]), default=math.nan)
            if name in counted
            else math.nan,
        )
        for name, claim in table.claims.items()
    }


def _without_say(claim: Claim, about: Sequence[Record], table: Table, scale: Scale) -> Verdict | None:
    """Why no record of the cells that a claim is about can decide on it; None where they can."""
    if len({maker(record) for record in about}) > 1:
        return "mixed versions"
    if claim.since is not None and any(datetime.fromisoformat(r["finished"]) < _moment(claim.since) for r in about):
        return "stated later"
    cells: dict[tuple[str, str], list[bool]] = {}
    for record in about:
        if record["status"] == "finished":
            cells.setdefault((record["row"], record["column"]), []).append(has_trained(record, scale, table))
    return "not trained" if any(not any(trained) for trained in cells.values()) else None


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def has_trained(record: Record, scale: Scale, table: Table) -> bool:
    """Whether a finished run is clearly better than guessing, in testing or in training.

    A metric without a best tells nothing.
    """
    name = record["headline"]["metric"]
    info = info_of(name, table.metrics)
    if info is None or info.range is None:
        return True
    best = info.range[info.better == "higher"]
    guess = guessed(name, scale.guessing, table.metrics)
    in_training = record.get("epochs_of", {}).get(f"train/{name}", [])[-1:]
    least = TRAINED if in_training else NOTHING
    seen = [record["headline"]["value"], *in_training]
    return any((value - guess) / (best - guess) >= least for value in seen if value is not None)
