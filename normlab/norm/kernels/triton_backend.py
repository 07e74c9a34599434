"""Triton kernels on CUDA devices: whether they can run here, and what they serve.

The kernels compile for a shape class at its first call (seconds; Triton keeps them on disk). They never wait for the
device and never look at values, so they can be captured in CUDA graphs, after a first call outside of one, which tries
them (trial.py).
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from normlab.norm.kernels import Backend, UnavailableError

_OLDEST = (7, 0)  # compute capability that Triton compiles for


def load(device: torch.device) -> Backend:
    """The kernels.

    Raises:
        UnavailableError: there is no GPU, or an old one, or Triton is not installed.
    """
    if not torch.cuda.is_available():
        raise UnavailableError("no GPU")
    if importlib.util.find_spec("triton") is None:
        raise UnavailableError("Triton is not installed")
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _OLDEST:
        raise UnavailableError(f"the GPU is older than compute capability {'.'.join(map(str, _OLDEST))}")
    return Backend("Triton kernels", kernels())


def kernels() -> dict[str, Callable[..., Any]]:
    """By operation. They run on CUDA tensors, and on others in Triton's interpreter (TRITON_INTERPRET=1)."""
    from normlab.norm.kernels import triton_activations, triton_algebra

    modules = (triton_activations, triton_algebra)
    return {name: getattr(module, name) for module in modules for name in module.KERNELS}
