"""Put measured results into README.md, between its markers: `make readme` trains what is missing and runs this.

The records of the runs are copied to results/norms_8x2-digits/records.jsonl, and the ratio figure of norm=sn, seed 0,
to docs/images/; the table of README comes from these records (tests/test_readme.py).
"""

import json
import shutil
import statistics
import sys
from pathlib import Path

from normlab.config import load
from normlab.reading import read_jsonl
from normlab.runs.folder import RunFolder
from normlab.writing import write_text

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "results" / "norms_8x2-digits" / "records.jsonl"
FIGURE = ROOT / "docs" / "images" / "ratios.png"
NORMS, BATCH, SEEDS = ("bn", "gn", "sn", "hn"), "8x2", (0, 1, 2)
START, END = "<!-- results: make readme -->", "<!-- /results -->"


def main() -> int:
    folders = {
        (norm, seed): RunFolder.of(load([f"norm={norm}", f"batch={BATCH}", f"seed={seed}"]))
        for norm in NORMS
        for seed in SEEDS
    }
    missing = [folder.path.name for folder in folders.values() if not folder.is_over]
    if missing:
        print(f"not run yet: {', '.join(missing)}", file=sys.stderr)
        return 1
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    write_text(RECORDS, "".join(json.dumps(folder.summary()) + "\n" for folder in folders.values()))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folders["sn", 0].path / "ratios.png", FIGURE)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    write_text(readme, f"{before}{START}\n{table()}\n{END}{after}")
    return 0


def table() -> str:
    """Markdown: top-1 of each norm under both estimators, over the seeds, from the records."""
    records = read_jsonl(RECORDS)
    lines = ["| norm | moving average | batch average | seconds a run |", "| --- | --- | --- | --- |"]
    for norm in NORMS:
        runs = [record for record in records if record["norm"] == norm]
        metric = runs[0]["headline"]["metric"]
        found = [[run["metrics"][how][metric] for run in runs] for how in ("moving_average", "batch_average")]
        cells = [f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" for values in found]
        lines.append(f"| {norm} | {' | '.join(cells)} | {statistics.median(run['seconds'] for run in runs):.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
