"""Inputs that break careless formulas: constant, far from zero, narrow, empty, or one value to a scope."""

import pytest
import torch
from norm_files import NORMS, build, choosing, gradients, images, learned, randomize
from torch import nn

from normlab.norm.layer import Normalizer, ScopeError

EPS_32 = torch.finfo(torch.float32).eps
CORRECTED = "brn"  # moves its output towards the running statistics: test_renorm.py
FROZEN = "bn_frozen"
MEASURING = [name for name in NORMS if name not in (CORRECTED, FROZEN, "bn_std")]  # which subtracts no mean
THREE = ["in", "ln", "bn"]


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("constant", [0.0, 3.0, -1e4])
@pytest.mark.parametrize("name", MEASURING)
def test_a_constant_input_gives_the_bias(name, constant, replicas):
    layer = randomize(build(name, 8))
    layer.replicas = replicas
    found = gradients(layer, torch.full((4, 8, 3, 4), constant), learned(layer))
    y = found.pop("y")
    assert torch.equal(y, layer.bias.view(1, 8, 1, 1).expand_as(y))
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("name", MEASURING)
def test_a_constant_that_float32_cannot_sum_exactly_gives_nearly_the_bias(name):
    layer = randomize(build(name, 8))
    y = layer(torch.full((4, 8, 9, 7), 0.1))
    rounding = 2 * EPS_32 * 0.1 / layer.eps**0.5 * layer.weight.abs().max()
    assert (y - layer.bias.view(1, 8, 1, 1)).abs().max() <= rounding


@pytest.mark.parametrize("name", MEASURING)
def test_a_mean_of_ten_thousand_deviations(name):
    """A float32 mean of 1e4 deviations is itself off by up to EPS_32 * 1e4 of one. The float64 result for the same
    input is met to that, relative to its largest value; logits learn from differences, which lose another factor."""
    single, double = randomize(build(name, 8)), randomize(build(name, 8)).double()
    x = (images(4, 8, 9, 7) + 1e4).float()
    found, exact = gradients(single, x, learned(single)), gradients(double, x.double(), learned(double))
    for key, value in found.items():
        error = (value.double() - exact[key]).abs().max() / exact[key].abs().max()
        assert error <= (8 if "logits" in key else 1) * EPS_32 * 1e4, key


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_narrow_inputs_keep_their_dtype_and_lose_only_the_last_rounding(name, dtype, training):
    narrow, wide = (randomize(build(name, 8)).train(training) for _ in range(2))
    x = images(4, 8, 6, 6, dtype=dtype)
    y = narrow(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, wide(x.float()).to(dtype))
    for key, gradient in gradients(narrow, x, learned(narrow)).items():
        assert gradient.isfinite().all()
        assert gradient.dtype == (dtype if key in ("y", "x") else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_values_whose_squares_overflow_float16(dtype):
    x = images(4, 8, 6, 6) * 1e3
    y = build("sn", 8)(x.to(dtype))
    torch.testing.assert_close(y.double(), build("sn", 8).double()(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["bn", "sn", "hn", "gn"])
def test_a_whole_layer_in_a_narrow_dtype(name, dtype):
    narrow, wide = randomize(build(name, 8)).to(dtype), randomize(build(name, 8))
    x = images(4, 8, 6, 6, dtype=dtype)
    y = narrow(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), wide(x.float()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_autocast_changes_nothing_inside_the_layer(name, dtype):
    inside, outside = (randomize(build(name, 8)) for _ in range(2))
    x = images(4, 8, 6, 6, dtype=dtype)
    with torch.autocast("cpu", dtype):
        y = inside(x)
    assert torch.equal(y, outside(x))
    torch.testing.assert_close(inside.state_dict(), outside.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 6, 3, 3), (0, 6), (2, 6, 0)], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_an_empty_input_gives_an_empty_output_and_no_statistics(name, shape):
    layer = randomize(build(name, 6))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    assert y.dtype == x.dtype
    y.sum().backward()
    assert x.grad.shape == shape
    assert all(not parameter.grad.any() for parameter in learned(layer).values())  # zeros, for DDP, and not None
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("mean", "var", "shape", "said"),
    [
        (["in"], ["in"], (4, 6, 1, 1), "scope 'in' cannot give the mean"),
        (["in"], ["in"], (4, 6), "scope 'in' cannot give the mean"),
        (["bn"], ["bn"], (1, 6, 1, 1), "scope 'bn' cannot give the mean"),
        (["in", "bn"], ["in", "bn"], (1, 6, 1, 1), r"scope 'in\+bn' cannot give the mean"),
        (["ln"], ["in"], (4, 6, 1, 1), "scope 'in' cannot give the variance"),
    ],
)
def test_a_scope_of_one_value_is_refused_in_one_line(mean, var, shape, said):
    layer = Normalizer(6, mean=mean, var=var)
    with pytest.raises(ScopeError, match=said) as error:
        layer(torch.randn(shape))
    assert "\n" not in str(error.value)
    assert "one value; use a scope with more samples or channels" in str(error.value)
    assert all(
        torch.equal(a, b) for a, b in zip(layer.buffers(), Normalizer(6, mean=mean, var=var).buffers(), strict=True)
    )


def test_one_sample_a_replica_counts_as_one_sample():
    layer = Normalizer(6, mean=["bn"], var=["bn"])
    layer.replicas = 4
    with pytest.raises(ScopeError, match=r"1 sample\(s\) a replica and 1 position"):
        layer(torch.randn(4, 6))
    synchronized = Normalizer(6, mean=["bn"], var=["bn"], sync=True)
    synchronized.replicas = 4
    assert synchronized(torch.randn(4, 6)).isfinite().all()


@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (4, 6), (1, 6, 1, 1), (1, 6)], ids=str)
def test_a_mixture_with_one_scope_that_has_values_works(shape):
    layer = randomize(build("sn", 6))
    assert all(t.isfinite().all() for t in gradients(layer, torch.randn(shape), learned(layer)).values())
    assert all(buffer.isfinite().all() for buffer in layer.buffers())


