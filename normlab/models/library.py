"""Any classifier of timm or torchvision, by name, for any image shape it can take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.errors import UserError
from normlab.models.classifier import find_classifier
from normlab.models.names import check_model_name

_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_fetches: ContextVar[bool] = ContextVar("fetches", default=True)


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Inside, a pretrained network is built as it is, but for its weights: others will be loaded into it."""
    before = _fetches.set(False)
    try:
        yield
    finally:
        _fetches.reset(before)


def timm_model(shape: tuple[int, int, int], num_classes: int, *, name: str, pretrained: bool = False) -> nn.Module:
    """A timm classifier for images of shape (C, H, W). Untrained, all its gammas are 1.

    Some of timm's networks would start the last gamma of each block at 0: a trick that the papers train without
    (Distinct, Sec. 3; SN, Sec. 4.1).

    Raises UserError if timm has no such name, the network cannot take the shape, or weights cannot be fetched.
    """
    check_model_name("timm", name)
    import timm

    def build() -> nn.Module:
        fetch = pretrained and _fetches.get()
        options: dict[str, Any] = {"in_chans": shape[0], "num_classes": num_classes, "pretrained": fetch}
        cfg = timm.get_pretrained_cfg(name)
        if cfg is not None and cfg.fixed_input_size:
            options["img_size"] = shape[1:]
        model = timm.create_model(name, **options)
        if not pretrained:
            _start_gammas_at_one(model)
        return model

    return _checked(build, name, shape)


def torchvision_model(
    shape: tuple[int, int, int], num_classes: int, *, name: str, pretrained: bool = False
) -> nn.Module:
    """A torchvision classifier for images of shape (C, H, W), without auxiliary heads.

    Where C is not 3 its first convolution is adapted as timm does: one channel stands for three equal ones.

    Raises UserError if torchvision has no such name, the network cannot take the shape, or weights cannot be fetched.
    """
    check_model_name("torchvision", name)
    import torchvision

    def build() -> nn.Module:
        fetch = pretrained and _fetches.get()
        options: dict[str, Any] = {} if pretrained else {"num_classes": num_classes}
        if fetch:
            options["weights"] = "DEFAULT"
        if name in _WITH_AUXILIARY_HEADS:
            options["aux_logits"] = False
            if pretrained:
                options["transform_input"] = True  # theirs want another range
            if not fetch:
                options["init_weights"] = not pretrained  # the default warns where it is left unsaid
        model = torchvision.models.get_model(name, **options)
        if pretrained:
            _renew_classifier(model, num_classes)
        _adapt_first_convolution(model, shape[0])
        return model

    return _checked(build, name, shape)


def resnet_ssn(shape: tuple[int, int, int], num_classes: int, *, name: str = "resnet50") -> nn.Module:
    """A ResNet or ResNeXt of torchvision as the released sparse SN has it: the stem pools without padding, rounding up.

    Of images whose sides are multiples of 4, maps have the size of torchvision's and see other pixels. Raises UserError
    if torchvision's `name` is none of these.
    """
    from torchvision.models import ResNet

    model = torchvision_model(shape, num_classes, name=name)
    if not isinstance(model, ResNet):
        raise UserError(
            f"model.name={name} is no ResNet; allowed: resnet50, resnext50_32x4d and others of torchvision's"
        )
    model.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return model


def _start_gammas_at_one(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (_BatchNorm, nn.GroupNorm)) and module.affine:
            nn.init.ones_(module.weight)


def _renew_classifier(model: nn.Module, num_classes: int) -> None:
    """A new last layer, unless the trained one has as many classes already."""
    name = find_classifier(model)
    trained = model.get_submodule(name)
    if isinstance(trained, nn.Linear) and trained.out_features != num_classes:
        model.set_submodule(name, nn.Linear(trained.in_features, num_classes))


def _adapt_first_convolution(model: nn.Module, channels: int) -> None:
    import timm

    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.in_channels = channels
    first.weight = nn.Parameter(timm.models.adapt_input_conv(channels, first.weight.detach()))


def _checked(build: Callable[[], nn.Module], name: str, shape: tuple[int, int, int]) -> nn.Module:
    """The built model, in training mode, once it has classified a blank image."""
    try:
        model = build()
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape))
    except (OSError, RuntimeError, ValueError, AssertionError, IndexError) as error:
        size, reason = "x".join(map(str, shape)), str(error).partition("\n")[0]
        raise UserError(f"model '{name}' cannot be built for images of {size} (C x H x W): {reason}") from error
    return model.train()
