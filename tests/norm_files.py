"""What the tests of the normalizers share: the layers of conf/norm, random states, gradients."""

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from normlab import schema
from normlab.config import conf_dir
from normlab.norm.layer import Normalizer

NORMS = sorted(path.stem for path in (conf_dir() / "norm").glob("*.yaml") if path.stem != "none")


def build(name: str, num_channels: int, **changes: Any) -> Normalizer:
    """The layer of conf/norm/<name>.yaml, as a run would build it."""
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "norm" / f"{name}.yaml")) | changes
    return schema.bind(schema.check_target(node, "norm"))(num_channels)


def randomize(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic at random, variances positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if tensor.is_floating_point():
                tensor += 0.5 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                if "var" in name and "logits" not in name:
                    tensor.abs_().add_(0.1)
    return layer


def choosing(mean: str | list[str], var: str | list[str], **options: Any) -> Normalizer:
    """Hard SN of four channels that has chosen these scopes, one for each of its ratio groups."""
    scopes = ["in", "ln", "bn"]
    layer = randomize(Normalizer(4, mean=scopes, var=scopes, hard=True, **options))
    with torch.no_grad():
        for logits, chosen in ((layer.mean_logits, mean), (layer.var_logits, var)):
            names = [chosen] * layer.ratio_groups if isinstance(chosen, str) else chosen
            logits.copy_(torch.tensor([[scope == name for scope in scopes] for name in names]).view_as(logits))
    return layer


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random (N, C, ...) whose channels, and samples, differ in mean and deviation."""
    generator = torch.Generator().manual_seed(seed)
    x, scale, shift = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    corner = tuple(slice(None) if axis < 2 else slice(1) for axis in range(len(shape)))
    return (x * (1 + scale[corner].abs()) + shift[corner]).to(dtype)


def gradients(function: Callable[[Tensor], Tensor], x: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output "y", and the gradients of "x" and of each parameter, for one fixed random gradient of the output."""
    x = x.detach().requires_grad_()
    y = function(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return {"y": y.detach()} | dict(
        zip(("x", *parameters), torch.autograd.grad(y, (x, *parameters.values()), dy), strict=True)
    )


def learned(layer: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
