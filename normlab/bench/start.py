"""How long commands take to answer."""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from normlab.bench.follow import follow
from normlab.bench.rounds import interleave, ratio, spread
from normlab.bench.tables import Row, Table, plain
from normlab.progress import Progress

NORMLAB = (sys.executable, "-m", "normlab.cli")
IMPORT = "python -c 'import torch'"


def bench(progress: Progress, *, rounds: Annotated[int, Ge(1)] = 5) -> list[Row]:
    """From a typed command to its answer, each in a new process, next to Python and `import torch` alone.

    The first update is there when its line stands in the run's metrics.jsonl.

    Args:
        rounds: of which the medians and quartiles are taken.
    """
    commands: dict[str, Callable[[], float]] = {
        "python -c pass": partial(_seconds, sys.executable, "-c", "pass"),
        IMPORT: partial(_seconds, sys.executable, "-c", "import torch"),
        "normlab --help": partial(_seconds, *NORMLAB, "--help"),
        "normlab list norms": partial(_seconds, *NORMLAB, "list", "norms"),
        "normlab train norm=sn batch=8x2: first update": _first_update,
    }
    finished = itertools.count(1)
    times = interleave(commands, rounds, lambda: progress("measuring", next(finished), rounds * len(commands)))
    return [
        {"command": name, "seconds": spread(times[name]), "to_import": ratio(times[name], times[IMPORT])}
        for name in commands
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    columns = {"command": "command", "seconds": "seconds", "to_import": f"/ {IMPORT}"}
    return [plain("time to an answer, each in a new process", rows, columns)]


def _seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _first_update() -> float:
    with tempfile.TemporaryDirectory() as out:
        words = ("train", "norm=sn", "batch=8x2", "log_every=1", "tracker=none", f"out={out}")
        return follow((*NORMLAB, *words), partial(metrics, Path(out)), updates_in_metrics, until=1)[0].seconds


def metrics(out: Path, _log: Path) -> Path | None:
    """metrics.jsonl of the one run in `out`."""
    return next(out.glob("*/metrics.jsonl"), None)


def updates_in_metrics(line: str) -> int:
    return json.loads(line)["step"]
