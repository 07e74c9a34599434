"""One of several processes of a run, started by the elastic launcher: python -m normlab.launch.rank FOLDER SECONDS.

Ends with status 0, STOPPED + the signal after saving (0 where the launcher would start it again: status.json tells), or
the error's exit_status.
"""

import os
import secrets
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from normlab.errors import RunError, UserError
from normlab.launch.failure import failed
from normlab.launch.life import train
from normlab.processes.devices import this_device
from normlab.processes.lifetimes import die_with_parent
from normlab.processes.signals import Interrupted, Stop
from normlab.progress import progress_bar, silent
from normlab.runs.folder import RunFolder

STOPPED = 128


def main(folder: RunFolder, timeout: timedelta) -> int:
    """Train on this rank; returns the exit status."""
    die_with_parent()
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
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout, device_id=device if on_gpu else None)
    try:
        _check_shared(folder)
        with progress_bar() if dist.get_rank() == 0 else nullcontext(silent) as progress:
            train(folder, progress)
        dist.barrier()  # no rank ends before the first has written its records
    except UserError as error:
        folder.set_status("failed", error=str(error))
        raise
    finally:
        dist.destroy_process_group()


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


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(RunFolder(Path(sys.argv[1])), timedelta(seconds=int(sys.argv[2]))))
