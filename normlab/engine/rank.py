"""One of several processes of a run, started by the elastic launcher: python -m normlab.engine.rank FOLDER SECONDS."""

import os
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


def main(folder: RunFolder, timeout: timedelta) -> None:
    device = this_device()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout, device_id=device if on_gpu else None)
    try:
        if dist.get_rank() == 0:
            with progress_bar() as progress:
                train(folder, progress)
        else:
            train(folder, silent)
    except UserError as error:
        folder.set_status("failed", error=str(error), user_error=True)
        sys.exit(2)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(RunFolder(Path(sys.argv[1])), timedelta(seconds=int(sys.argv[2])))
