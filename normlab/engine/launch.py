"""Start the ranks of a run: this process for one device, torch's elastic launcher for several."""

import sys

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from normlab.config import Config
from normlab.engine.record import RunFolder
from normlab.engine.train import train
from normlab.errors import UserError
from normlab.report.progress import Progress


def num_devices(config: Config) -> int:
    """Processes of a run. auto: as many GPUs as can share the replicas equally, or one process on the CPU."""
    if config.devices != "auto":
        return config.devices
    available = max(1, torch.cuda.device_count())
    return max(d for d in range(1, available + 1) if config.replicas % d == 0)


def launch(
    folder: RunFolder,
    devices: int,
    progress: Progress,
    *,
    nodes: int = 1,
    rendezvous: str = "127.0.0.1:0",
    max_restarts: int = 0,
    timeout: int = 600,
) -> str:
    """Run a run that has its folder, on `devices` processes; returns its status.

    Args:
        folder: holds the resolved config.
        devices: processes in all.
        progress: of the first rank; with several processes, that rank shows its own.
        nodes: machines, each with an equal share of the processes; the same command runs on every one.
        rendezvous: host:port where nodes meet.
        max_restarts: times that a failed set of processes is started again, from the last checkpoint.
        timeout: seconds that processes wait for each other.

    Raises:
        UserError: what a rank found wrong with the input.
        ChildFailedError: a rank failed otherwise.
    """
    if devices == 1:
        return train(folder, progress)
    if devices % nodes:
        raise UserError(f"devices={devices} cannot be shared by launch.nodes={nodes} equally")
    settings = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=devices // nodes,
        run_id=folder.path.name,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous,
        max_restarts=max_restarts,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "normlab.engine.rank", str(folder.path), str(timeout))
    except ChildFailedError:
        status = folder.status()
        if status.get("user_error"):
            raise UserError(status["error"]) from None
        raise
    return folder.status()["status"]
