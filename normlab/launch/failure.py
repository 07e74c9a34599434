"""From the exception that ends a run to one line that says what to do, and the records of it in the run's folder."""

import contextlib
import os
import re
import traceback
from typing import Any

from normlab.config import inputs
from normlab.data.dataset import SampleError
from normlab.errors import DiskFullError, RunError, UserError, is_out_of_memory
from normlab.processes.devices import rank_and_size
from normlab.runs.folder import RunFolder
from normlab.writing import is_full, write_text


def failed(folder: RunFolder, error: BaseException) -> UserError | RunError:
    """The error to raise in its place, of one line; status.json has the reason, error.txt the traceback.

    What another rank has said before stays: this one may have failed only because it lost the other.
    """
    told = error if isinstance(error, UserError | RunError) else None
    reason = " ".join(str(told or _reason(error, folder)).split())
    with contextlib.suppress(DiskFullError, OSError, UserError):  # no room to say so, or no folder any more
        if folder.status()["status"] not in ("failed", "interrupted"):
            folder.set_status("failed", error=reason, **_of_data(error, folder))
            if told is None:
                write_text(folder.traceback, "".join(traceback.format_exception(error)))
    if told is not None:
        return told
    if is_full(error):
        return DiskFullError(reason)
    return RunError(f"the run failed: {reason}; traceback: {folder.traceback}")


def _of_data(error: BaseException, folder: RunFolder) -> dict[str, Any]:
    """Which file is bad, and the digest of all others: once it is repaired, the run goes on."""
    config = folder.config()
    if not isinstance(error, SampleError) or config.data.get("root") is None:
        return {}
    path = error.folder / error.file
    file = path if path.is_file() else error.folder / error.file.partition("[")[0]  # sample 10 of it: labels[10]
    bad = os.path.relpath(file, config.data["root"])
    return {"bad_file": bad, "other_inputs": inputs(config, without=bad)}


def _reason(error: BaseException, folder: RunFolder) -> str:
    said = " ".join(str(error).split())
    if is_out_of_memory(error):
        return f"out of memory ({said or type(error).__name__}); {_memory_advice(folder)}"
    if "DataLoader worker" in said or _receiving_from_a_worker(error):
        chain = f"{said} {error.__cause__ or error.__context__ or ''}"
        pid = re.search(r"\(pid(?:\(s\))? ([0-9, ]+)\)", chain)
        how = re.search(r"killed by signal: (\w+(?: \w+)?)", chain)
        return (
            f"a loader worker{f' (process {pid[1]})' if pid else ''} was killed{f' ({how[1]})' if how else ''}; "
            "likely out of (shared) memory: fewer workers= need less, and workers=0 has none"
        )
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _receiving_from_a_worker(error: BaseException) -> bool:
    """Whether a batch was on its way when its sender was lost, which torch does not put down to the worker."""
    places = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ConnectionError | EOFError) and "torch.utils.data.dataloader" in places


def _memory_advice(folder: RunFolder) -> str:
    config = folder.config()
    hosted = config.replicas // rank_and_size()[1]
    at_once = min(config.replicas_per_pass or hosted, hosted)
    ways = []
    if at_once > 1 and not (config.norm or {}).get("sync"):
        ways.append(f"replicas_per_pass={at_once // 2} (now {at_once} at a time)")
    if hosted > 1:
        ways.append("a larger number of devices=")
    advice = [f"{' or '.join(ways)} needs less and does not change the result"] if ways else []
    if config.precision in ("fp32", "fp64"):
        advice.append("precision=bf16 needs less and is another experiment")
    return "; ".join([*advice, "normlab changes nothing by itself"])
