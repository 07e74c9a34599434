"""What the pages say of claims, tables and runs, ready for the templates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from normlab.report import wording
from normlab.report.claims import NOT_MEASURED, Part, Standing, parts_of, standings
from normlab.report.deviations import Deviation, concerning
from normlab.report.records import key_of, scores
from normlab.report.results import Results
from normlab.report.summary import ESTIMATORS
from normlab.site.shown import ShownRun, identity_of
from normlab.tasks.metrics import info_of

_GOOD, _BAD, _OPEN, _NONE = "good", "bad", "open", "none"  # classes of the style sheet


def kind_of(verdict: str) -> str:
    """How a verdict is shown."""
    if verdict in ("holds", "does not hold"):
        return _GOOD if verdict == "holds" else _BAD
    return _NONE if verdict.startswith((NOT_MEASURED, "needs", "no table", "arithmetic", "figure")) else _OPEN


# ---- claims ----------------------------------------------------------------------------------------------------------


@dataclass
class Tested:
    """A table's part in a claim."""

    part: Part
    title: str
    reasons: str
    evidence: list[str]

    @property
    def page(self) -> str:
        return f"tables/{self.part.table}-{self.part.scale}.html#claim-{self.part.name}"


@dataclass
class ClaimView:
    """A claim of a paper, over all scales that have records."""

    standing: Standing  # at each table's first scale
    verdicts: dict[str, str] = field(default_factory=dict)  # scale -> verdict
    tested: list[Tested] = field(default_factory=list)

    @property
    def paper(self) -> str:
        return self.standing.id.partition(".")[0]

    @property
    def name(self) -> str:
        return self.standing.id.partition(".")[2]

    @property
    def plain(self) -> str:
        """The verdict where nothing of it was measured: why."""
        return self.standing.verdict if not self.standing.tested else NOT_MEASURED

    @property
    def kind(self) -> str:
        """`plain` without what is needed, or which test and figure shows it."""
        return self.plain if self.plain == NOT_MEASURED else self.plain.partition(":")[0].partition(" ")[0]

    @property
    def seeds(self) -> str:
        """1 seed, or of several tables: 1–3 seeds."""
        found = sorted({tested.part.seeds for tested in self.tested})
        span = "–".join(map(str, dict.fromkeys((*found[:1], *found[-1:]))))
        return f"{span} seed{'s' * (span != '1')}"

    @property
    def unmeasured(self) -> list[str]:
        """Tables that would test it."""
        measured = {tested.part.table for tested in self.tested}
        return [part.table for part in self.standing.tested if part.table not in measured]


def claim_views(measured: Sequence[Results]) -> list[ClaimView]:
    """Every claim of the papers, with the verdict of the tables that were measured, at each scale."""
    found = {key: ClaimView(standing) for key, standing in standings(None, Path("/nowhere")).items()}
    for one in measured:
        parts = parts_of(one)
        for name, claim in one.table.claims.items():
            for source in claim.sources:
                found[source].tested.append(_tested(parts[name], one))
    for key, view in found.items():
        by_scale: dict[str, list[Part]] = {}
        for tested in view.tested:
            by_scale.setdefault(tested.part.scale, []).append(tested.part)
        view.verdicts = {scale: Standing(key, "", "", parts).verdict for scale, parts in by_scale.items()}
    return list(found.values())


def _tested(part: Part, results: Results) -> Tested:
    judged = results.judged[part.name]
    evidence = [wording.evidence_text(*e) for e in judged.evidence]
    return Tested(part, results.table.title, wording.reasons_text(judged), evidence)


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellRun:
    """A run that a cell shows."""

    seed: int
    text: str
    key: str  # of its page
    name: str


@dataclass
class TableView:
    """A table at a scale."""

    results: Results
    shown: Sequence[ShownRun]

    @property
    def name(self) -> str:
        return f"{self.results.table.name}-{self.results.scale_name}"

    @property
    def page(self) -> str:
        return f"tables/{self.name}.html"

    @property
    def is_measured(self) -> bool:
        return bool(self.results.records)

    @property
    def deviations(self) -> list[Deviation]:
        return concerning(self.results.table)

    @property
    def verdicts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for judged in self.results.judged.values() if self.is_measured else ():
            word = wording.verdict_text(judged)
            found[word] = found.get(word, 0) + 1
        return found

    @cached_property
    def _runs(self) -> Mapping[tuple[str, str], list[CellRun]]:
        pages = {run.identity: run.key for run in self.shown}
        decimals = self.results.table.decimals
        values = scores(self.results.records, self.results.table)
        found: dict[tuple[str, str], list[CellRun]] = {}
        for record in self.results.records:
            row, column, seed = key_of(record)
            value = values[row, column, seed]
            text = record["status"] if value is None else wording.number(value, decimals)
            name = str(record.get("name", ""))
            found.setdefault((row, column), []).append(CellRun(seed, text, pages[identity_of(record)], name))
        return {cell: sorted(runs, key=lambda run: run.seed) for cell, runs in found.items()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of each row and difference its label, and lines of cells: the paper's, ours, the difference."""
        table, decimals = self.results.table, self.results.table.decimals
        found = []
        for row, label in table.row_labels.items():
            entries = {column: self.results.entries[row, column] for column in table.column_labels}
            is_printed = self.results.is_printed(row)
            lines: list[tuple[str, list[tuple[str, list[CellRun]]]]] = []
            if is_printed:
                lines.append(("paper", [(wording.printed_text(e, decimals), []) for e in entries.values()]))
            if self.is_measured:
                ours = [(wording.measured_text(e, decimals), self._runs.get((row, c), [])) for c, e in entries.items()]
                lines.append(("measured", ours))
            if is_printed and self.is_measured:
                lines.append(("difference", [(wording.difference_text(e, decimals), []) for e in entries.values()]))
            if lines:
                found.append({"label": label, "lines": lines, "derived": row in table.differences})
        return found


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class RunView:
    """A run's page."""

    run: ShownRun

    @property
    def main(self) -> dict[str, str]:
        """The settings that runs are told apart by."""
        names = ("norm", "weight", "model", "data", "batch", "seed")
        return {name: self.run.settings.get(name, "") for name in names}

    @property
    def value(self) -> str:
        """What it is known by, in its decimals; a dash where it has none."""
        if self.run.value is None:
            return wording.DASH
        info = info_of(self.run.headline, self.run.known)
        return wording.number(self.run.value, info.decimals if info else 2)

    @property
    def metrics(self) -> list[tuple[str, list[str]]]:
        """Metric in words -> its value under each of `estimators`; values by class are in summary.json."""
        measured: Mapping[str, Mapping[str, float]] = self.run.outcome.get("metrics") or {}
        names = dict.fromkeys(name for values in measured.values() for name in values if "." not in name)
        found = []
        for name in names:
            info = info_of(name, self.run.known)
            label, decimals = (info.label, info.decimals) if info else (name, 2)
            label += f", {name.rpartition('/')[0]}" * ("/" in name)
            numbers = [values.get(name, math.nan) for values in measured.values()]
            found.append((label, [wording.number(n, decimals) if math.isfinite(n) else wording.DASH for n in numbers]))
        return found

    @property
    def estimators(self) -> list[str]:
        return [ESTIMATORS.get(name, name) for name in self.run.outcome.get("metrics") or {}]

    def as_json(self) -> dict[str, Any]:
        """What comparing it with another takes."""
        values = {
            f"{label} ({estimator})": text
            for label, texts in self.metrics
            for estimator, text in zip(self.estimators, texts, strict=True)
        }
        return {"name": self.run.name, "settings": self.run.settings, "made": self.run.made, "metrics": values}