def test_evaluation_of_batch_scopes_asks_nothing_of_the_input():
    for name in ("bn", "hn", "sn", "brn"):
        assert build(name, 6).eval()(torch.randn(1, 6)).isfinite().all()


def test_wrong_inputs_are_refused():
    layer = Normalizer(6, mean=THREE, var=THREE)
    with pytest.raises(ValueError, match=r"expected \(N, 6, ...\), got \(2, 5, 3\)"):
        layer(torch.randn(2, 5, 3))
    with pytest.raises(ValueError, match="expected"):
        layer(torch.randn(6))
    layer.replicas = 3
    with pytest.raises(ValueError, match="4 rows cannot be 3 replicas"):
        layer(torch.randn(4, 6, 3))


def test_in_place_activations_after_the_layer_are_safe():
    layer = randomize(build("sn", 6)).double()
    x = images(4, 6, 3, 3)
    in_place = gradients(nn.Sequential(layer, nn.ReLU(inplace=True)), x, learned(layer))
    torch.testing.assert_close(in_place, gradients(nn.Sequential(layer, nn.ReLU()), x, learned(layer)))


# ---- what a hard ratio leaves out ------------------------------------------------------------------------------------

BAD = [float("nan"), float("inf"), 3e19]  # the square of the last is beyond float32


@pytest.mark.parametrize("options", [{}, {"mix": "std"}, {"ratio_groups": 2}, {"profile": "official"}], ids=str)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("scope", ["in", "ln"])
def test_a_scope_that_is_not_chosen_does_not_reach_other_samples(scope, bad, options):
    """BN is one of three: nothing of a bad sample comes out in the others, forward or backward."""
    layer, alone = choosing(scope, scope, **options), choosing(scope, scope, **options)
    x = images(4, 4, 3, 5, dtype=torch.float32)
    clean = x.clone()
    x[1] += bad
    dy = images(4, 4, 3, 5, seed=1, dtype=torch.float32)
    others = [0, 2, 3]
    outputs = []
    for norm, given in ((layer, x), (alone, clean)):
        leaf = given.requires_grad_()
        y = norm(leaf)
        ways = [torch.autograd.grad(y, leaf, dy, create_graph=again, retain_graph=True) for again in (False, True)]
        outputs.append([y[others], *(dx[others] for (dx,) in ways)])
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("profile", ["paper", "official"])
@pytest.mark.parametrize("mix", ["var", "std"])
def test_a_scope_that_is_not_chosen_does_not_reach_other_channels(mix, profile):
    """The variance of LN overflows in a sample whose channels are far apart, and IN has been chosen."""
    layer = choosing("in", "in", mix=mix, profile=profile)
    x = images(4, 4, 3, 5, dtype=torch.float32)
    x[1, 2] = 3e19
    found = gradients(layer, x, learned(layer))
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("profile", ["paper", "official"])
def test_stored_statistics_that_are_not_chosen_do_not_count(profile):
    layer = choosing("in", "ln", profile=profile).eval()
    x = images(4, 4, 3, 5, dtype=torch.float32)
    expected = gradients(layer, x, learned(layer))
    layer.running_mean.fill_(torch.nan), layer.running_var.fill_(torch.inf)
    torch.testing.assert_close(gradients(layer, x, learned(layer)), expected)


def test_groups_of_channels_choose_for_themselves():
    layer = choosing(["in", "bn"], ["in", "bn"], ratio_groups=2)
    x = images(4, 4, 3, 5, dtype=torch.float32)
    x[1] += torch.nan
    leaf = x.requires_grad_()
    y = layer(leaf)
    (dx,) = torch.autograd.grad(y.sum(), leaf)
    for t in (y, dx):
        assert t[[0, 2, 3], :2].isfinite().all() and t[:, 2:].isnan().all()


def test_a_scope_that_is_chosen_still_counts():
    x = images(4, 4, 3, 5, dtype=torch.float32)
    x[1] += torch.nan
    assert not choosing("bn", "in")(x).isfinite().any()
    assert not choosing("in", "bn")(x).isfinite().any()
