"""Where and how precisely a rank computes."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normlab.config import Config

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def this_device() -> torch.device:
    """The GPU of this rank if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def prepare(config: Config, device: torch.device) -> None:
    """Determinism: on the CPU the same command gives the same numbers, bit for bit."""
    if device.type == "cpu":
        _keep_memory()
        if config.compile:
            torch.use_deterministic_algorithms(True, warn_only=True)
        else:
            torch.set_deterministic_debug_mode("warn")  # the same, without importing torch's compiler
        # Else torch.empty writes NaN first: a pass more over every tensor that a kernel then writes.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    else:
        torch.cuda.set_device(device)


def _keep_memory() -> None:
    """Have the C library keep what tensors give back, for the next ones.

    glibc returns large blocks to the system, which maps each anew, page by page, with zeros: a tenth of an update of
    the networks that scenes take. What a process takes at its most stays the same. Elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that older ones take


def seed(device: torch.device, number: int) -> None:
    """Seed torch's global generators of the CPU and of this device; torch.manual_seed looks for all there may be."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def place(model: nn.Module, config: Config, device: torch.device) -> nn.Module:
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(device, dtype(config), memory_format=layout)  # type: ignore[call-overload]


def dtype(config: Config) -> torch.dtype:
    """Of parameters and inputs."""
    return torch.float64 if config.precision == "fp64" else torch.float32


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    """Mixed precision for the forward pass, or nothing."""
    if config.precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[config.precision])


def rank_and_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """In the order of the ranks: how many values are summed in one go does not change a bit of them."""
    _, size = rank_and_size()
    if size == 1:
        return values
    everyone = [torch.empty_like(values) for _ in range(size)]
    dist.all_gather(everyone, values)
    return _added(everyone)


def average_gradients(model: DistributedDataParallel) -> None:
    """Have DDP average gradients in the order of the ranks, on the CPU.

    gloo adds up in an order that depends on a value's place in its bucket, and DDP lays its buckets out anew after the
    first pass of each attempt: from three ranks on, a resumed run would differ in the last bits. What it costs: each
    rank receives the gradients of all others, R - 1 times their size, where gloo moves up to twice that size.
    """
    model.register_comm_hook(None, _average_in_order)


def _average_in_order(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    own = bucket.buffer()
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    work = dist.all_gather(everyone, own.div_(len(everyone)), async_op=True)
    return work.get_future().then(lambda _: _added(everyone))


def _added(everyone: list[Tensor]) -> Tensor:
    """One after another, so that each element is added up in the same order."""
    total, *others = everyone
    for other in others:
        total = total.add_(other)
    return total


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
