"""Put the tables of results/bench/*.json into docs/performance.md, between its markers.

    <!-- bench: norm.json -->  the command, the machine and the tables of results/bench/norm.json  <!-- /bench -->

Run it after `normlab bench`; no figure of that page is typed by hand (tests/test_bench.py).
"""

import sys
from importlib import import_module
from pathlib import Path

from marked import fill

from normlab.bench import tables
from normlab.writing import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "results" / "bench"


def main() -> int:
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))
    return 0


def filled(page: str) -> str:
    """The page with what stands in the JSON files."""
    return fill(page, "bench", lambda name: _section(RESULTS / name))


def _section(path: Path) -> str:
    result = tables.load(path)
    made = import_module(f"normlab.bench.{result['bench']}").tables(result["rows"])
    parts = [f"    {result['command']}"]
    parts += [f"{table.title}:\n\n{tables.markdown(table)}" for table in made if table.lines]
    return "\n\n".join([*parts, tables.about(result["machine"]).replace("\n", "; ")]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
