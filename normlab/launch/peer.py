"""What a rank does that trains beside others: meet them, train, and end as the launcher understands it (rank.py).

Ends with status 0, STOPPED + the signal after saving (0 where the launcher would start it again: status.json tells), or
the error's exit_status.
"""

import gc
import os
import secrets
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from normlab.errors import RunError, UserError
from normlab.launch.failure import failed
from normlab.launch.life import train
from normlab.processes.devices import this_device
from normlab.processes.signals import Interrupted, Stop
from normlab.progress import progress_bar, silent
from normlab.runs.folder import RunFolder

STOPPED = 128
MEETING = "NORMLAB_MEETING"  # environment variable: the private folder in which ranks of one machine meet


def main(folder: RunFolder, timeout: timedelta) -> int:
    """Train on this rank; returns the exit status."""
    with Stop():
        if os.environ["RANK"] == "0":
            folder.begin()
        try:
            _train(folder, timeout)
        except Interrupted as end:
            folder.interrupted(end.signal)
        except Exception as error:
            told = error if isinstance(error, UserError | RunError) else failed(folder, error)
            if folder.status()["status"] != "interrupted":  # else this rank lost one that a signal ended
                get_error_handler().record_exception(told)
                return told.exit_status
        status = folder.status()
        # A launcher that has restarts left must not use one; another at once stops waiting for nodes that have gone.
        restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
        return STOPPED + status["signal"] if status["status"] == "interrupted" and not restarts else 0


def _train(folder: RunFolder, timeout: timedelta) -> None:
    device = this_device()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=timeout, device_id=device if on_gpu else None, **_meeting()
    )
    try:
        _check_shared(folder)
        with progress_bar() if dist.get_rank() == 0 else nullcontext(silent) as progress:
            train(folder, progress)
        dist.barrier()  # no rank ends before the first has written its records
    except UserError as error:
        folder.set_status("failed", error=str(error))
        raise
    finally:
        gc.collect()  # DDP holds itself in a circle, and would keep the group, whose threads may abort the process
        dist.destroy_process_group()


def _meeting() -> dict[str, Any]:
    """Where ranks find each other: on one machine in a file that only this user can open, else where torch's own
    launcher says. No port is opened for it then, and no name of the machine is looked up."""
    folder = os.environ.get(MEETING)
    if folder is None:
        return {}
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]  # the addresses of an earlier one are gone
    return {
        "init_method": f"file://{folder}/ranks-{attempt}",
        "rank": int(os.environ["RANK"]),
        "world_size": int(os.environ["WORLD_SIZE"]),
    }


def _check_shared(folder: RunFolder) -> None:
    """Raise UserError unless all ranks see one folder: each resumes from the checkpoint there."""
    name = [f".rank0-{secrets.token_hex(4)}.tmp"]
    dist.broadcast_object_list(name)
    mark = folder.path / name[0]
    if dist.get_rank() == 0:
        mark.touch()
    dist.barrier()
    seen = [False] * dist.get_world_size()
    dist.all_gather_object(seen, mark.exists())
    if dist.get_rank() == 0:
        mark.unlink()
    if not all(seen):
        raise UserError(f"out={folder.path.parent}: nodes of a run share this folder, and here each has its own")
