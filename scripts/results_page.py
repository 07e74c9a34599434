"""Put what the reports in results/ came to into results/README.md, between its markers.

    <!-- tables: digits -->  each table with records at that scale: its report, runs, seeds, verdicts  <!-- /tables -->
    <!-- claims: digits -->  the papers' claims at that scale, counted by verdict                      <!-- /claims -->

Run it after `normlab reproduce`; nothing between the markers is typed by hand (tests/test_readme.py).
"""

import sys
from collections import Counter
from pathlib import Path
from typing import get_args

from marked import fill

from normlab.report.claims import standings
from normlab.report.judging import Verdict
from normlab.report.printed import papers
from normlab.report.records import table_folder
from normlab.report.results import Results, load_results
from normlab.report.tables import all_tables
from normlab.report.wording import verdict_text
from normlab.writing import write_text

RESULTS = Path(__file__).resolve().parents[1] / "results"
PAGE = RESULTS / "README.md"
_VERDICTS = get_args(Verdict)


def main() -> int:
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))
    return 0


def filled(page: str) -> str:
    """The page with what stands in the records."""
    return fill(fill(page, "tables", _tables), "claims", _claims)


def _tables(scale: str) -> str:
    found = [
        load_results(table, scale, RESULTS)
        for table in all_tables()
        if (table_folder(table, scale, RESULTS) / "records.jsonl").is_file()
    ]
    verdicts = [Counter(verdict_text(judged) for judged in results.judged.values()) for results in found]
    used = [verdict for verdict in _VERDICTS if any(counted[verdict] for counted in verdicts)]
    head = f"| table | what | runs | seeds | {' | '.join(used)} | figures |"
    lines = [_line(results, [counted[v] for v in used]) for results, counted in zip(found, verdicts, strict=True)]
    return "\n".join([head, "| --- | --- |" + " ---: |" * (2 + len(used)) + " --- |", *lines])


def _line(results: Results, verdicts: list[int]) -> str:
    table, folder = results.table, table_folder(results.table, results.scale_name, RESULTS).name
    figures = [f"[{name}]({folder}/{name}.png)" for name in table.figures]
    runs = len({record["id"] for record in results.records})
    counts = (runs, len(results.seeds), *verdicts)
    cells = [f"[{table.name}]({folder}/report.md)", table.title, *map(str, counts), ", ".join(figures)]
    return f"| {' | '.join(cells)} |"


def _claims(scale: str) -> str:
    kinds = (*_VERDICTS, "not measured", "of another scale", "needs what normlab has not", "shown otherwise")
    counts: dict[str, Counter[str]] = {name: Counter() for name in papers()}
    for standing in standings(scale, RESULTS).values():
        kind = standing.verdict
        if not standing.tested:
            kind = "needs what normlab has not" if kind.startswith("needs") else "shown otherwise"
        counts[standing.id.partition(".")[0]][kind if kind in kinds else "of another scale"] += 1
    used = [kind for kind in kinds if any(count[kind] for count in counts.values())]
    lines = [f"| paper | claims | {' | '.join(used)} |", "| --- |" + " ---: |" * (1 + len(used))]
    for name, count in counts.items():
        title = papers()[name]["paper"]["title"]
        lines.append(f"| {title} | {count.total()} | {' | '.join(str(count[kind]) for kind in used)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
