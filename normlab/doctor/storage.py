"""Where runs are written, and where datasets lie."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from normlab.config import choices
from normlab.datasets import default_root
from normlab.doctor.check import Check, Checks
from normlab.doctor.hardware import GB
from normlab.writing import write_bytes

_ROOM = 2 * GB  # some checkpoints of a ResNet-50 with its optimizer, 205 MB each, and what is beside them
_PROBE_BYTES = 10_000_000
_SLOW_SECONDS = 2.0


def disk(out: Path) -> Checks:
    """Room in out=, and a write as a checkpoint is written: to a temporary file, flushed, renamed, flushed."""
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not folder.is_dir():
        yield Check("disk", f"{folder} is no folder", "fail", "out=FOLDER names another place")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as inside:
            start = time.monotonic()
            write_bytes(Path(inside) / "probe", os.urandom(_PROBE_BYTES))
            seconds = time.monotonic() - start
            with (Path(inside) / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except Exception as error:
        yield Check("disk", f"{folder}: {error}", "fail", "out=FOLDER names another place")
        return
    free = shutil.disk_usage(folder).free
    result = f"{free / GB:.1f} GB free; {_PROBE_BYTES / 1e6:.0f} MB written, flushed and renamed in {seconds:.2f} s"
    if free < _ROOM:
        yield Check("disk", result, "warn", f"checkpoints of large models need {_ROOM / GB:.0f} GB: out=FOLDER")
    elif seconds > _SLOW_SECONDS:
        yield Check("disk", result, "warn", "the disk is slow: checkpoint.every=2 writes less often")
    else:
        yield Check("disk", result)


def datasets() -> Checks:
    """Those whose folder is there; `normlab data verify` looks into them."""
    roots = {name: default_root(name) for name in choices("data")}
    there = [name for name, root in roots.items() if root is None or Path(root).is_dir()]
    absent = [f"{name} ({root})" for name, root in roots.items() if name not in there]
    result = f"here: {', '.join(there)}" + (f"; not here: {', '.join(absent)}" if absent else "")
    yield Check("datasets", result, "ok", "normlab data prepare NAME" if absent else "")
