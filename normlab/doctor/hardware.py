"""The machine: cores, memory, shared memory, open files, GPUs."""

import os
import platform
import resource
from pathlib import Path

import torch

from normlab.doctor.check import Check, Checks
from normlab.processes.threads import cores

GB = 1e9
_SHARED_MEMORY = Path("/dev/shm")
# What the two workers of one GPU hold ready at 8x32 on ImageNet: two batches each of 256 float32 images of 3x224x224.
_LOADER_BYTES = 2 * 2 * 256 * 3 * 224 * 224 * 4
_OPEN_FILES = 1024


def machine() -> dict[str, str]:
    """Name of a check of the machine -> what there is."""
    checks = (cpu, memory, shared_memory, open_files, gpus)
    return {"system": platform.platform()} | {result.name: result.result for check in checks for result in check()}


def cpu() -> Checks:
    own, all_there_are = cores(), os.cpu_count() or 1
    of = f" of {all_there_are}" if own < all_there_are else ""
    yield Check("CPU", f"{own}{of} cores; a run takes as many threads as its network is worth", "ok", "")


def memory() -> Checks:
    """Of the machine, or of the container where it has less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    allowed = min(total, int(text)) if text.isdecimal() else total
    low = allowed < 2 * GB
    advice = "a process needs about 1 GB before any data: devices=1 workers=0" if low else ""
    yield Check("memory", f"{allowed / GB:.1f} GB", "warn" if low else "ok", advice)


def shared_memory() -> Checks:
    if not _SHARED_MEMORY.is_dir():
        return
    state = os.statvfs(_SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    result = f"{free / GB:.2f} GB free in {_SHARED_MEMORY}"
    if free < _LOADER_BYTES:
        need = f"two loader workers at 8x32 on ImageNet need {_LOADER_BYTES / GB:.1f} GB"
        yield Check("shared memory", result, "warn", f"{need}: docker run --shm-size=8g, or workers=0")
    else:
        yield Check("shared memory", result)


def open_files() -> Checks:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = ["unlimited" if limit == resource.RLIM_INFINITY else str(limit) for limit in (soft, hard)]
    low = soft != resource.RLIM_INFINITY and soft < _OPEN_FILES
    advice = f"loader workers pass tensors as open files: ulimit -n {shown[1]}" if low else ""
    yield Check("open files", f"{shown[0]} (up to {shown[1]})", "warn" if low else "ok", advice)


def gpus() -> Checks:
    """Each GPU with its memory, compute capability and the precisions it is fast in."""
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for the CPU"
        advice = "the driver answers no torch: nvidia-smi tells whether it runs" if torch.version.cuda else ""
        yield Check("GPU", f"none; {built}", "warn" if advice else "ok", advice)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        supported = f"sm_{capability[0]}{capability[1]}"
        precisions = "fp16 and bf16" if capability >= (8, 0) else "fp16"
        result = f"{properties.name}, {properties.total_memory / GB:.0f} GB, {supported}, {precisions}"
        with torch.cuda.device(index):
            total = torch.ones(1000, device="cuda").sum().item()  # raises where torch has no kernels for it
        wrong = total != 1000
        yield Check(f"GPU {index}", result, "fail" if wrong else "ok", "it adds wrongly: replace it" if wrong else "")
