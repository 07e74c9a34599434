"""Whether processes of this machine can add up numbers together, as the ranks of a run do."""

import os
from datetime import timedelta
from multiprocessing import get_context

import torch
import torch.distributed as dist

from normlab.doctor.check import Check, Checks

SECONDS = 30


def gloo() -> Checks:
    yield _check("gloo", 2, "the loopback interface may be blocked: GLOO_SOCKET_IFNAME=lo; only devices=1 works")


def nccl() -> Checks:
    if torch.cuda.is_available():
        yield _check("nccl", torch.cuda.device_count(), "NCCL_DEBUG=INFO tells why; only devices=1 works")


def _check(backend: str, ranks: int, advice: str) -> Check:
    words = f"{ranks} process{'es' if ranks > 1 else ''}"
    try:
        all_reduce(backend, ranks)
    except RuntimeError as error:
        return Check(backend, f"{words}: {error}", "fail", advice)
    return Check(backend, f"{words} added up their numbers")


def all_reduce(backend: str, ranks: int) -> None:
    """Start processes that meet on loopback and sum their ranks. Raises RuntimeError if they do not, in time."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = get_context("spawn")
    processes = [context.Process(target=_rank, args=(backend, rank, ranks, store.port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    slow = [process for process in processes if process.is_alive()]
    for process in slow:
        process.kill()
        process.join()
    if slow:
        raise RuntimeError(f"no answer within {SECONDS} s")
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a process ended with status {next(p.exitcode for p in processes if p.exitcode)}")


def _rank(backend: str, rank: int, ranks: int, port: int) -> None:
    timeout = timedelta(seconds=SECONDS)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its status tells, and its traceback helps nobody
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    total = torch.tensor(float(rank + 1), device=device)
    dist.all_reduce(total)
    dist.destroy_process_group()
    if total.item() != ranks * (ranks + 1) / 2:
        raise SystemExit(3)
