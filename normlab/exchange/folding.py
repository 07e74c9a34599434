"""Norm layers that are linear in evaluation, folded into the convolution or linear layer ahead of them.

In evaluation a layer whose statistics are all stored (BN, HN, EN; SN where hard ratios choose them) is one affine map
of each channel: weight' = scale * weight, bias' = scale * bias + shift. Which layer a norm follows, and whether
anything else reads what it normalizes, is seen in a forward pass: so any model folds that runs.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from normlab.norm.algebra import Algebra, mix
from normlab.norm.layer import Normalizer
from normlab.norm.ops import accumulation_dtype, affine

Foldable = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass
class Folding:
    """What `fold` did, by names in the model.

    Attributes:
        folded: norm layer -> the layer that it went into.
        affine: norm layers that are linear, but follow no layer of their own: a multiplication and an addition.
        kept: norm layers that need the statistics of each sample.
        weights: reparametrized weights that are plain now.
    """

    folded: dict[str, str] = field(default_factory=dict)
    affine: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)


class Affine(nn.Module):
    """x (N, C, ...) -> scale * x + shift, by channel."""

    def __init__(self, scale_C: Tensor, shift_C: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale_C), nn.Parameter(shift_C)

    def forward(self, x: Tensor) -> Tensor:
        axes = (1, -1, *(1 for _ in range(x.ndim - 2)))
        return x * self.scale.view(axes) + self.shift.view(axes)


class PlainNormalizer(nn.Module):
    """A layer in evaluation, in operations that torch knows without normlab; its tensors keep their names."""

    weight: Tensor | None
    bias: Tensor | None
    mean_logits: Tensor | None
    var_logits: Tensor | None
    stored: Tensor | None

    def __init__(self, layer: Normalizer) -> None:
        super().__init__()
        self.algebra: Algebra = layer.algebra
        self.correction = int(layer.profile == "official")
        self.tied = layer.tied
        weight, bias = layer.stored_gain()
        given = {"weight": weight, "bias": bias, "mean_logits": layer.mean_logits, "var_logits": layer.var_logits}
        for name, tensor in given.items():
            if tensor is None or isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:  # of a frozen layer
                self.register_buffer(name, tensor)
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in layer.buffers()) else torch.float32
        self.register_buffer("stored", layer.stored_statistics(dtype))

    def forward(self, x: Tensor) -> Tensor:
        maps = x.unsqueeze(-1) if x.ndim == 2 else x
        wide, axes = accumulation_dtype(x), tuple(range(2, maps.ndim))
        var_NC, mean_NC = torch.var_mean(maps.to(wide), axes, correction=self.correction)
        var_logits = self.mean_logits if self.tied else self.var_logits
        given = self.weight, self.bias, self.mean_logits, var_logits, self.stored
        weight, bias, a, b, stored = (None if t is None else t.to(wide) for t in given)
        mixed = mix(self.algebra, 1, mean_NC, var_NC, weight, bias, a, b, stored)
        return affine(maps, mean_NC, mixed.scale_NC, mixed.shift_NC).view(x.shape)


def is_linear(layer: Normalizer) -> bool:
    """Whether evaluation is an affine map of each channel: what it takes of every statistic was stored in training."""
    chosen = zip((layer.mean_scopes, layer.var_scopes), layer.ratios(), strict=True)
    across = {name for name, _ in layer.stored_names().values()}
    return all(name in across or not ratio[..., k].any() for names, ratio in chosen for k, name in enumerate(names))


@torch.no_grad()
def channel_map(layer: Normalizer) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a linear layer in evaluation, in float64: what it makes of zeros and of ones."""
    exact = copy.deepcopy(layer).double().cpu().eval()
    constants = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    shift_C, sum_C = exact(constants.expand(2, layer.num_channels, 2).contiguous())[..., 0]
    return sum_C - shift_C, shift_C


@torch.no_grad()
def fold(model: nn.Module, forward: Callable[[nn.Module], object]) -> Folding:
    """Fold what can be, in place, for evaluation; the model then holds no layer or parametrization of normlab's.

    Args:
        model: holds the statistics to use; it is put in evaluation mode.
        forward: runs the model on an example.
    """
    model.eval()
    found = Folding(weights=_plain_weights(model))
    ahead, instead = _followed(model, forward), dict[nn.Module, nn.Module]()
    for name, layer in model.named_modules():
        if not isinstance(layer, Normalizer):
            continue
        if not is_linear(layer):
            found.kept.append(name)
            instead[layer] = PlainNormalizer(layer).eval()
            continue
        scale_C, shift_C = channel_map(layer)
        if name in ahead:
            found.folded[name] = ahead[name]
            _multiply(model.get_submodule(ahead[name]), scale_C, shift_C)  # type: ignore[arg-type]
            instead[layer] = nn.Identity()
        else:
            found.affine.append(name)
            like = next(chain(model.parameters(), model.buffers()))
            instead[layer] = Affine(scale_C.to(like), shift_C.to(like))
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if layer in instead:
            model.set_submodule(name, instead[layer])
    return found


def _plain_weights(model: nn.Module) -> list[str]:
    names = [name for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight")]
    for name in names:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=True)
    return names


def _multiply(layer: Foldable, scale_C: Tensor, shift_C: Tensor) -> None:
    weight = layer.weight
    bias = torch.zeros_like(scale_C) if layer.bias is None else layer.bias.double().cpu()
    scaled = weight.double().cpu() * scale_C.view(-1, *(1 for _ in weight.shape[1:]))
    layer.weight = nn.Parameter(scaled.to(weight).contiguous(memory_format=_layout(weight)))
    layer.bias = nn.Parameter((bias * scale_C + shift_C).to(weight))


def _layout(weight: Tensor) -> torch.memory_format:
    channels_last = weight.ndim == 4 and not weight.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


# ---- which layer a norm follows --------------------------------------------------------------------------------------


def _followed(model: nn.Module, forward: Callable[[nn.Module], object]) -> dict[str, str]:
    """Norm layer -> the layer whose output it alone reads; where either runs more than once, there is none."""
    watch = _Watch()
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, Foldable):
            handles.append(module.register_forward_hook(watch.made_by(name)))
        elif isinstance(module, Normalizer):
            handles.append(module.register_forward_pre_hook(watch.enters(name)))
            handles.append(module.register_forward_hook(watch.leaves))
    try:
        with watch:
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return {
        norm: makers[0]
        for norm, makers in watch.inputs.items()
        if len(makers) == 1 and makers[0] and watch.runs[makers[0]] == 1 and watch.reads[makers[0]] == 1
    }


class _Watch(TorchDispatchMode):
    """Sees which operators read the output of a convolution or linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.makers = WeakTensorKeyDictionary()  # output -> name of the layer
        self.runs: dict[str, int] = {}
        self.reads: dict[str, int] = {}  # by operators and norms; what a norm does inside is one
        self.inputs: dict[str, list[str | None]] = {}  # norm -> who made its input, at each run
        self.inside = False

    def made_by(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.runs[name] = self.runs.get(name, 0) + 1
            if not isinstance(module, nn.Linear) or output.ndim == 2:  # else its channels are not axis 1
                self.makers[output] = name

        return hook

    def enters(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            maker = self.makers.get(args[0])
            self.inputs.setdefault(name, []).append(maker)
            self._read(args[0])
            self.inside = True

        return hook

    def leaves(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.inside = False

    def _read(self, tensor: Tensor) -> None:
        maker = self.makers.get(tensor)
        if maker is not None:
            self.reads[maker] = self.reads.get(maker, 0) + 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._read(leaf)
        return func(*args, **(kwargs or {}))
