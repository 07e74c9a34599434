"""Tensors of a file that may come from anyone, looked at before a network takes them.

torch's `load_state_dict` converts what it is given: it drops imaginary parts, makes numbers of true and false, and
turns what is too large for its type to infinity. Here each of these is an error of one line.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from normlab.errors import UserError
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder

Tensors = dict[str, Tensor]


def check_values(path: Path, pairs: Iterable[tuple[str, Tensor, Tensor]]) -> None:
    """Raise UserError unless each tensor's values can be kept: its name in the file, itself, and the model's own."""
    for name, tensor, own in pairs:
        reason = _unfit(tensor, own, is_variance=name.rpartition(".")[2].startswith("running_var"))
        if reason is not None:
            raise UserError(f"{path}: {name} {reason}")


def load_own(path: Path, model: nn.Module, run: RunFolder) -> Tensors:
    """The tensors of a run's own file. Raises UserError where the model has no such tensor to take one."""
    found, own = load_tensors(path), model.state_dict()
    if any(name not in own or own[name].shape != tensor.shape for name, tensor in found.items()):
        raise UserError(f"{path}: these are not tensors of the model that {run.run_file} names")
    check_values(path, ((name, tensor, own[name]) for name, tensor in found.items()))
    return found


def _unfit(tensor: Tensor, own: Tensor, is_variance: bool) -> str | None:
    """What is wrong with the values of a tensor; None where nothing is."""
    if _kind(tensor) != _kind(own):
        return f"holds {_kind(tensor)}; expected {_kind(own)}"
    if not tensor.to(torch.float64).isfinite().all():
        return "has values that are not finite"
    if not tensor.to(own.dtype).isfinite().all():
        return f"has values above {torch.finfo(own.dtype).max:.3g}, the largest of the model's {_words(own.dtype)}"
    if is_variance and (tensor < 0).any():
        return "has values below 0, and is a variance"
    return None


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "true and false"
    if tensor.is_complex():
        return "complex numbers"
    return "floating-point numbers" if tensor.is_floating_point() else "whole numbers"


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
