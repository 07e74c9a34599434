"""Swap the normalizers of any model, and reparametrize its convolutions."""

import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from normlab.errors import UserError, unknown
from normlab.norm.weight import Convolution, WeightStandardization

# Their subclasses too: SyncBatchNorm, and timm's layers with an activation inside. A LayerNorm over the last axis
# normalizes each position by itself: it has no moments to choose, and stays.
_NORMS = _BatchNorm | _InstanceNorm | nn.GroupNorm
# Known by name: torchvision has one, as have detectron2, DETR and others, and they have no class in common.
_FROZEN = {"FrozenBatchNorm2d", "FrozenBatchNormAct2d"}
# They know the parameters that they found, and no others: new ones would stay unsynchronized, without a word.
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}

_SETTINGS = ("eps", "momentum")


class NothingReplacedWarning(UserWarning):
    """A norm was given, and the model has none that it could replace: it is what it was."""


class Change(NamedTuple):
    """A setting of a layer; None where it has no such setting, and for the momentum of an average over all steps."""

    old: float | None
    new: float | None


@dataclass
class Conversion:
    """What `convert` did: names in the converted model, in module order.

    Attributes:
        norms: the layers that took the place of the old normalizers.
        weights: the convolutions whose weight is now parametrized.
        eps, momentum: of each of the norms, what the old layer had and what the new one has.
    """

    norms: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    eps: dict[str, Change] = field(default_factory=dict)
    momentum: dict[str, Change] = field(default_factory=dict)


class NormAct(nn.Sequential):
    """The parts of one of timm's fused layers: `norm`, then `drop`, then `act`."""

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(OrderedDict(norm=norm, drop=drop, act=act))


def convert(
    model: nn.Module,
    norm: Callable[..., nn.Module] | None,
    weight: Callable[[Convolution], None] | None = None,
    *,
    select: Callable[[str], bool] = lambda name: True,
    keep: Collection[Literal["eps", "momentum"]] = (),
    stacklevel: int = 2,
) -> Conversion:
    """Replace, in place, every batch, instance and group norm of `model` by `norm(channels)`; None removes them.

    Frozen batch norms (FrozenBatchNorm2d of torchvision and others, timm's FrozenBatchNormAct2d) are batch norms too.
    The new layer keeps the old one's gamma, beta and running statistics where it has a tensor that means the same,
    and its device, dtype, training flag and requires_grad; affine is its own, and so is whether gamma and beta are
    parameters. So are eps and momentum, unless `keep` names them: then it is built with those of the old layer, as far
    as that has them, `norm(channels, eps=..., momentum=...)`. What is returned has both, old and new. A layer that
    appears in several places is replaced by one layer. The activation inside timm's fused layers stays.
    `weight` then parametrizes each convolution, as `parametrize_weights` does; None leaves the weights alone.
    `select` limits both to modules whose name, in `model`, it accepts.

    Warns NothingReplacedWarning where a norm is given and there is none to replace, as in most transformers, at
    `stacklevel` as of warnings.warn. Raises UserError if `keep` names anything else, or the model is wrapped for
    several devices already.
    """
    for setting in keep:
        if setting not in _SETTINGS:
            raise unknown("convert: keep", setting, _SETTINGS)
    _refuse_wrapped(model)
    norms: dict[nn.Module, nn.Module] = {}  # old layer -> what stands in its place
    conversion = Conversion()
    for name, old in list(model.named_modules(remove_duplicate=False)):
        if is_replaceable(old) and select(name):
            if old not in norms:
                norms[old] = _replacement(old, norm, model, keep)
                conversion.norms.append(f"{name}.norm" if isinstance(norms[old], NormAct) else name)
                _note_settings(conversion, old, norms[old])
            model.set_submodule(name, norms[old])
    if norm is not None and not norms:
        others = Counter(type(m).__name__ for name, m in model.named_modules() if _is_like_a_norm(m) and select(name))
        there = ", ".join(f"{number} {kind}" for kind, number in others.most_common())
        warnings.warn(
            f"no batch, instance or group norm to replace: the model stays as it is{f' ({there})' if there else ''}",
            NothingReplacedWarning,
            stacklevel=stacklevel,
        )
    if weight is not None:
        conversion.weights = parametrize_weights(model, weight, select)
    return conversion


def parametrize_weights(
    model: nn.Module,
    weight: Callable[[Any], None],
    select: Callable[[str], bool] = lambda name: True,
    kinds: Any = Convolution,
) -> list[str]:
    """Parametrize each layer of these kinds (normlab.norm.weight), but those that standardize their weight already.

    Returns the names of those that it was done to.
    """
    _refuse_wrapped(model)
    done = []
    for name, module in list(model.named_modules()):
        if isinstance(module, kinds) and select(name) and not _is_standardized(module):
            weight(module)
            done.append(name)
    return done


def _refuse_wrapped(model: nn.Module) -> None:
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                raise UserError(
                    f"convert: the model is wrapped by {kind.__name__}, which misses new parameters; "
                    "convert it before it is wrapped"
                )


def is_replaceable(module: nn.Module) -> bool:
    """Whether it is a batch, instance or group norm, or a frozen batch norm."""
    return isinstance(module, _NORMS) or _is_frozen(module)


def _is_like_a_norm(module: nn.Module) -> bool:
    """By its name: whatever normalizes in another way."""
    is_named_so = re.search(r"Norm(Act|alizer)?(\dd)?$", type(module).__name__)
    return bool(is_named_so) and not isinstance(module, NormAct)


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


def _settings(layer: nn.Module) -> dict[str, float | None]:
    """Those that the layer has. The momentum of an instance norm is there, but means nothing: it averages nothing."""
    own = _SETTINGS[:1] if isinstance(layer, _InstanceNorm) else _SETTINGS
    return {setting: getattr(layer, setting) for setting in own if hasattr(layer, setting)}


def _note_settings(conversion: Conversion, old: nn.Module, replacement: nn.Module) -> None:
    new = replacement.get_submodule("norm") if isinstance(replacement, NormAct) else replacement
    theirs, ours = _settings(old), _settings(new)
    for setting, noted in zip(_SETTINGS, (conversion.eps, conversion.momentum), strict=True):
        noted[conversion.norms[-1]] = Change(theirs.get(setting), ours.get(setting))


def _replacement(
    old: nn.Module, norm: Callable[..., nn.Module] | None, model: nn.Module, keep: Collection[str]
) -> nn.Module:
    if norm is None:
        new: nn.Module = nn.Identity()
    else:
        new = norm(_num_channels(old), **{s: value for s, value in _settings(old).items() if s in keep})
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
        if ours[name].numel() != theirs[name].numel():  # of a user's own layer, which means something else by it
            continue
        ours[name].copy_(theirs[name].view_as(ours[name]))
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
