"""Start the ranks of a run: this process for one device, torch's elastic launcher for several."""

import contextlib
import logging
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from normlab.config import Config
from normlab.errors import DiskFullError, RunError, UserError
from normlab.launch.life import train
from normlab.launch.peer import MEETING, STOPPED
from normlab.processes.lifetimes import LAUNCHER
from normlab.progress import Progress
from normlab.runs.folder import RunFolder

SECRET = ".rendezvous"  # file in the folder of a run that several nodes share
TOGETHER = 5  # seconds; what ends within them of the first failure may be its cause


def num_devices(config: Config) -> int:
    """Processes of a run. auto: as many GPUs as can share the replicas equally, or a process a node on the CPU.

    Raises UserError if the nodes cannot share the replicas equally.
    """
    if config.devices != "auto":
        return config.devices
    nodes = config.launch.get("nodes", 1)
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
    nodes: Annotated[int, Ge(1)] = 1,
    rendezvous: str = "127.0.0.1:0",
    max_restarts: Annotated[int, Ge(0)] = 0,
    timeout: Annotated[int, Ge(1), Le(10**9)] = 600,
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
        RunError: a rank failed otherwise, or was killed.
        Interrupted: a signal came; the ranks had time to save.
    """
    _check_nodes(nodes, devices, rendezvous)
    if devices == 1:
        return train(folder, progress)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # one cause is told, and by normlab
    settings: dict[str, Any] = {
        "min_nodes": nodes,
        "max_nodes": nodes,
        "nproc_per_node": devices // nodes,
        "rdzv_backend": "c10d",
        "rdzv_configs": {"join_timeout": timeout, "read_timeout": timeout},
        "max_restarts": max_restarts,
        "monitor_interval": 0.1,
        "signals_to_handle": "SIGQUIT",  # the others are ours: to wait for ranks that save, whatever comes meanwhile
    }
    meeting = _meeting_of_nodes(folder, rendezvous, settings) if nodes > 1 else _meeting_here(settings)
    try:
        with meeting as config:
            elastic_launch(config, sys.executable)("-m", "normlab.launch.rank", str(folder.path), str(timeout))
    except (RendezvousConnectionError, RendezvousTimeoutError):
        raise UserError(
            f"launch.nodes={nodes}: they did not all meet at launch.rendezvous={rendezvous} within {timeout} s; "
            "the same command runs on every node, and the host is one of them"
        ) from None
    except ChildFailedError as error:
        if {failure.exitcode for failure in error.failures.values()} != {STOPPED + folder.status().get("signal", 0)}:
            raise _cause(error, folder) from None
    if folder.is_over:
        (folder.path / SECRET).unlink(missing_ok=True)
    return folder.status()["status"]


@contextlib.contextmanager
def _meeting_here(settings: dict[str, Any]) -> Iterator[LaunchConfig]:
    """Launcher and ranks of one machine meet in a folder of this user's alone.

    A store behind a port would listen on every address, and what launchers leave in it is a pickle: whoever reached the
    port could run code as this user. Ranks talk over the loopback interface.
    """
    with tempfile.TemporaryDirectory(prefix="normlab-") as folder:
        settings["rdzv_configs"]["store_type"] = "file"
        here: dict[str, Any] = {"run_id": "run", "rdzv_endpoint": f"{folder}/launcher", "local_addr": "localhost"}
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        own = {MEETING: folder, "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        with _environment(own):
            yield LaunchConfig(**settings, **here)


@contextlib.contextmanager
def _meeting_of_nodes(folder: RunFolder, rendezvous: str, settings: dict[str, Any]) -> Iterator[LaunchConfig]:
    """Launchers meet behind a port; what they leave there has a name that only those know who can read the run."""
    run_id = f"{folder.path.name}-{_secret(folder)}"
    with _environment({}):
        yield LaunchConfig(**settings, run_id=run_id, rdzv_endpoint=rendezvous)


@contextlib.contextmanager
def _environment(own: dict[str, str]) -> Iterator[None]:
    """For this launcher's ranks, which inherit it."""
    # A store that the launcher served to all attempts would give restarted ranks the addresses of those that are gone.
    own = own | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", LAUNCHER: str(os.getpid())}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _secret(folder: RunFolder) -> str:
    """Of all nodes of a run: the first one writes it into the folder that they share."""
    file = folder.path / SECRET
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as written:
            written.write(secrets.token_hex(16) + "\n")
    until = time.monotonic() + 10
    while not (secret := file.read_text()).endswith("\n") and time.monotonic() < until:
        time.sleep(0.05)  # another node is about to
    return secret.strip()


def _cause(error: ChildFailedError, folder: RunFolder) -> UserError | RunError:
    """Of all ranks that failed, the one that made the others fail: a killed one, or the first to say why."""
    first = min(failure.timestamp for failure in error.failures.values())
    soon = {r: f for r, f in error.failures.items() if f.timestamp - first < TOGETHER}  # the launcher killed the later
    told = {f.exitcode: f.message for f in soon.values()}
    for kind in (DiskFullError, UserError):
        if kind.exit_status in told:
            return kind(_message(told[kind.exit_status]))
    for rank, failure in soon.items():
        if failure.exitcode < 0:
            reason = f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}"
            with contextlib.suppress(DiskFullError):
                folder.set_status("failed", error=reason)
            return RunError(f"the run failed: {reason}; the same command goes on from the last checkpoint")
    status = folder.status()
    if status["status"] == "failed":
        return RunError(f"the run failed: {status['error']}; traceback: {folder.traceback}")
    return RunError("; ".join(_message(message) for message in told.values()))


def _message(recorded: Any) -> str:
    """Of what a rank recorded, as "UserError: the line"."""
    return recorded["message"].partition(": ")[2] if isinstance(recorded, dict) else str(recorded)


def _check_nodes(nodes: int, devices: int, rendezvous: str) -> None:
    if devices % nodes:
        raise UserError(f"devices={devices} cannot be shared by launch.nodes={nodes} equally")
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"launch.rendezvous={rendezvous}: expected host:port, for example node1:29500")
    if nodes > 1 and int(port) == 0:
        raise UserError(f"launch.nodes={nodes}: nodes meet at launch.rendezvous=host:port, for example node1:29500")
