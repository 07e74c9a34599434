"""`normlab claims`: every claim of the papers, where it is tested, and the verdict so far. No torch here."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from normlab.config import conf_dir
from normlab.console import PlainConsole
from normlab.errors import UserError, unknown
from normlab.reading import naming, read_mapping
from normlab.report.judging import ALPHA, benjamini_hochberg
from normlab.report.printed import paper_claims, papers
from normlab.report.records import table_folder
from normlab.report.results import Results, load_results
from normlab.report.table import Table
from normlab.report.tables import all_tables
from normlab.report.wording import verdict_text
from normlab.values import coerce

NOT_MEASURED = "not measured"
# Of the parts of a claim the first of these decides; it holds where none is among them.
_ORDER = (
    *("does not hold", "mixed versions", "stated later", "not trained", "equal within the margin"),
    *("points the other way", "not enough seeds", NOT_MEASURED),
)
_ELSEWHERE = {"needs": "needs {}", "tests": "arithmetic: {}", "figures": "figure: {}"}


@dataclass
class Part:
    """A claim of a table that tests what a paper says."""

    table: str
    name: str
    scale: str
    verdict: str
    seeds: int
    p: float = math.nan  # plain, and adjusted within its table
    adjusted: float = math.nan


@dataclass
class Standing:
    """Where a claim stands."""

    id: str  # file.id of results/paper
    statement: str
    section: str
    tested: list[Part] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)  # what it needs, or what else shows it

    @property
    def verdict(self) -> str:
        """Of all its parts together: it holds where each does, and does not where one does not."""
        verdicts = [part.verdict for part in self.tested]
        if not verdicts:
            return self.elsewhere[0] if self.elsewhere else "no table tests it"
        return min(verdicts, key=_decides)

    @property
    def p(self) -> float:
        """Plain, of all its parts together; NaN where one has none."""
        found = [part.p for part in self.tested]
        return math.nan if not found or any(map(math.isnan, found)) else max(found)


def standings(scale: str | None, results: Path) -> dict[str, Standing]:
    """Every claim of the papers by its id; without a scale each table counts at its own first.

    Raises UserError where conf/ names a claim that no paper makes.
    """
    found = {
        key: Standing(key, str(claim["statement"]), str(claim["section"])) for key, claim in paper_claims().items()
    }
    for table in all_tables():
        at = scale or table.default_scale
        parts = _parts(table, at, results)
        for name, claim in table.claims.items():
            for source in claim.sources:
                _at(found, source, table.name).tested.append(parts[name])
    for kind, of_kind in _elsewhere().items():
        for what, claims in of_kind.items():
            for source in claims:
                _at(found, source, "claims").elsewhere.append(_ELSEWHERE[kind].format(what))
    return found


def chosen(names: Sequence[str], scale: str | None, results: Path) -> list[Standing]:
    """The claims of these names: a file of results/paper, file.id, or an id alone; all without names."""
    found = standings(scale, results)
    wanted = []
    for name in names:
        matching = [s for s in found.values() if name in (s.id, *s.id.split("."))]
        if not matching:
            raise unknown("claim", name, [*papers(), *found, *(key.partition(".")[2] for key in found)])
        wanted += matching
    return wanted if names else list(found.values())


def tables_of(standings: Iterable[Standing], scale: str | None) -> list[Table]:
    """The tables that test them at a scale. Raises UserError if none does, saying what a claim needs."""
    standings = list(standings)
    at = "" if scale is None else f" at {scale}"
    names = {test.table for standing in standings for test in standing.tested}
    found = [table for table in all_tables() if table.name in names and (scale or table.default_scale) in table.scales]
    if not found:
        needs = "; ".join(f"{s.id}: {', '.join(s.elsewhere) or f'no table tests it{at}'}" for s in standings)
        raise UserError(f"there is nothing to run: {needs}")
    return found


def print_claims(standings: Sequence[Standing], scale: str | None) -> None:
    """Claim by claim: its verdict, what the paper says, and each table's part in it."""
    console = PlainConsole(highlight=False)
    over_all = benjamini_hochberg({standing.id: standing.p for standing in standings})
    previous = ""
    for standing in standings:
        paper, _, name = standing.id.partition(".")
        if paper != previous:
            console.print(f"\n{paper}: {papers()[paper]['paper']['title']}", style="bold")
            previous = paper
        q = over_all[standing.id]
        p = "" if math.isnan(q) else f" (p = {standing.p:.2g}, over all claims {q:.2g})"
        console.print(f"{name} (Sec. {standing.section}): {standing.verdict}{p}", style=_style(standing.verdict))
        lines = [standing.statement]
        for test in standing.tested:
            seeds = f", {test.seeds} seed{'s' * (test.seeds != 1)}" if test.seeds else ""
            p = "" if math.isnan(test.p) else f", p = {test.p:.2g}, adjusted {test.adjusted:.2g}"
            lines.append(f"{test.table} {test.name}: {test.verdict} ({test.scale}{seeds}{p})")
        for line in [*lines, *standing.elsewhere]:
            shown = textwrap.fill(line, console.width, initial_indent="    ", subsequent_indent="    ")
            console.print(shown, style="dim" if line == standing.statement else None)
    counts: dict[str, int] = {}
    for standing in standings:
        kind = standing.verdict if standing.tested else standing.verdict.partition(" ")[0].rstrip(":")
        counts[kind] = counts.get(kind, 0) + 1
    console.print(
        f"\n{len(standings)} claims, {f'at {scale} scale' if scale else 'each table at its first scale'}: "
        + ", ".join(f"{n} {kind}" for kind, n in counts.items())
    )
    tables = {test.table for standing in standings for test in standing.tested if not math.isnan(test.p)}
    if tables:
        sure = sum(over_all[standing.id] < ALPHA for standing in standings if standing.verdict == "holds")
        console.print(
            f"Of {counts.get('holds', 0)} that hold, up to {ALPHA * len(tables):.1f} would be expected to by chance: "
            f"{ALPHA:g} of each of {len(tables)} tables, whose p-values are adjusted for its claims (Holm). {sure} of "
            f"them hold at {ALPHA:g} over all claims too (Benjamini and Hochberg)."
        )


