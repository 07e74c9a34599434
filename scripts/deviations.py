"""Write docs/deviations.md from conf/deviations.yaml."""

from pathlib import Path

from normlab.report.deviations import ledger
from normlab.writing import write_text

if __name__ == "__main__":
    write_text(Path(__file__).resolve().parents[1] / "docs" / "deviations.md", ledger())
