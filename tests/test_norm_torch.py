"""bn, in, ln and gn against torch's own layers: output, every gradient, running statistics, state dict."""

from functools import partial

import pytest
import torch
from norm_files import build, gradients, images, learned, randomize
from torch import nn
from torch.nn import functional as F  # noqa: N812

C = 6
GROUPS = 2  # three channels each: a gradient through two values is all cancellation
SHAPES = {
    "(N,C)": (5, C),
    "(N,C,L)": (4, C, 7),
    "2d": (3, C, 5, 4),
    "3d": (2, C, 2, 3, 4),
    "one sample": (1, C, 3, 5),
}
POSITIONED = {name: shape for name, shape in SHAPES.items() if len(shape) > 2}
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


class LayerNormPerChannel(nn.LayerNorm):
    """LayerNorm over (C, ...) whose weight and bias are per channel: torch's has one for each element."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, elementwise_affine=False)
        self.weight, self.bias = nn.Parameter(torch.ones(shape[0])), nn.Parameter(torch.zeros(shape[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        to_x = (-1, *(1 for _ in x.shape[2:]))
        normalized = F.layer_norm(x, self.normalized_shape)
        return normalized * self.weight.reshape(to_x) + self.bias.reshape(to_x)


def torch_layer(name: str, shape: tuple[int, ...], **options) -> nn.Module:
    if name == "bn":
        return BATCH_NORMS[len(shape)](C, **options)
    if name == "in":
        return INSTANCE_NORMS[len(shape)](C, affine=True)
    return nn.GroupNorm(GROUPS, C) if name == "gn" else LayerNormPerChannel(shape[1:])


CASES = [
    *(pytest.param("bn", shape, id=f"bn {key}") for key, shape in SHAPES.items()),
    *(pytest.param("ln", shape, id=f"ln {key}") for key, shape in SHAPES.items()),
    *(pytest.param("gn", shape, id=f"gn {key}") for key, shape in SHAPES.items()),
    *(pytest.param("in", shape, id=f"in {key}") for key, shape in POSITIONED.items()),
]
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 2e-5},
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_output_and_every_gradient(name, shape, dtype, training):
    theirs = randomize(torch_layer(name, shape)).to(dtype).train(training)
    ours = build(name, C, groups=GROUPS).to(dtype).train(training)
    ours.load_state_dict(theirs.state_dict())
    assert_close = partial(torch.testing.assert_close, **TOLERANCE[dtype])
    for x in (images(*shape, dtype=dtype), images(*shape, seed=1, dtype=dtype)):
        assert_close(gradients(ours, x, learned(ours)), gradients(theirs, x, learned(theirs)))
    assert_close(ours.state_dict(), theirs.state_dict())  # after two steps, the running statistics too


@pytest.mark.parametrize("shape", [SHAPES["2d"], SHAPES["3d"]], ids=["2d", "3d"])
@pytest.mark.parametrize("name", ["bn", "in", "ln", "gn"])
def test_channels_last_in_channels_last_out(name, shape):
    theirs, ours = randomize(torch_layer(name, shape)).double(), build(name, C, groups=GROUPS).double()
    ours.load_state_dict(theirs.state_dict())
    x = images(*shape)
    laid_out = x.contiguous(memory_format=LAYOUTS[len(shape)])
    torch.testing.assert_close(
        gradients(ours, laid_out, learned(ours)), gradients(theirs, x, learned(theirs)), rtol=1e-12, atol=1e-12
    )
    leaf = laid_out.requires_grad_()
    y = ours(leaf)
    y.backward(torch.ones_like(y))
    assert y.is_contiguous(memory_format=LAYOUTS[len(shape)])
    assert leaf.grad.is_contiguous(memory_format=LAYOUTS[len(shape)])


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.003, None])
def test_running_statistics_and_evaluation_of_batch_norm(momentum):
    theirs = nn.BatchNorm2d(C, momentum=momentum).double()
    ours = build("bn", C, momentum=momentum).double()
    for step in range(4):
        x = images(3, C, 4, 5, seed=step)
        theirs(x), ours(x)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-13, atol=1e-13)
    assert ours.num_batches_tracked == 4
    x = images(1, C, 1, 1)  # evaluation asks nothing of the batch
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-13, atol=1e-13)
    assert ours.num_batches_tracked == 4


def test_without_affine_there_are_no_parameters():
    theirs, ours = nn.BatchNorm2d(C, affine=False).double(), build("bn", C, affine=False).double()
    ours.load_state_dict(theirs.state_dict())
    assert not list(ours.parameters())
    x = images(3, C, 4, 5)
    torch.testing.assert_close(gradients(ours, x, {}), gradients(theirs, x, {}), rtol=1e-12, atol=1e-12)


def test_eps_is_torchs():
    x = images(3, C, 4, 5)
    torch.testing.assert_close(build("bn", C, eps=0.5).double()(x), nn.BatchNorm2d(C, eps=0.5).double()(x))
