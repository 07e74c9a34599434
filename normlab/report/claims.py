"""`normlab claims`: every claim of the papers, where it is tested, and the verdict so far. No torch here."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from normlab import schema
from normlab.config import conf_dir
from normlab.console import PlainConsole
from normlab.errors import UserError, unknown
from normlab.reading import naming, read_mapping
from normlab.report.printed import paper_claims, papers
from normlab.report.records import table_folder
from normlab.report.render import verdict_text
from normlab.report.results import load_results
from normlab.report.table import Table
from normlab.report.tables import all_tables

NOT_MEASURED = "not measured"
_ELSEWHERE = {"needs": "needs {}", "tests": "arithmetic: {}", "figures": "figure: {}"}


@dataclass
class Part:
    """A claim of a table that tests what a paper says."""

    table: str
    name: str
    scale: str
    verdict: str
    seeds: int


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


def standings(scale: str | None, results: Path) -> dict[str, Standing]:
    """Every claim of the papers by its id; without a scale each table counts at its own first.

    Raises UserError where conf/ names a claim that no paper makes.
    """
    found = {
        key: Standing(key, str(claim["statement"]), str(claim["section"])) for key, claim in paper_claims().items()
    }
    for table in all_tables():
        at = scale or table.default_scale
        verdicts, seeds = _verdicts(table, at, results)
        for name, claim in table.claims.items():
            for source in claim.sources:
                _at(found, source, table.name).tested.append(Part(table.name, name, at, verdicts[name], seeds))
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
    previous = ""
    for standing in standings:
        paper, _, name = standing.id.partition(".")
        if paper != previous:
            console.print(f"\n{paper}: {papers()[paper]['paper']['title']}", style="bold")
            previous = paper
        console.print(f"{name} (Sec. {standing.section}): {standing.verdict}", style=_style(standing.verdict))
        lines = [standing.statement]
        for test in standing.tested:
            seeds = f", {test.seeds} seed{'s' * (test.seeds != 1)}" if test.seeds else ""
            lines.append(f"{test.table} {test.name}: {test.verdict} ({test.scale}{seeds})")
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


def _verdicts(table: Table, scale: str, results: Path) -> tuple[Mapping[str, str], int]:
    """Of each claim of a table, from its records; and how many seeds these have."""
    if scale not in table.scales:
        return dict.fromkeys(table.claims, f"has no scale {scale}"), 0
    if not (table_folder(table, scale, results) / "records.jsonl").is_file():
        return dict.fromkeys(table.claims, NOT_MEASURED), 0
    found = load_results(table, scale, results)
    if found.changed:
        return dict.fromkeys(table.claims, f"measured with {' '.join(found.changed)} alone"), len(found.seeds)
    return {name: verdict_text(judged) for name, judged in found.judged.items()}, len(found.seeds)


@cache
def _elsewhere() -> Mapping[str, Mapping[str, list[str]]]:
    file = conf_dir() / "claims.yaml"
    with naming(file):
        found = schema.coerce(read_mapping(file), dict[str, dict[str, list[str]]], "claims")
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
    order = ["does not hold", "mixed versions", "not enough seeds", NOT_MEASURED]
    return order.index(verdict) if verdict in order else len(order) + (verdict == "holds")


def _style(verdict: str) -> str | None:
    return {"holds": "green", "does not hold": "red", "not enough seeds": "yellow", "mixed versions": "yellow"}.get(
        verdict
    )
