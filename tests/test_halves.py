"""Mean-only and std-only batch norm against their formulas in float64, in training, evaluation and replicas."""

import pytest
import torch
from norm_files import gradients, images, learned, randomize
from torch import Tensor

from normlab.norm.halves import HalfBatchNorm

C = 5
HALVES = ["mean", "std"]


def half_of(x: Tensor, mean: Tensor, var: Tensor, half: str, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (1, C, *[1] * (x.ndim - 2))
    part = x - mean.view(shape) if half == "mean" else x / (var.view(shape) + eps).sqrt()
    return part * weight.view(shape) + bias.view(shape)


def formula(x: Tensor, half: str, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    return half_of(x, x.mean(axes), x.var(axes, correction=0), half, eps, weight, bias)


def random_layer(half: str, **options) -> HalfBatchNorm:
    return randomize(HalfBatchNorm(C, half=half, **options)).double()


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("size", [(4, C, 3, 2), (8, C), (4, C, 1, 1), (4, C, 7)])
def test_training_equals_the_formula_in_each_replica(half, replicas, size):
    layer = random_layer(half)
    layer.replicas, layer.calls = replicas, []
    x = images(*size)
    plain = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    expected = gradients(
        lambda x: torch.cat([formula(b, half, layer.eps, **plain) for b in x.split(len(x) // replicas)]), x, plain
    )
    torch.testing.assert_close(gradients(layer, x, learned(layer)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("affine", [True, False])
def test_evaluation_uses_what_was_stored(half, affine):
    layer = random_layer(half, affine=affine).eval()
    x = images(4, C, 3, 2)
    weight, bias = (layer.weight, layer.bias) if affine else (torch.ones(C).double(), torch.zeros(C).double())
    expected = half_of(x, layer.running_mean, layer.running_var, half, layer.eps, weight, bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("half", HALVES)
def test_running_statistics_are_batch_norms(half):
    ours, theirs = random_layer(half), torch.nn.BatchNorm2d(C).double()
    theirs.load_state_dict(ours.state_dict())
    for step in range(3):
        x = images(4, C, 3, 2, seed=step)
        ours(x), theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
