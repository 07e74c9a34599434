"""Where each normalizer sits in a network: execution order, receptive field, kernel of its convolution, shortcut.

`trace` runs a copy of the network once, for its shapes alone. Every tensor that derives from the input carries an
`_Origin`; a dispatch mode sees each operator and derives the origin of what it returns. So any model works that runs,
whatever its modules are called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from normlab.dynamics.dry_run import DispatchMode, dry_copy, dry_device

aten = torch.ops.aten


@dataclass(frozen=True)
class NormSite:
    """One normalizing layer and its place in the network.

    kernel_size is of the convolution that feeds the layer (None: a linear layer or nothing does); shortcut tells
    whether the layer normalizes a projection that is added to a deeper branch; receptive_field is in pixels of the
    input, along its largest side, and may exceed the image (None: the network is none of images, or was not traced).
    """

    name: str
    kernel_size: tuple[int, ...] | None
    shortcut: bool
    receptive_field: int | None


@dataclass(frozen=True)
class _Origin:
    """How a tensor came out of the input. `field` and `jump` (distance between neighbours) are in pixels, per axis."""

    field: tuple[float, ...]
    jump: tuple[float, ...]
    depth: int = 0  # convolutions and linear layers on the longest way from the input
    kernel_size: tuple[int, ...] | None = None  # of the last of them
    norm: str | None = None  # the one normalizer passed since the last of them
    norms: frozenset[str] = frozenset()  # all normalizers on the ways from the input


def trace(model: nn.Module, shape: Sequence[int], is_norm: Callable[[nn.Module], bool]) -> list[NormSite]:
    """The normalizing layers that a forward pass in evaluation mode runs, in the order in which it runs them.

    Convolutions and local pooling enlarge the receptive field, a linear layer on a flattened image makes it the whole
    image. Global statistics do not count, neither those of normalizers nor of gates such as squeeze-and-excitation,
    as in Distinct, where the 53 layers of ResNet50 span 7 to 427 pixels.

    Args:
        model: left as it is; a copy runs.
        shape: of one sample, without the batch: (C, H, W), or (C, T, H, W), (C, L), (D,).
        is_norm: which modules are normalizing layers.
    """
    try:
        return _trace_on(dry_device(shape), model, shape, is_norm)
    except RuntimeError:  # an operator that cannot work without values
        return _trace_on("cpu", model, shape, is_norm)


@torch.no_grad()
def _trace_on(
    device: str, model: nn.Module, shape: Sequence[int], is_norm: Callable[[nn.Module], bool]
) -> list[NormSite]:
    model, image = dry_copy(model, shape, 2, device)
    tracer = _Tracer(image)
    for name, module in model.named_modules():
        if is_norm(module):
            module.register_forward_hook(tracer.norm_hook(name))
    with tracer:
        model(image)
    return [
        NormSite(name, origin.kernel_size, name in tracer.shortcuts, round(max(origin.field, default=1)))
        for name, origin in tracer.sites.items()
    ]


class _Tracer(DispatchMode):
    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        ones = (1.0,) * (image.dim() - 2)
        self.origins = WeakTensorKeyDictionary()
        self.origins[image] = _Origin(field=ones, jump=ones)
        self.image_shape = image.shape
        self.sites: dict[str, _Origin] = {}  # by normalizer, at its first call
        self.shortcuts: set[str] = set()

    def norm_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            origin = self.origins[args[0]]
            self.sites.setdefault(name, origin)
            self.origins[output] = replace(origin, norm=name, norms=origin.norms | {name})

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        known = [self.origins[t] for t in _tensors((args, kwargs)) if t in self.origins]
        if known:
            if func.overloadpacket in (aten.add, aten.add_) and len(known) == 2:
                self._note_shortcut(*known)
            origin = self._step(func, _named_arguments(func, args, kwargs or {}), outputs, _merge(known))
            for tensor in _tensors(outputs):
                self.origins[tensor] = origin
        return outputs

    def _note_shortcut(self, a: _Origin, b: _Origin) -> None:
        """A normalized sum of unequal depth is a projection shortcut, unless it starts from the shallow normalizer:
        then the shortcut is the identity, as in MobileNetV2."""
        shallow, deep = sorted((a, b), key=lambda origin: origin.depth)
        if shallow.norm and deep.norm and shallow.depth < deep.depth and shallow.norm not in deep.norms:
            self.shortcuts.add(shallow.norm)

    def _step(self, func: Any, named: dict[str, Any], outputs: Any, origin: _Origin) -> _Origin:
        """The origin of what an operator returns, given the merged origin of what it reads."""
        operator = func.overloadpacket
        if operator is aten.convolution:
            kernel = tuple(named["weight"].shape[2:])
            origin = _slide(origin, kernel, named["stride"], named["dilation"], transposed=named["transposed"])
            return replace(origin, depth=origin.depth + 1, kernel_size=kernel, norm=None)
        if operator in (aten.mm, aten.addmm):
            rows = named["self" if operator is aten.mm else "mat1"].shape[0]
            field = origin.field
            if rows == self.image_shape[0]:  # a row is a whole sample, not one of its pixels
                field = tuple(max(f, size) for f, size in zip(field, self.image_shape[2:], strict=True))
            return replace(origin, field=field, depth=origin.depth + 1, kernel_size=None, norm=None)
        if "kernel_size" in named:  # pooling
            kernel = named["kernel_size"]
            return _slide(origin, kernel, named["stride"] or kernel, named.get("dilation", [1]))
        if operator.__name__.startswith("upsample"):
            sizes = zip(origin.jump, named["self"].shape[2:], outputs.shape[2:], strict=True)
            return replace(origin, jump=tuple(jump * before / after for jump, before, after in sizes))
        return origin


def _slide(
    origin: _Origin,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    transposed: bool = False,
) -> _Origin:
    """A window moves over the image. Over other axes, as a convolution over channels (ECA), nothing changes."""
    axes = len(origin.field)
    if len(kernel) == axes + 1 and kernel[0] == 1:  # 1-d pooling runs as 2-d
        kernel, stride, dilation = kernel[1:], stride[1:], dilation[-1:]
    if len(kernel) not in (1, axes):
        return origin
    k, s, d = (tuple(v) * (axes if len(v) == 1 else 1) for v in (kernel, stride, dilation))
    dense = tuple(j / s_ for j, s_ in zip(origin.jump, s, strict=True)) if transposed else origin.jump
    field = tuple(f + (k_ - 1) * d_ * j for f, k_, d_, j in zip(origin.field, k, d, dense, strict=True))
    jump = dense if transposed else tuple(j * s_ for j, s_ in zip(origin.jump, s, strict=True))
    return replace(origin, field=field, jump=jump)


def _merge(origins: Sequence[_Origin]) -> _Origin:
    """What an operator reads, as one: the largest field and jump, the deepest way, the normalizer if only one."""
    deepest = max(origins, key=lambda origin: origin.depth)
    passed = {origin.norm for origin in origins} - {None}
    return replace(
        deepest,
        field=tuple(max(axis) for axis in zip(*(o.field for o in origins), strict=True)),
        jump=tuple(max(axis) for axis in zip(*(o.jump for o in origins), strict=True)),
        norm=passed.pop() if len(passed) == 1 else None,
        norms=frozenset().union(*(o.norms for o in origins)),
    )


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _named_arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operator by their names in its schema, defaults included."""
    arguments = func._schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return defaults | {a.name: value for a, value in zip(arguments, args, strict=False)} | kwargs
