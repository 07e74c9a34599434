"""Weight standardization and weight normalization against the plain formulas in float64."""

import copy

import pytest
import torch
from torch import nn

from normlab.errors import UserError
from normlab.norm.weight import WeightStandardization, weight_normalization, weight_standardization

CONVOLUTIONS = {
    "1d": lambda: nn.Conv1d(3, 5, 4, dtype=torch.float64),
    "2d": lambda: nn.Conv2d(4, 6, (3, 2), bias=False, dtype=torch.float64),
    "3d": lambda: nn.Conv3d(2, 3, (1, 3, 3), dtype=torch.float64),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2, dtype=torch.float64),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, dtype=torch.float64),
    "pointwise": lambda: nn.Conv2d(7, 3, 1, dtype=torch.float64),
}
VARIANTS = {"ws": {}, "ws_mean": {"divide": False}, "ws_div": {"center": False}, "ws_affine": {"affine": True}}


def formula(weight: torch.Tensor, center: bool = True, divide: bool = True, eps: float = 1e-5) -> torch.Tensor:
    """WS, Eq. 2-6, filter by filter, weight by weight."""
    result = torch.empty_like(weight)
    for channel, values in enumerate(weight.flatten(1).tolist()):
        fan_in = len(values)
        mean = sum(values) / fan_in if center else 0.0
        deviations = [v - mean for v in values]
        std = (sum(d * d for d in deviations) / fan_in) ** 0.5 + eps if divide else 1.0
        result[channel] = torch.tensor([d / std for d in deviations]).view_as(result[channel])
    return result


@pytest.mark.parametrize("variant", ["ws", "ws_mean", "ws_div"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_equals_the_formula(kind, variant):
    conv = CONVOLUTIONS[kind]()
    stored = conv.weight.detach().clone()
    with torch.no_grad():
        stored += 0.3
        conv.weight += 0.3
    weight_standardization(conv, **VARIANTS[variant])
    torch.testing.assert_close(conv.weight, formula(stored, **VARIANTS[variant]))


def test_the_paper_takes_the_biased_deviation_and_adds_eps_to_it():
    conv = nn.Conv1d(1, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 3.0]]]))
    weight_standardization(conv, eps=0.5)
    assert conv.weight.flatten().tolist() == pytest.approx([-1 / 1.5, 1 / 1.5])  # biased deviation 1, unbiased 1.41


def test_affine_starts_as_no_affine_and_scales_each_filter():
    conv = CONVOLUTIONS["2d"]()
    standardized = formula(conv.weight.detach())
    weight_standardization(conv, affine=True)
    (standardization,) = conv.parametrizations.weight
    torch.testing.assert_close(conv.weight, standardized)
    with torch.no_grad():
        standardization.gain[1], standardization.shift[1] = 2.0, 0.5
    torch.testing.assert_close(conv.weight[1], 2 * standardized[1] + 0.5)
    torch.testing.assert_close(conv.weight[0], standardized[0])
    names = {name for name, _ in conv.named_parameters()}
    assert {f"parametrizations.weight.0.{name}" for name in ("gain", "shift")} < names


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant):
    options = {"center": True, "divide": True, "affine": False} | VARIANTS[variant]
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    standardization = WeightStandardization(weight.detach(), eps=1e-5, **options)
    assert torch.autograd.gradcheck(standardization, (weight,))
    assert torch.autograd.gradgradcheck(standardization, (weight,))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_filters_stay_finite(variant, value):
    conv = nn.Conv2d(2, 3, 3)
    nn.init.constant_(conv.weight, value)
    weight_standardization(conv, **VARIANTS[variant])
    conv(torch.randn(2, 2, 5, 5)).square().sum().backward()
    assert conv.weight.isfinite().all()
    assert all(p.grad.isfinite().all() for p in conv.parameters())
    if variant in ("ws", "ws_mean"):
        assert conv.weight.abs().max() < 1e-2


def test_a_fan_in_of_one_is_refused_unless_nothing_is_centred():
    conv = nn.Conv2d(4, 4, 1, groups=4)
    with pytest.raises(UserError, match=r"fan-in of 1.*ws_div"):
        weight_standardization(conv)
    signs = conv.weight.detach().sign()
    weight_standardization(conv, center=False)
    torch.testing.assert_close(conv.weight, signs, rtol=1e-2, atol=1e-2)


def test_scaling_or_shifting_the_stored_weight_changes_nothing():
    conv, same = CONVOLUTIONS["2d"](), CONVOLUTIONS["2d"]()
    with torch.no_grad():
        same.weight.copy_(5 * conv.weight + 3)
    weight_standardization(conv, eps=0)
    weight_standardization(same, eps=0)
    torch.testing.assert_close(conv.weight, same.weight)


def test_weight_normalization_keeps_the_weight_and_learns_its_length():
    conv = CONVOLUTIONS["grouped"]()
    before = conv.weight.detach().clone()
    weight_normalization(conv)
    torch.testing.assert_close(conv.weight, before)
    length, direction = (getattr(conv.parametrizations.weight, f"original{k}") for k in (0, 1))
    assert length.shape == (8, 1, 1, 1)
    expected = length * direction / direction.flatten(1).square().sum(1).sqrt().view(8, 1, 1, 1)
    torch.testing.assert_close(conv.weight, expected)
    with torch.no_grad():
        length *= 2
    torch.testing.assert_close(conv.weight, 2 * before)


@pytest.mark.parametrize("parametrize", [weight_standardization, weight_normalization])
def test_state_dict_round_trip_and_copies(parametrize, tmp_path):
    conv, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    parametrize(conv)
    parametrize(other)
    torch.save(conv.state_dict(), tmp_path / "conv.pt")
    other.load_state_dict(torch.load(tmp_path / "conv.pt", weights_only=True))
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(conv(x), other(x))
    assert torch.equal(conv(x), copy.deepcopy(conv)(x))


def test_channels_last_is_kept():
    conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    weight_standardization(conv)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
