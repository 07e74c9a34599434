"""Put the tables of results/chaos/*.json into docs/reliability.md, between its markers.

    <!-- chaos: one_process.json -->  what that report of `normlab doctor --chaos` counts  <!-- /chaos -->

No figure of that page is typed by hand (tests/test_chaos.py).
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from marked import fill

from normlab.writing import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, REPORTS = ROOT / "docs" / "reliability.md", ROOT / "results" / "chaos"


def main() -> int:
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))
    return 0


def filled(page: str) -> str:
    """The page with what stands in the JSON files."""
    return fill(page, "chaos", lambda name: _section(REPORTS / name))


def _section(path: Path) -> str:
    report = json.loads(path.read_text(encoding="utf-8"))
    kills, writes, damages = (report[key] for key in ("kills", "writes", "damages"))
    twice = report.get("twice", ())  # older reports have none
    settings = [f"kills={len(kills)}", f"writes={len(writes)}", f"damages={len(damages) // 2}"]
    settings += [f"twice={len(twice) // 2}"] if "twice" in report else []
    settings += [f"{key}={report[key]}" for key in ("ranks", "workers", "seed")]
    inside = sum(write["inside"] for write in writes)
    rows = [
        ("kill of a run", _count(kills, "phase"), len(kills)),
        ("kill of a write", f"during a write {inside}, between two {len(writes) - inside}", len(writes)),
        ("damage", _count(damages, "kind"), len(damages)),
        ("damage", _count(damages, "file"), len(damages)),
        ("typed twice at once", _count(twice, "what"), len(twice)),
    ]
    lines = [f"| {what} | {how} | {number} |" for what, how, number in rows if number]
    machine = f"{report['machine']['CPU']}, GPU: {report['machine']['GPU']}, torch {report['versions']['torch']}"
    return "\n".join(
        [
            f"    normlab doctor --chaos {' '.join(settings)}\n",
            "| what | where | number |",
            "|-|-|-|",
            *lines,
            f"\n{_outcome(report)}; {report['seconds'] / 60:.0f} minutes on {machine}; commit {report['commit'][:8]}.",
        ]
    )


def _outcome(report: dict[str, Any]) -> str:
    kills, lost = report["kills"], report["lost"]
    named, unchanged = (sum(damage[key] for damage in report["damages"]) for key in ("named", "unchanged"))
    parts = [f"**{report['verdict'].capitalize()}**" + (f": {len(lost)} differences" if lost else "")]
    if kills:
        parts.append(f"{len({kill['run'] for kill in kills})} runs ended as the undisturbed one")
    if report["damages"]:
        parts.append(f"{named} of {len(report['damages'])} damages named, {unchanged} changed no answer")
    return "; ".join(parts)


def _count(rows: list[dict[str, Any]], key: str) -> str:
    return ", ".join(f"{name} {number}" for name, number in Counter(row[key] for row in rows).most_common())


if __name__ == "__main__":
    sys.exit(main())
