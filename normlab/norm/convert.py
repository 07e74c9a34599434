"""Swap the normalizers of any model, and reparametrize its convolutions."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from normlab.norm.weight import Convolution, WeightStandardization

# Their subclasses too: SyncBatchNorm, and timm's layers with an activation inside. A LayerNorm over the last axis
# normalizes each position by itself: it has no moments to choose, and stays.
_NORMS = _BatchNorm | _InstanceNorm | nn.GroupNorm
# Known by name: torchvision has one, as have detectron2, DETR and others, and they have no class in common.
_FROZEN = {"FrozenBatchNorm2d", "FrozenBatchNormAct2d"}


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

    Frozen batch norms (FrozenBatchNorm2d of torchvision and others, timm's FrozenBatchNormAct2d) are batch norms too.
    The new layer keeps the old one's gamma, beta and running statistics where it has a tensor that means the same,
    and its device, dtype, training flag and requires_grad; eps, momentum and affine are its own, and so is whether
    gamma and beta are parameters. A layer that appears in several places is replaced by one layer. The activation
    inside timm's fused layers stays.
    `weight` then parametrizes each convolution (normlab.norm.weight), but those that standardize their weight already;
    None leaves the weights alone.
    `select` limits both to modules whose name, in `model`, it accepts.
    """
    norms: dict[nn.Module, nn.Module] = {}  # old layer -> what stands in its place
    conversion = Conversion()
    for name, old in list(model.named_modules(remove_duplicate=False)):
        if _is_norm(old) and select(name):
            if old not in norms:
                norms[old] = _replacement(old, norm, model)
                conversion.norms.append(f"{name}.norm" if isinstance(norms[old], NormAct) else name)
            model.set_submodule(name, norms[old])
    if weight is not None:
        for name, module in list(model.named_modules()):
            if isinstance(module, Convolution) and select(name) and not _is_standardized(module):
                weight(module)
                conversion.weights.append(name)
    return conversion


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or _is_frozen(module)


def _is_frozen(module: nn.Module) -> bool:
    """Whether it is a batch norm of constants, by any library."""
    return any(of.__name__ in _FROZEN for of in type(module).__mro__)


def _num_channels(old: nn.Module) -> int:
    if isinstance(old, nn.GroupNorm):
        return old.num_channels
    if isinstance(old, _BatchNorm | _InstanceNorm):
        return old.num_features
    return len(_tensors(old)["weight"])


def _is_standardized(conv: nn.Module) -> bool:
    """Whether a convolution standardizes its weight already, by an earlier conversion or as timm's StdConv do."""
    own = parametrize.is_parametrized(conv, "weight") and any(
        isinstance(step, WeightStandardization)
        for step in conv.parametrizations.weight  # type: ignore[union-attr]
    )
    return own or any("StdConv" in kind.__name__ for kind in type(conv).__mro__)


def _replacement(old: nn.Module, norm: Callable[[int], nn.Module] | None, model: nn.Module) -> nn.Module:
    if norm is None:
        new: nn.Module = nn.Identity()
    else:
        new = norm(_num_channels(old))
        stored = chain(old.parameters(), old.buffers(), model.parameters())
        stored_like = next((tensor for tensor in stored if tensor.is_floating_point()), torch.empty(0))
        new.to(stored_like.device, stored_like.dtype)
        _carry_over(old, new)
    parts = dict(old.named_children())
    if "act" in parts:
        new = NormAct(new, parts["drop"], parts["act"])
    return new.train(old.training)


@torch.no_grad()
def _carry_over(old: nn.Module, new: nn.Module) -> None:
    """Copy the tensors that mean the same in both layers, be they parameters or, in a frozen layer, buffers."""
    theirs, ours = _tensors(old), _tensors(new)
    for name in {"weight", "bias"} & theirs.keys() & ours.keys():
        ours[name].copy_(theirs[name])
        if isinstance(theirs[name], nn.Parameter):  # buffers do not say what a layer that learns them should do
            ours[name].requires_grad_(ours[name].requires_grad and theirs[name].requires_grad)
    if isinstance(old, _InstanceNorm | nn.GroupNorm) or not _has_measured(theirs):
        return  # a running variance of single instances leaves out how far their means lie apart
    carried = {name for name in ours if name.startswith("running_")}
    if carried <= theirs.keys():
        carried.add("num_batches_tracked")  # else some statistics start afresh, and so does the count of their steps
    for name in carried & theirs.keys() & ours.keys():
        ours[name].copy_(theirs[name])


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers."""
    return dict(chain(layer.named_parameters(), layer.named_buffers()))


def _has_measured(old: Mapping[str, Tensor]) -> bool:
    """Whether a layer's running statistics are more than its start; the new layer has a start of its own."""
    mean, var = old.get("running_mean"), old.get("running_var")
    return mean is not None and var is not None and (mean.is_meta or bool(mean.any() or (var != 1).any()))
