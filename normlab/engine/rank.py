"""One of several processes of a run, started by the elastic launcher: python -m normlab.engine.rank FOLDER SECONDS.

Ends with status 0, BAD_INPUT (status.json has the reason), or STOPPED + the signal after saving.
"""

import os
import secrets
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from normlab.engine.devices import this_device
from normlab.engine.record import RunFolder
from normlab.engine.train import train
from normlab.errors import UserError
from normlab.report.progress import progress_bar, silent

BAD_INPUT = 2
STOPPED = 128


def main(folder: RunFolder, timeout: timedelta) -> int:
    """Train on this rank; returns the exit status."""
    device = this_device()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout, device_id=device if on_gpu else None)
    try:
        _check_shared(folder)
        if dist.get_rank() == 0:
            with progress_bar() as progress:
                status = train(folder, progress)
        else:
            status = train(folder, silent)
        dist.barrier()  # no rank ends before the first has written its records
        return STOPPED + folder.status()["signal"] if status == "interrupted" else 0
    except UserError as error:
        folder.set_status("failed", error=str(error))
        return BAD_INPUT
    finally:
        dist.destroy_process_group()


def _check_shared(folder: RunFolder) -> None:
    """Raise UserError unless all ranks see one folder: each resumes from the checkpoint there."""
    name = [f".rank0-{secrets.token_hex(4)}"]
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
