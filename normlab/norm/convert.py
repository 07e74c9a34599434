"""Swap the normalizers of any model, and reparametrize its convolutions."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normlab.norm.weight import Convolution

# Their subclasses too: SyncBatchNorm, and timm's layers with an activation inside. A LayerNorm over the last axis
# normalizes each position by itself, and frozen batch norms are constants: neither has moments to choose, both stay.
Norm = _BatchNorm | _InstanceNorm | nn.GroupNorm


@dataclass
class Conversion:
    """What `convert` did: names in the converted model, in module order."""

    norms: list[str] = field(default_factory=list)  # the layers that took the place of the old normalizers
    weights: list[str] = field(default_factory=list)  # the convolutions whose weight is now parametrized


class NormAct(nn.Sequential):
    """The parts of one of timm's fused layers: `norm`, then `drop`, then `act`."""

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(OrderedDict(norm=norm, drop=drop, act=act))


def convert(
    model: nn.Module,
    norm: Callable[[int], nn.Module] | None,
    weight: Callable[[Convolution], None] | None = None,
    *,
    select: Callable[[str], bool] = lambda name: True,
) -> Conversion:
    """Replace, in place, every batch, instance and group norm of `model` by `norm(channels)`; None removes them.

    The new layer keeps the old one's gamma, beta and running statistics where it has a tensor that means the same,
    and its device, dtype, training flag and requires_grad; eps, momentum and affine are its own. A layer that
    appears in several places is replaced by one layer. The activation inside timm's fused layers stays.
    `weight` then parametrizes each convolution (normlab.norm.weight); None leaves the weights alone.
    `select` limits both to modules whose name, in `model`, it accepts.
    """
    norms: dict[nn.Module, nn.Module] = {}  # old layer -> what stands in its place
    conversion = Conversion()
    for name, old in list(model.named_modules(remove_duplicate=False)):
        if isinstance(old, Norm) and select(name):
            if old not in norms:
                norms[old] = _replacement(old, norm, model)
                conversion.norms.append(f"{name}.norm" if isinstance(norms[old], NormAct) else name)
            model.set_submodule(name, norms[old])
    if weight is not None:
        for name, module in list(model.named_modules()):
            if isinstance(module, Convolution) and select(name):
                weight(module)
                conversion.weights.append(name)
    return conversion


def _replacement(old: Norm, norm: Callable[[int], nn.Module] | None, model: nn.Module) -> nn.Module:
    if norm is None:
        new: nn.Module = nn.Identity()
    else:
        new = norm(old.num_channels if isinstance(old, nn.GroupNorm) else old.num_features)
        stored_like = next(chain(old.parameters(), model.parameters()), torch.empty(0))
        new.to(stored_like.device, stored_like.dtype)
        _carry_over(old, new)
    parts = dict(old.named_children())
    if "act" in parts:
        new = NormAct(new, parts["drop"], parts["act"])
    return new.train(old.training)


@torch.no_grad()
def _carry_over(old: Norm, new: nn.Module) -> None:
    """Copy the tensors that mean the same in both layers."""
    old_parameters, new_parameters = dict(old.named_parameters()), dict(new.named_parameters())
    for name in ("weight", "bias"):
        if name in old_parameters and name in new_parameters:
            ours, theirs = new_parameters[name], old_parameters[name]
            ours.copy_(theirs).requires_grad_(ours.requires_grad and theirs.requires_grad)
    if not isinstance(old, _BatchNorm) or not _has_measured(old):
        return  # a running variance of single instances leaves out how far their means lie apart
    old_buffers, new_buffers = dict(old.named_buffers()), dict(new.named_buffers())
    carried = {name for name in new_buffers if name.startswith("running_")}
    if carried <= old_buffers.keys():
        carried.add("num_batches_tracked")  # else some statistics start afresh, and so does the count of their steps
    for name in carried & old_buffers.keys() & new_buffers.keys():
        new_buffers[name].copy_(old_buffers[name])


def _has_measured(old: _BatchNorm) -> bool:
    """Whether its running statistics are more than its start; the new layer has a start of its own."""
    mean, var = old.running_mean, old.running_var
    return mean is not None and var is not None and (mean.is_meta or bool(mean.any() or (var != 1).any()))
