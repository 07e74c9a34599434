"""What a measurement depends on besides the code: processor, threads, versions, commit, kernels in use."""

import os
import platform
from pathlib import Path
from typing import Any, Literal

import torch

from normlab.errors import UserError
from normlab.norm import kernels
from normlab.versions import PACKAGES, commit, version

Device = Literal["auto", "cpu", "cuda"]


def find_device(name: Device) -> torch.device:
    """auto: the GPU if there is one. Raises UserError if there is none and it is asked for."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU here; allowed: cpu, auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def set_threads(threads: int | None) -> None:
    """None leaves torch's own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def machine(device: Device) -> dict[str, Any]:
    """For people who compare: what measured this."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "device": find_device(device).type,
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": {package: version(package) for package in (*PACKAGES, "triton", "pillow")},
        "commit": commit(),
        "kernels": kernels.status(),
    }


def _processor() -> str:
    """The model's name; on Linux, platform.processor() does not know it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
