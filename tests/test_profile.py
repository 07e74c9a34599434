"""norm.profile=official and weight.profile=official: the released code's formulas, written plainly here."""

import pytest
import torch
from norm_files import build, images, randomize
from torch import Tensor, nn

from normlab.config import identity, load
from normlab.errors import UserError
from normlab.norm.convert import convert
from normlab.norm.layer import Normalizer, ScopeError
from normlab.norm.weight import weight_standardization
from normlab.replicas import RunningStatistics

POOLS = {"sn": [0, 1, 2], "sn_in_ln": [0, 1], "sn_ln_bn": [1, 2]}


def released(x: Tensor, layer: Normalizer, pool: list[int], replicas: int = 1) -> Tensor:
    """SN from E[x^2], with the variance of a map over its positions less one; 0, 1 and 2 are IN, LN and BN."""
    out = []
    for part in x.flatten(2).chunk(replicas):
        mean_in, var_in = part.mean(-1, keepdim=True), part.var(-1, keepdim=True)
        square = var_in + mean_in**2
        means = [mean_in, mean_in.mean(1, keepdim=True), mean_in.mean(0, keepdim=True)]
        pooled = [var_in, *(square.mean(axis, keepdim=True) - m**2 for axis, m in ((1, means[1]), (0, means[2])))]
        a, b = layer.mean_logits.softmax(0), layer.var_logits.softmax(0)
        mean = sum(a[k] * means[scope] for k, scope in enumerate(pool))
        var = sum(b[k] * pooled[scope] for k, scope in enumerate(pool))
        out.append((part - mean) / (var + layer.eps).sqrt() * layer.weight.view(1, -1, 1) + layer.bias.view(1, -1, 1))
    return torch.cat(out).view(x.shape)


@pytest.mark.parametrize("norm", POOLS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_output_and_gradients_are_those_of_the_released_formula(norm: str, replicas: int) -> None:
    layer = randomize(build(norm, 6, profile="official").double())
    layer.replicas = replicas
    x = images(4, 6, 3, 3).requires_grad_()
    dy = images(4, 6, 3, 3, seed=1)
    inputs = (x, *layer.parameters())
    ours, theirs = layer(x), released(x, layer, POOLS[norm], replicas)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, inputs, dy), torch.autograd.grad(theirs, inputs, dy), strict=True):
        torch.testing.assert_close(a, b)


def test_it_is_not_the_papers_and_differs_by_one_position_in_their_number() -> None:
    """With IN alone chosen, the paper's variance times L / (L - 1): 49/48 at 7x7."""
    paper, official = (build("sn_hard", 4, profile=profile, eps=1e-12).double() for profile in ("paper", "official"))
    x = images(2, 4, 7, 7)  # equal logits: the first scope, IN, is chosen
    torch.testing.assert_close(paper(x), official(x) * (49 / 48) ** 0.5)


def test_the_moving_average_starts_at_zero_and_takes_what_was_measured() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    convert(model, lambda channels: build("sn", channels, profile="official"))
    layer = model[0].double()
    assert isinstance(layer, Normalizer) and not layer.running_var.any()
    x = images(3, 4, 5, 5)
    layer(x)
    square = x.flatten(2).var(-1) + x.mean((2, 3)) ** 2
    torch.testing.assert_close(layer.running_var, 0.1 * (square.mean(0) - x.mean((0, 2, 3)) ** 2))
    statistics = RunningStatistics(model)
    before = layer.running_var.clone()
    model(x)
    statistics.collect()
    statistics.advance()
    torch.testing.assert_close(layer.running_var, before * 1.9)


def test_evaluation_mixes_the_stored_statistics() -> None:
    layer = randomize(build("sn", 6, profile="official").double()).eval()
    x = images(2, 6, 4, 4)
    flat = x.flatten(2)
    mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
    mean_ln = mean_in.mean(1, keepdim=True)
    var_ln = (var_in + mean_in**2).mean(1, keepdim=True) - mean_ln**2
    a, b = layer.mean_logits.softmax(0), layer.var_logits.softmax(0)
    mean = a[0] * mean_in + a[1] * mean_ln + a[2] * layer.running_mean.view(1, -1, 1)
    var = b[0] * var_in + b[1] * var_ln + b[2] * layer.running_var.view(1, -1, 1)
    expected = (flat - mean) / (var + 1e-5).sqrt() * layer.weight.view(1, -1, 1) + layer.bias.view(1, -1, 1)
    torch.testing.assert_close(layer(x), expected.view(x.shape))


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 4)])
def test_maps_of_one_position_are_refused_where_the_released_code_gives_nan(shape: tuple[int, ...]) -> None:
    layer = build("sn", 4, profile="official")
    with pytest.raises(ScopeError, match=r"norm\.profile=official.*single position.*norm\.profile=paper"):
        layer(torch.randn(shape))


@pytest.mark.parametrize("words", [["norm=bn"], ["norm=gn"], ["norm=hn"], ["norm=syncsn"]])
def test_what_has_no_released_code_has_no_official_profile(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"norm\.profile=official is the released code of SN"):
        load([*words, "norm.profile=official"])


def test_a_misspelt_profile_is_named() -> None:
    with pytest.raises(UserError, match=r"norm\.profile=offical: expected paper or official; did you mean 'official'"):
        load(["norm.profile=offical"])


@pytest.mark.parametrize(("group", "words"), [("norm", ["norm=sn"]), ("weight", ["norm=gn", "weight=ws"])])
def test_the_profile_is_part_of_the_identity_and_its_default_keeps_the_ids_of_earlier_runs(group, words) -> None:
    plain, paper, official = (
        identity(load([*words, *more])) for more in ([], [f"{group}.profile=paper"], [f"{group}.profile=official"])
    )
    assert plain == paper != official


def test_ids_of_recorded_runs_are_what_they_were() -> None:
    """Those of results/runs, made before there was a profile."""
    assert identity(load(["norm=sn", "batch=8x2"])) == "512f9aa7"
    assert identity(load(["norm=bn", "batch=8x2"])) == "34744e94"


def test_official_weight_standardization_divides_by_the_unbiased_deviation() -> None:
    conv = nn.Conv2d(3, 5, 3, bias=False).double()
    stored = conv.weight.detach().clone()
    weight_standardization(conv, profile="official")
    centred = stored - stored.mean((1, 2, 3), keepdim=True)
    expected = centred / (stored.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
    torch.testing.assert_close(conv.weight, expected)
