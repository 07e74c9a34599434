"""moments and affine against torch's own operations in float64."""

import pytest
import torch
from norm_files import images

import normlab.norm.ops  # noqa: F401  registers torch.ops.normlab

moments, affine = torch.ops.normlab.moments, torch.ops.normlab.affine
sums, input_gradient = torch.ops.normlab.sums, torch.ops.normlab.input_gradient

SHAPES = {
    "one position": (3, 5, 1),
    "odd length": (2, 3, 7),
    "map": (4, 3, 5, 6),
    "one by one": (4, 3, 1, 1),
    "volume": (2, 5, 2, 3, 4),
    "one sample, one channel": (1, 1, 3, 3),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_moments_are_the_mean_and_the_biased_variance_over_the_positions(shape):
    x = images(*shape)
    var_NC, mean_NC = torch.var_mean(x.flatten(2), 2, correction=0)
    torch.testing.assert_close(moments(x), (mean_NC, var_NC), rtol=1e-13, atol=1e-13)


def test_moments_of_hand_counted_numbers():
    x_NCL = torch.tensor([[[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]]])
    mean_NC, var_NC = moments(x_NCL)
    assert mean_NC.tolist() == [[3.0, 5.0]]
    assert var_NC.tolist() == [[3.5, 0.0]]  # (4 + 1 + 0 + 9) / 4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_affine_scales_the_distance_from_the_anchor(shape):
    x = images(*shape)
    anchor_NC, scale_NC, shift_NC = images(3, *shape[:2], seed=1)
    anchor, scale, shift = (t.view(*shape[:2], *(1 for _ in shape[2:])) for t in (anchor_NC, scale_NC, shift_NC))
    torch.testing.assert_close(
        affine(x, anchor_NC, scale_NC, shift_NC), (x - anchor) * scale + shift, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_backward_pair_is_autograd_of_the_forward_pair(shape):
    """Of a function of x through its moments and through an affine map of them, whose anchor is a constant."""
    x, dy = images(*shape).requires_grad_(), images(*shape, seed=1)
    scale_NC, shift_NC, dmean_NC, dvar_NC = images(4, *shape[:2], seed=2)
    scale, shift = scale_NC.clone().requires_grad_(), shift_NC.clone().requires_grad_()
    var_NC, mean_NC = torch.var_mean(x.flatten(2), 2, correction=0)
    anchor_NC = mean_NC.detach()
    over = lambda t_NC: t_NC.view(*shape[:2], *(1 for _ in shape[2:]))  # noqa: E731
    y = (x - over(anchor_NC)) * over(scale) + over(shift)
    total = (y * dy).sum() + (mean_NC * dmean_NC).sum() + (var_NC * dvar_NC).sum()
    dx, dscale, dshift = torch.autograd.grad(total, (x, scale, shift))
    torch.testing.assert_close(sums(dy, x.detach(), anchor_NC), (dshift, dscale), rtol=1e-12, atol=1e-12)
    found = input_gradient(dy, x.detach(), anchor_NC, scale_NC, dmean_NC, dvar_NC)
    torch.testing.assert_close(found, dx, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_have_float32_moments(dtype):
    x = images(2, 3, 64, 64, dtype=dtype)
    mean_NC, var_NC = moments(x)
    assert mean_NC.dtype == var_NC.dtype == torch.float32
    var_exact, mean_exact = torch.var_mean(x.double(), (2, 3), correction=0)
    torch.testing.assert_close(mean_NC.double(), mean_exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var_NC.double(), var_exact, rtol=1e-6, atol=1e-6)
    assert affine(x, mean_NC, var_NC, mean_NC).dtype == dtype


def test_the_variance_survives_a_mean_of_ten_thousand_deviations():
    x = (images(2, 3, 32, 32) + 1e4).float()
    var_exact = x.double().var((2, 3), correction=0)
    torch.testing.assert_close(moments(x)[1].double(), var_exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_any_memory_layout(layout):
    x = images(4, 6, 5, 3)
    laid_out = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": torch.cat([x, x], 3)[..., :3],
    }[layout]
    torch.testing.assert_close(moments(laid_out), moments(x), rtol=1e-13, atol=1e-13)
    mean_NC, var_NC = moments(x)
    torch.testing.assert_close(affine(laid_out, mean_NC, var_NC, mean_NC), affine(x, mean_NC, var_NC, mean_NC))
