"""What an attempt does that is to be killed while it writes checkpoints."""

import itertools
import os
from pathlib import Path
from typing import Never

from normlab.doctor.compare import load_state
from normlab.runs import checkpoint
from normlab.runs.folder import RunFolder


def save_forever(source: Path, run: Path) -> Never:
    """In an attempt: write checkpoint after checkpoint, and print the number of each when it is written."""
    folder = RunFolder(run)
    state = load_state(folder, source)
    for updates in itertools.count(state["updates"] + 1):
        checkpoint.save(folder.checkpoints, state | {"updates": updates}, keep=2)
        os.write(1, b"%d\n" % updates)
    raise AssertionError("itertools.count ends never")
