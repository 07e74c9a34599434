"""docs/images/terminal.svg: what a run prints, for README. It makes the run.

python scripts/terminal_picture.py
"""

import inspect
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "terminal.svg"
COMMAND = "normlab train norm=sn batch=8x2 epochs=4 tracker=none"
_WIDTH = 132
# Without the fonts that rich would fetch from the web: the reader's own monospaced one does.
_FORMAT = re.sub(
    r"@font-face \{\{.*?\}\}",
    "",
    inspect.signature(Console.export_svg).parameters["code_format"].default,
    flags=re.DOTALL,
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            [sys.executable, "-m", "normlab", *COMMAND.split()[1:], "threads=1"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
            env=os.environ | {"COLUMNS": str(_WIDTH)},
        )  # fmt: skip
        said = made.stdout.replace(f"{folder}/", "")
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMAND}", style="bold"))
    console.print(Text(said.rstrip()), soft_wrap=True)
    console.save_svg(str(PICTURE), title="a run", code_format=_FORMAT)


if __name__ == "__main__":
    main()
