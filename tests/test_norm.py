"""Normalizer against the papers' formulas (reference.py) in float64: output and every gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_files import build, gradients, images, learned, randomize
from reference import normalize, pixel_set_statistics
from torch import Tensor

from normlab.norm.layer import Normalizer, ScopeError

THREE = ["in", "ln", "bn"]
# What the papers print for each file of conf/norm, on a layer of 16 channels: there, 32 groups become 8.
FORMULAS = {
    "bn": {"mean": ["bn"], "var": ["bn"]},
    "in": {"mean": ["in"], "var": ["in"]},
    "ln": {"mean": ["ln"], "var": ["ln"]},
    "gn": {"mean": ["gn8"], "var": ["gn8"]},
    "en": {"mean": ["en"], "var": ["en"]},
    "hn": {"mean": ["bn"], "var": ["en"]},
    "hn_g8": {"mean": ["bn"], "var": ["en8"]},
    "hn_g32": {"mean": ["bn"], "var": ["en8"]},
    "hn_sn": {"mean": ["bn"], "var": ["bn", "en"]},
    "hn_sn_in_ln": {"mean": ["bn"], "var": ["bn", "in", "ln"]},
    "sn": {"mean": THREE, "var": THREE},
    "sn_tied": {"mean": THREE, "var": THREE},
    "sn_std": {"mean": THREE, "var": THREE, "mix": "std"},
    "sn_hard": {"mean": THREE, "var": THREE, "hard": True},
    "group_sn": {"mean": THREE, "var": THREE},
    "sn_in_bn": {"mean": ["in", "bn"], "var": ["in", "bn"]},
    "sn_in_ln": {"mean": ["in", "ln"], "var": ["in", "ln"]},
    "sn_ln_bn": {"mean": ["ln", "bn"], "var": ["ln", "bn"]},
}
SYNCHRONIZED = {"syncbn": FORMULAS["bn"], "syncsn": FORMULAS["sn"]}
SHAPES = {"(N,C)": (4, 16), "(N,C,L)": (2, 16, 5), "2d": (4, 16, 3, 2), "3d": (2, 16, 2, 1, 3)}
CASES = [case for case in itertools.product(FORMULAS, SHAPES) if case != ("in", "(N,C)")]  # refused there
GRID = list(itertools.product(["in", "ln", "gn3", "bn", "en", "en3"], repeat=2))


def assert_equal_to_formula(layer: Normalizer, x: Tensor, **formula) -> None:
    """The layer's output and gradients, of x and all it learns, are the formula's with the same parameters."""
    held = {name: getattr(layer, name) for name in ("weight", "bias", "mean_logits", "var_logits")}
    parameters = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in held.items() if t is not None}
    shared = parameters | ({"var_logits": parameters["mean_logits"]} if layer.tied else {})
    ours = gradients(layer, x, learned(layer))
    plain = gradients(
        lambda x: normalize(x, **formula, **shared), x, {name: parameters[name] for name in learned(layer)}
    )
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def random_layer(*arguments, **options) -> Normalizer:
    return randomize(Normalizer(*arguments, **options)).double()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_equals_the_formula(name, kind):
    assert_equal_to_formula(randomize(build(name, 16)).double(), images(*SHAPES[kind]), **FORMULAS[name])


@pytest.mark.parametrize("name", FORMULAS)
def test_channels_last_inputs(name):
    x = images(4, 16, 3, 2).contiguous(memory_format=torch.channels_last)
    assert_equal_to_formula(randomize(build(name, 16)).double(), x, **FORMULAS[name])


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", FORMULAS)
def test_each_replica_is_normalized_by_itself(name, replicas):
    layer = randomize(build(name, 16)).double()
    layer.replicas = replicas
    assert_equal_to_formula(layer, images(8, 16, 3, 2), **FORMULAS[name], replicas=replicas)


@pytest.mark.parametrize("name", SYNCHRONIZED)
def test_synchronized_scopes_join_all_replicas(name):
    layer = randomize(build(name, 16)).double()
    layer.replicas = 4
    x = images(8, 16, 3, 2)
    joined = randomize(build(name.removeprefix("sync"), 16)).double()
    assert_equal_to_formula(layer, x, **SYNCHRONIZED[name])
    joined(x)
    torch.testing.assert_close(layer.state_dict(), joined.state_dict(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("mean", "var"), GRID)
def test_every_pair_of_the_grids_of_seed_004(mean, var):
    layer = random_layer(6, mean=[mean], var=[var], groups=1)
    assert_equal_to_formula(layer, images(3, 6, 3, 2), mean=[mean], var=[var])


@pytest.mark.parametrize(
    ("mean", "var", "options"),
    [
        (["ln", "gn3"], ["ln", "gn3"], {}),  # SN in an LSTM (SN-TPAMI)
        (["in", "ln", "gn3", "bn", "en"], ["en3", "bn"], {"mix": "std"}),
        (["bn"], THREE, {"ratio_groups": 3}),
        (THREE, THREE, {"ratio_groups": 6, "tied": True, "mix": "std"}),
        (THREE, ["bn", "en"], {"ratio_groups": 2, "hard": True}),
        (THREE, THREE, {"affine": False}),
        (["bn"], ["en"], {"eps": 0.3}),
    ],
    ids=str,
)
def test_any_combination(mean, var, options):
    formula = {key: value for key, value in options.items() if key in ("mix", "hard", "eps")}
    layer = random_layer(6, mean=mean, var=var, groups=1, **options)
    assert_equal_to_formula(layer, images(4, 6, 3, 3), mean=mean, var=var, **formula)


@pytest.mark.parametrize("shape", [(1, 7, 3, 5), (1, 7, 1, 1), (3, 5, 1, 1), (2, 1, 4, 4), (1, 3, 1)], ids=str)
@pytest.mark.parametrize("name", ["sn", "hn", "hn_sn", "en", "ln", "sn_tied", "sn_std", "hn_sn_in_ln"])
def test_odd_channels_single_samples_and_single_positions(name, shape):
    layer = randomize(build(name, shape[1])).double()
    if layer.mean_scopes == ["bn"] and shape[0] == 1 and shape[2:] in [(1, 1), (1,)]:
        with pytest.raises(ScopeError):
            layer(images(*shape))
    else:
        assert_equal_to_formula(layer, images(*shape), **FORMULAS[name])


@pytest.mark.parametrize("name", ["hn", "hn_sn", "en", "sn", "sn_std", "group_sn", "sn_in_ln", "hn_sn_in_ln"])
def test_evaluation_uses_the_stored_statistics_of_batch_scopes(name):
    layer = randomize(build(name, 16)).double().eval()
    layer.replicas = 3  # of no consequence
    stored = {}
    for scope, (mean, var) in {
        "bn": ("running_mean", "running_var"),
        "en": ("running_mean_en", "running_var_en"),
    }.items():
        buffers = (getattr(layer, buffer, torch.zeros(1)) for buffer in (mean, var))
        stored[scope] = tuple(t.double().expand(16).view(1, 16, 1) for t in buffers)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    assert_equal_to_formula(layer, images(4, 16, 3, 2), **FORMULAS[name], stored=stored)
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("sync", [False, True])
def test_running_statistics_move_by_the_mean_over_replicas_of_unbiased_variances(sync):
    layer = random_layer(6, mean=["bn", "en"], var=["bn", "en3"], groups=1, momentum=0.2, sync=sync)
    layer.replicas = 2
    old = {key: value.clone() for key, value in layer.state_dict().items()}
    x_NCL = images(8, 6, 5)
    layer(x_NCL)
    blocks = [x_NCL] if sync else x_NCL.split(4)
    values = len(blocks[0]) * 5  # of a channel
    for buffer, scope, size in [
        ("running_mean", "bn", values),
        ("running_var", "bn", values),
        ("running_mean_en", "en", values * 6),
        ("running_var_en3", "en3", values * 2),
    ]:
        which = 0 if "mean" in buffer else 1
        per_channel = torch.stack([pixel_set_statistics(b, scope)[which][0, :, 0] for b in blocks]).mean(0)
        new = per_channel[:: 6 // len(old[buffer])] * (size / (size - 1) if which else 1)
        torch.testing.assert_close(getattr(layer, buffer), 0.8 * old[buffer] + 0.2 * new, rtol=1e-12, atol=1e-12)
    assert {name for name in old if "running" in name} == {
        "running_mean", "running_var", "running_mean_en", "running_var_en3"
    }  # fmt: skip
    assert layer.num_batches_tracked == 1


def test_what_a_call_measured_is_kept_for_the_caller():
    layer = random_layer(6, mean=["bn"], var=["en"], groups=2)
    layer.replicas, layer.calls = 2, []
    x_NCL = images(8, 6, 5)
    layer(x_NCL)
    (measured,) = layer.calls
    assert layer.num_batches_tracked == 0
    assert {name: s.size for name, s in measured.items()} == {"bn": 20, "en": 60}
    mean_RC = torch.stack([block.mean((0, 2)) for block in x_NCL.split(4)])
    torch.testing.assert_close(measured["bn"].mean_RW, mean_RC)
    var_RW = torch.stack([block.reshape(4, 2, 3, 5).var((0, 2, 3), correction=0) for block in x_NCL.split(4)])
    torch.testing.assert_close(measured["en"].var_RW, var_RW)


@pytest.mark.parametrize("name", ["sn", "hn", "gn"])
def test_permuting_the_samples_of_a_replica_permutes_its_outputs(name):
    layer = randomize(build(name, 6)).double()
    layer.replicas = 2
    x = images(8, 6, 3, 2)
    order = [2, 0, 3, 1, 4, 7, 6, 5]
    torch.testing.assert_close(layer(x[order]), layer(x)[order], rtol=1e-12, atol=1e-12)


def test_frozen_statistics_and_affine_are_constants_in_training():
    layer = randomize(build("bn_frozen", 6)).double()
    old = {key: value.clone() for key, value in layer.state_dict().items()}
    x = images(4, 6, 3, 2).requires_grad_()
    y = layer.train()(x)
    y.sum().backward()
    mean, var, weight, bias = (old[name].view(1, 6, 1, 1) for name in ("running_mean", "running_var", "weight", "bias"))
    torch.testing.assert_close(y, (x - mean) / (var + 1e-5).sqrt() * weight + bias)
    torch.testing.assert_close(x.grad, (weight / (var + 1e-5).sqrt()).expand_as(x))
    torch.testing.assert_close(dict(layer.state_dict()), old, rtol=0, atol=0)
    assert not list(layer.parameters())


def test_frozen_ratios_are_constants_too():
    layer = random_layer(6, mean=THREE, var=THREE, frozen=True)
    assert not list(layer.parameters())
    stored = {"bn": (layer.running_mean.view(1, -1, 1), layer.running_var.view(1, -1, 1))}
    assert_equal_to_formula(layer, images(4, 6, 3), mean=THREE, var=THREE, stored=stored)


SCOPES = st.lists(st.sampled_from(["in", "ln", "gn", "gn2", "bn", "en", "en3"]), min_size=1, max_size=4, unique=True)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    replicas=st.integers(1, 4),
    per_replica=st.integers(1, 3),
    channels=st.integers(1, 7),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    mean=SCOPES,
    var=SCOPES,
    mix=st.sampled_from(["var", "std"]),
)
def test_stacked_replicas_equal_one_pass_each(replicas, per_replica, channels, height, width, mean, var, mix):
    stacked, alone = (random_layer(channels, mean=mean, var=var, mix=mix) for _ in range(2))
    stacked.replicas, alone.calls = replicas, []
    x = images(replicas * per_replica, channels, height, width)
    try:
        together = gradients(stacked, x, learned(stacked))
    except ScopeError:
        with pytest.raises(ScopeError):
            alone(x[:per_replica])
        return
    one_by_one = gradients(lambda x: torch.cat([alone(block) for block in x.split(per_replica)]), x, learned(alone))
    torch.testing.assert_close(together, one_by_one, rtol=1e-9, atol=1e-9)
