"""Start the ranks of a run: this process for one device, torch's elastic launcher for several."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from normlab.config import Config
from normlab.engine.rank import BAD_INPUT, STOPPED
from normlab.engine.record import RunFolder
from normlab.engine.session import Stop
from normlab.engine.train import train
from normlab.errors import UserError
from normlab.report.progress import Progress


def num_devices(config: Config) -> int:
    """Processes of a run. auto: as many GPUs as can share the replicas equally, or a process a node on the CPU.

    Raises UserError if the nodes cannot share the replicas equally.
    """
    if config.devices != "auto":
        return config.devices
    nodes = max(1, config.launch.get("nodes", 1))
    available = nodes * max(1, torch.cuda.device_count())  # nodes are alike
    equal = [d for d in range(nodes, available + 1, nodes) if config.replicas % d == 0]
    if not equal:
        raise UserError(
            f"launch.nodes={nodes} cannot share the {config.replicas} replicas of batch={config.batch} equally"
        )
    return max(equal)


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
        folder: holds the resolved config; several nodes share it.
        devices: processes in all.
        progress: of the first rank; with several processes, that rank shows its own.
        nodes: machines, each with an equal share of the processes; the same command runs on every one.
        rendezvous: host:port where nodes meet; the host is one of them.
        max_restarts: times that a failed set of processes is started again, from the last checkpoint.
        timeout: seconds that nodes and processes wait for each other.

    Raises:
        UserError: what a rank found wrong with the input, or nodes that do not meet.
        SystemExit: stopped by a signal before the ranks could save.
        ChildFailedError: a rank failed otherwise.
    """
    _check_nodes(nodes, devices, rendezvous)
    if devices == 1:
        return train(folder, progress)
    settings = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=devices // nodes,
        run_id=folder.path.name,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous,
        rdzv_configs={"join_timeout": timeout, "read_timeout": timeout},
        max_restarts=max_restarts,
        monitor_interval=0.1,
        signals_to_handle=",".join(number.name for number in Stop.SIGNALS),
    )
    try:
        with _handlers_restored():
            elastic_launch(settings, sys.executable)("-m", "normlab.engine.rank", str(folder.path), str(timeout))
    except (RendezvousConnectionError, RendezvousTimeoutError):
        raise UserError(
            f"launch.nodes={nodes}: they did not all meet at launch.rendezvous={rendezvous} within {timeout} s; "
            "the same command runs on every node, and the host is one of them"
        ) from None
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        if status == BAD_INPUT:
            raise UserError(folder.status()["error"]) from None
        if status <= STOPPED:
            raise
    except SignalException as stop:  # it was passed on to the ranks, which had time to save
        if folder.status()["status"] != "interrupted":
            sys.exit(STOPPED + stop.sigval)
    return folder.status()["status"]


@contextmanager
def _handlers_restored() -> Iterator[None]:
    """The elastic launcher leaves its own behind, and a scheduler's are to have the signal next."""
    previous = {number: signal.getsignal(number) for number in Stop.SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_nodes(nodes: int, devices: int, rendezvous: str) -> None:
    if nodes < 1 or devices % nodes:
        raise UserError(f"devices={devices} cannot be shared by launch.nodes={nodes} equally")
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"launch.rendezvous={rendezvous}: expected host:port, for example node1:29500")
    if nodes > 1 and int(port) == 0:
        raise UserError(f"launch.nodes={nodes}: nodes meet at launch.rendezvous=host:port, for example node1:29500")