def _parts(table: Table, scale: str, results: Path) -> dict[str, Part]:
    """The claims of a table, from its records."""

    if scale not in table.scales:
        return _all_are(f"has no scale {scale}", table, scale)
    if not (table_folder(table, scale, results) / "records.jsonl").is_file():
        return _all_are(NOT_MEASURED, table, scale)
    return parts_of(load_results(table, scale, results))


def parts_of(found: Results) -> dict[str, Part]:
    """The claims of a table, from what was measured of it."""
    table, scale, seeds = found.table, found.scale_name, len(found.seeds)
    if found.changed:
        return _all_are(f"measured with {' '.join(found.changed)} alone", table, scale, seeds)
    return {
        name: Part(table.name, name, scale, verdict_text(judged), seeds, judged.p, judged.adjusted)
        for name, judged in found.judged.items()
    }


def _all_are(verdict: str, table: Table, scale: str, seeds: int = 0) -> dict[str, Part]:
    return {name: Part(table.name, name, scale, verdict, seeds) for name in table.claims}


@cache
def _elsewhere() -> Mapping[str, Mapping[str, list[str]]]:
    file = conf_dir() / "claims.yaml"
    with naming(file):
        found = coerce(read_mapping(file), dict[str, dict[str, list[str]]], "claims")
        for kind in found:
            if kind not in _ELSEWHERE:
                raise unknown("group of claims", kind, _ELSEWHERE)
    return found


def _at(found: Mapping[str, Standing], claim: str, where: str) -> Standing:
    if claim not in found:
        raise unknown(f"{where}: claim", claim, found)
    return found[claim]


def _decides(verdict: str) -> int:
    """The place of a part's verdict among those that decide on the whole."""
    return _ORDER.index(verdict) if verdict in _ORDER else len(_ORDER) + (verdict == "holds")


def _style(verdict: str) -> str | None:
    return {"holds": "green", "does not hold": "red"}.get(verdict, "yellow" if verdict in _ORDER else None)
