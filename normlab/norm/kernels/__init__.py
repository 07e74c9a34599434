"""Kernels of the operations in normlab.norm.ops, by device; torch operations serve where there is none.

    NORMLAB_KERNELS=auto     the kernels that this machine can run (default)
    NORMLAB_KERNELS=torch    torch operations alone, which define what the kernels do
    status()                 {"cpu": "C++ kernels", "cuda": "torch operations: no GPU"}

A backend is a module with `load(device)`, which gives its name and kernels, or raises UnavailableError with the
reason. It runs at the first call on its device, and each kernel is tried there (trial.py): for one that fails or is
wrong there is a warning, and torch operations serve. A kernel returns NotImplemented for what it does not serve.
"""

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from normlab.errors import UserError
from normlab.norm.kernels import trial

_BACKENDS = {"cpu": "normlab.norm.kernels.native", "cuda": "normlab.norm.kernels.triton_backend"}
_CHOICES = ("auto", "torch")
_TORCH = "torch operations"
_definitions: dict[str, Callable[..., Any]] = {}  # by operation; `register` fills it


class UnavailableError(Exception):
    """A backend cannot run here; the message says why, in one line."""


class Backend(NamedTuple):
    """Who serves a device: the kernels by operation; none of them where torch operations serve."""

    name: str
    kernels: Mapping[str, Callable[..., Any]]


@cache
def backend(device: torch.device) -> Backend:
    """Who serves a device in this process.

    Raises:
        UserError: NORMLAB_KERNELS is none of its values.
    """
    chosen = os.environ.get("NORMLAB_KERNELS", "auto")
    if chosen not in _CHOICES:
        raise UserError(f"NORMLAB_KERNELS={chosen}: expected {' or '.join(_CHOICES)}")
    if chosen == "torch":
        return Backend(f"{_TORCH}: NORMLAB_KERNELS=torch", {})
    if device.type not in _BACKENDS:
        return Backend(f"{_TORCH}: no kernels for {device.type}", {})
    try:
        loaded = importlib.import_module(_BACKENDS[device.type]).load(device)
    except UnavailableError as error:
        return Backend(f"{_TORCH}: {error}", {})
    importlib.import_module("normlab.norm.ops")  # which registers the definitions
    fault = trial.fault(loaded.kernels, _definitions, device)
    if fault is None:
        return loaded
    warnings.warn(f"{loaded.name} are left out on {device}, and layers are slower: {fault}", stacklevel=2)
    return Backend(f"{_TORCH}: {fault}", {})


def in_transform() -> bool:
    """Whether a transform of torch.func is at work: grad, vmap, jvp, ... Its tensors have no memory of their own."""
    return torch._C._are_functorch_transforms_active()


def needs_operations(*tensors: Tensor) -> bool:
    """Whether derivatives come of torch's own operations alone: transforms, forward-mode AD, batched gradients."""
    if in_transform() or forward_ad._current_level >= 0:
        return True
    return any(torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)


def direct(name: str, x: Tensor) -> Callable[..., Any] | None:
    """A kernel for x that is called past torch's dispatcher, which costs more than the work on a small activation.

    None where there is none, and where torch has to see the operators: under torch.compile, in a mode, in a transform,
    on a tensor that is no plain one.
    """
    if torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter) or is_in_torch_dispatch_mode():
        return None
    if in_transform():
        return None
    return backend(x.device).kernels.get(name)


def status() -> dict[str, str]:
    """Device -> what serves it, and where that is torch, why. The first call may build the kernels (seconds)."""
    return {device: backend(torch.device(device)).name for device in _BACKENDS}


def register(library: torch.library.Library, definitions: Mapping[str, Callable[..., Any]]) -> None:
    """Put the kernels before their definitions in a library of operators, device by device."""
    _definitions.update(definitions)
    for device in _BACKENDS:
        for name, definition in definitions.items():
            library.impl(name, _kernel_or(definition, name), device.upper())


def _kernel_or(definition: Callable[..., Any], name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        kernel = backend(args[0].device).kernels.get(name)
        result = NotImplemented if kernel is None else kernel(*args)
        return definition(*args) if result is NotImplemented else result

    return run
