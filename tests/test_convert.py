"""Conversion: which layers are swapped, what they keep, and that the models still work."""

import copy
import warnings
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d

from normlab.errors import UserError
from normlab.models.library import timm_model, torchvision_model
from normlab.norm.convert import NormAct, NothingReplacedWarning, convert
from normlab.norm.layer import Normalizer
from normlab.norm.weight import weight_normalization, weight_standardization

BN = partial(Normalizer, mean=["bn"], var=["bn"])
SN = partial(Normalizer, mean=["in", "ln", "bn"], var=["in", "ln", "bn"])
LN = partial(Normalizer, mean=["ln"], var=["ln"])
HN = partial(Normalizer, mean=["bn"], var=["en"])

# Library, name, norm layers, convolutions, counted by hand from the architectures.
MODELS = [
    (torchvision_model, "resnet18", 20, 20),  # 1 + 8 blocks x 2 + 3 shortcuts
    (torchvision_model, "resnet50", 53, 53),  # 1 + 16 blocks x 3 + 4 shortcuts
    (torchvision_model, "resnet101", 104, 104),  # 1 + 33 blocks x 3 + 4 shortcuts
    (torchvision_model, "resnext50_32x4d", 53, 53),
    (timm_model, "resnet18", 20, 20),
    (timm_model, "resnet50", 53, 53),
    (timm_model, "resnet101", 104, 104),
    (timm_model, "resnext50_32x4d", 53, 53),
    (timm_model, "mobilenetv2_035", 52, 52),  # 1 + 2 in the first block + 16 blocks x 3 + 1
    (timm_model, "mobilenetv2_100", 52, 52),
    (torchvision_model, "shufflenet_v2_x1_5", 56, 56),  # 1 + 3 units x 5 + 13 units x 3 + 1
    (torchvision_model, "densenet121", 121, 120),  # 1 + 58 layers x 2 + 3 transitions + 1 behind the last block
    (torchvision_model, "inception_v3", 94, 94),  # 5 + 3 x 7 + 4 + 4 x 10 + 6 + 2 x 9
]


def shape_of(name: str) -> tuple[int, int, int]:
    return (3, 75, 75) if name == "inception_v3" else (3, 32, 32)


@pytest.mark.parametrize("build,name,norms,convolutions", MODELS)
def test_models_of_both_libraries(build, name, norms, convolutions):
    torch.manual_seed(0)
    model = build(shape_of(name), 10, name=name)
    conversion = convert(model, SN, weight_standardization)

    assert len(conversion.norms) == norms
    assert len(conversion.weights) == convolutions
    assert all(isinstance(model.get_submodule(name), Normalizer) for name in conversion.norms)
    assert all(is_parametrized(model.get_submodule(name), "weight") for name in conversion.weights)
    old = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    assert not any(isinstance(module, old) for module in model.modules())

    scores = model(torch.randn(2, *shape_of(name)))
    scores.logsumexp(1).sum().backward()
    assert scores.shape == (2, 10)
    assert scores.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def scramble(model: nn.Module) -> None:
    """Norm layers as after training: no gamma, beta or running statistic at its start value."""
    for module in model.modules():
        if hasattr(module, "running_var"):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)


@pytest.mark.parametrize("build,name", [(b, n) for b, n, *_ in MODELS if n not in ("resnet101", "resnet50")])
def test_bn_to_bn_changes_nothing(build, name):
    torch.manual_seed(0)
    model = build(shape_of(name), 10, name=name).double()
    scramble(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    converted = copy.deepcopy(model)
    eps = next(m.eps for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    convert(converted, partial(BN, eps=eps))

    x = torch.randn(3, *shape_of(name), dtype=torch.float64)
    for mode in (False, True, False):  # the last one sees the statistics that the training pass left behind
        with torch.no_grad():
            torch.testing.assert_close(converted.train(mode)(x), model.train(mode)(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "layer,shape",
    [
        (nn.BatchNorm1d(6), (4, 6)),
        (nn.BatchNorm1d(6), (4, 6, 5)),
        (nn.BatchNorm2d(6), (4, 6, 3, 2)),
        (nn.BatchNorm3d(6), (4, 6, 2, 3, 2)),
        (nn.SyncBatchNorm(6), (4, 6, 3, 2)),
        (nn.GroupNorm(3, 6), (4, 6, 3, 2)),
        (nn.InstanceNorm1d(6, affine=True), (4, 6, 5)),
        (nn.InstanceNorm2d(6), (4, 6, 3, 2)),
        (nn.InstanceNorm3d(6), (4, 6, 2, 3, 2)),
        (timm.layers.GroupNorm1(6), (4, 6, 3, 2)),
        (FrozenBatchNorm2d(6), (4, 6, 3, 2)),
    ],
)
def test_every_kind_of_layer(layer, shape):
    model = nn.Sequential(layer)
    assert convert(model, LN).norms == ["0"]
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), nn.functional.group_norm(x, 1))


@pytest.mark.parametrize("layer", [nn.LayerNorm(6), timm.layers.LayerNorm2d(6)])
def test_layers_without_moments_to_choose_are_left_alone(layer):
    model = nn.Sequential(layer)
    with pytest.warns(NothingReplacedWarning, match=rf"no batch, .* \(1 {type(layer).__name__}\)$"):
        assert convert(model, SN).norms == []
    assert model[0] is layer


@pytest.mark.parametrize("build,said", [
    (lambda: timm.create_model("vit_tiny_patch16_224", depth=2), "the model stays as it is (5 LayerNorm)"),
    (lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1)), "the model stays as it is (9 LayerNorm2d)"),
    (lambda: converted(nn.Sequential(nn.BatchNorm2d(4)), BN), "the model stays as it is (1 Normalizer)"),
    (lambda: nn.Sequential(nn.Linear(2, 2)), "the model stays as it is"),
])  # fmt: skip
def test_a_norm_that_replaces_nothing_says_so_once(build, said):
    model = build()
    with pytest.warns(NothingReplacedWarning) as warned:
        convert(model, SN)
    assert len(warned) == 1 and said in str(warned[0].message) and warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, None)  # nothing was asked for that is not so
        convert(nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4)), SN)


def converted(model: nn.Module, norm) -> nn.Module:
    convert(model, norm)
    return model


SETTINGS = [
    (nn.BatchNorm2d(6, eps=1e-3, momentum=0.03), (1e-3, 0.03), (1e-3, 0.03)),
    (nn.BatchNorm2d(6, eps=1e-3, momentum=None), (1e-3, None), (1e-3, None)),
    (timm.layers.BatchNormAct2d(6, eps=1e-4), (1e-4, 0.1), (1e-4, 0.1)),
    (nn.GroupNorm(3, 6, eps=0.1), (0.1, None), (0.1, 0.2)),
    (nn.InstanceNorm2d(6, eps=0.1, momentum=0.5), (0.1, None), (0.1, 0.2)),
    (FrozenBatchNorm2d(6, eps=0.0), (0.0, None), (0.0, 0.2)),
]


@pytest.mark.parametrize("layer,theirs,kept", SETTINGS, ids=lambda value: type(value).__name__)
def test_eps_and_momentum_are_reported_and_kept_where_asked(layer, theirs, kept):
    norm = partial(SN, eps=1e-2, momentum=0.2)
    for keep, ours in ((), (1e-2, 0.2)), (("eps", "momentum"), kept), (["eps"], (kept[0], 0.2)):
        model = nn.Sequential(copy.deepcopy(layer))
        conversion = convert(model, norm, keep=keep)
        (name,) = conversion.norms
        assert conversion.eps == {name: (theirs[0], ours[0])}
        assert conversion.momentum == {name: (theirs[1], ours[1])}
        new = model.get_submodule(name)
        assert (new.eps, new.algebra.eps, new.momentum) == (ours[0], *ours)


def test_with_both_kept_a_network_is_the_same_batch_by_batch():
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_b0", num_classes=4, drop_path_rate=0.0).double()  # 1e-3, not 1e-5
    scramble(model)
    twin = copy.deepcopy(model)
    convert(twin, BN, keep=("eps", "momentum"))
    x = torch.randn(8, 3, 64, 64, dtype=torch.float64)  # of two samples, it multiplies roundings by ten million
    for mode in (True, False):
        with torch.no_grad():
            torch.testing.assert_close(twin.train(mode)(x), model.train(mode)(x), rtol=1e-8, atol=1e-8)


def test_what_cannot_be_kept_is_named():
    with pytest.raises(UserError, match=r"convert: keep 'epsilon' does not exist; .*eps"):
        convert(nn.Sequential(nn.BatchNorm2d(4)), BN, keep=["epsilon"])


def trained(layer: nn.Module) -> nn.Module:
    layer(torch.randn(8, 6, 3, 3) * 2 + 1)
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    return layer


def test_keeps_what_means_the_same():
    old = trained(nn.BatchNorm2d(6))
    model = nn.Sequential(old)
    convert(model, SN)
    for name, tensor in old.state_dict().items():
        assert torch.equal(model[0].state_dict()[name], tensor), name


def test_statistics_of_another_scope_start_afresh():
    old = trained(nn.BatchNorm2d(6))
    model = nn.Sequential(old)
    convert(model, HN)  # the mean is still over samples, the variance over samples and channels
    assert torch.equal(model[0].running_mean, old.running_mean)
    assert not any(torch.equal(b, old.running_var) for b in model[0].buffers())
    assert model[0].num_batches_tracked == 0

    instance = trained(nn.InstanceNorm2d(6, affine=True, track_running_stats=True))
    model = nn.Sequential(instance)
    convert(model, BN)
    assert torch.equal(model[0].weight, instance.weight)
    assert model[0].running_mean.eq(0).all() and model[0].running_var.eq(1).all()


def test_keeps_dtype_mode_and_requires_grad():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)).double()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    convert(model, SN)
    first, second = model
    assert first.weight.dtype == second.weight.dtype == first.running_var.dtype == torch.float64
    assert (first.training, second.training) == (False, True)
    assert (first.weight.requires_grad, first.bias.requires_grad) == (False, True)
    convert(model := nn.Sequential(nn.BatchNorm2d(4)), partial(BN, frozen=True))
    assert not model[0].weight.requires_grad


def test_keeps_the_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.InstanceNorm2d(4))
    convert(model, BN)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_a_shared_layer_stays_shared():
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared))
    assert convert(model, SN).norms == ["0"]
    assert model[0] is model[1][1]
    assert isinstance(model[0], Normalizer)


@pytest.mark.parametrize(
    "fused",
    [
        lambda **kw: timm.layers.BatchNormAct2d(8, **kw),
        lambda **kw: timm.layers.GroupNormAct(8, num_groups=2, **kw),
        lambda **kw: timm.layers.convert_sync_batchnorm(timm.layers.BatchNormAct2d(8, **kw)),
        lambda **kw: timm.layers.FrozenBatchNormAct2d(8, **kw),
    ],
)
def test_the_activation_inside_a_fused_layer_stays(fused):
    layer = fused(act_layer=nn.SiLU, drop_layer=partial(nn.Dropout, p=0.0))
    model = nn.Sequential(layer)
    assert convert(model, LN).norms == ["0.norm"]
    assert model[0].act is layer.act and model[0].drop is layer.drop
    x = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(model(x), nn.functional.silu(nn.functional.group_norm(x, 1)))


def test_none_removes_the_norms_and_keeps_activations():
    model = nn.Sequential(nn.BatchNorm2d(4), timm.layers.BatchNormAct2d(4), FrozenBatchNorm2d(4))
    assert convert(model, None).norms == ["0", "1.norm", "2"]
    assert isinstance(model[0], nn.Identity) and isinstance(model[1], NormAct) and isinstance(model[2], nn.Identity)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(model(x), x.relu())


# ---- frozen batch norms ----------------------------------------------------------------------------------------------


class Detectron2(nn.Module):
    """As in detectron2: another class of this name, whose running variance starts at 1 - eps."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


Theirs = type("FrozenBatchNorm2d", (Detectron2,), {})
FROZEN = {
    "torchvision": FrozenBatchNorm2d,
    "detectron2": Theirs,
    "a subclass": type("Mine", (Theirs,), {}),
    "timm": timm.layers.FrozenBatchNormAct2d,
}


def frozen_model(layer: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), layer(6), nn.Conv2d(6, 4, 1), layer(4))
    scramble(model)
    return model


@pytest.mark.parametrize("layer", FROZEN.values(), ids=FROZEN)
def test_frozen_batch_norms_become_ours_and_change_nothing(layer):
    """Training or not: same outputs, gradients of the same parameters."""
    model = frozen_model(layer)
    converted = copy.deepcopy(model)
    suffix = ".norm" if layer is FROZEN["timm"] else ""
    assert convert(converted, partial(BN, frozen=True)).norms == [f"1{suffix}", f"3{suffix}"]
    assert {name for name, _ in converted.named_parameters()} == {name for name, _ in model.named_parameters()}
    x = torch.randn(3, 3, 8, 8)
    for mode in (True, False):
        outputs = [network.train(mode)(x) for network in (converted, model)]
        torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
        found = [
            torch.autograd.grad(y.square().sum(), list(network.parameters()))
            for y, network in zip(outputs, (converted, model), strict=True)
        ]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", FROZEN.values(), ids=FROZEN)
def test_what_was_frozen_learns_from_where_it_was(layer):
    """A declared normalizer is what it says: its gamma and beta are parameters that are trained."""
    model = frozen_model(layer)
    old = model[1].state_dict()
    convert(model, SN)
    new = model[1].norm if isinstance(model[1], NormAct) else model[1]
    assert isinstance(new, Normalizer) and new.weight.requires_grad and new.bias.requires_grad
    for name, tensor in old.items():
        assert torch.equal(new.state_dict()[name], tensor), name
    assert new.num_batches_tracked == 0
    convert(hybrid := frozen_model(layer), HN)
    new = hybrid[1].norm if isinstance(hybrid[1], NormAct) else hybrid[1]
    assert torch.equal(new.running_mean, old["running_mean"]) and new.running_var_en.eq(1).all()


def test_frozen_layers_keep_dtype_device_and_mode():
    layer = FrozenBatchNorm2d(4).double().eval()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layer)  # whose own dtype is another
    convert(model, SN)
    assert model[1].weight.dtype == model[1].running_var.dtype == torch.float64 and not model[1].training
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4), nn.BatchNorm2d(4))
    convert(model, partial(BN, frozen=True))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]


def test_frozen_models_of_timm():
    """freeze_batch_norm_2d makes torchvision's layers and timm's of what it finds."""
    torch.manual_seed(0)
    model = timm.layers.freeze_batch_norm_2d(timm.create_model("efficientnet_b0", num_classes=10))
    scramble(model)
    converted = copy.deepcopy(model)
    assert len(convert(converted, partial(BN, frozen=True)).norms) == 49
    assert sum(p.numel() for p in converted.parameters()) == sum(p.numel() for p in model.parameters())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(converted.double().eval()(x), model.double().eval()(x), rtol=1e-9, atol=1e-9)


def test_select_limits_both_swaps():
    model = torchvision_model((3, 32, 32), 10, name="resnet18")
    conversion = convert(model, SN, weight_normalization, select=lambda name: name.startswith("layer4.0.downsample"))
    assert conversion.norms == ["layer4.0.downsample.1"]
    assert conversion.weights == ["layer4.0.downsample.0"]
    assert isinstance(model.bn1, nn.BatchNorm2d)


def test_transposed_convolutions_and_linear_layers_keep_their_weights():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Linear(4, 4), nn.Conv1d(4, 4, 3))
    assert convert(model, None, weight_standardization).weights == ["2"]


def test_state_dict_loads_into_the_same_conversion(tmp_path):
    model, other = (torchvision_model((3, 32, 32), 10, name="resnet18") for _ in range(2))
    for network in (model, other):
        convert(network, SN, weight_standardization)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_what_is_standardized_already_stays(images=(1, 3, 32, 32)) -> None:
    """By an earlier conversion, and by timm's own convolutions; twice would be another network."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    first = convert(model, None, weight_standardization)
    assert first.weights == ["0", "2"]
    x = torch.randn(images)
    expected = model(x)
    assert convert(model, None, weight_standardization).weights == []
    assert len(model[0].parametrizations.weight) == 1 and torch.equal(model(x), expected)

    own = timm.create_model("resnetv2_50x1_bit", num_classes=2)  # StdConv2d
    expected = own.eval()(torch.ones(1, 3, 32, 32))
    assert convert(own, lambda channels: nn.GroupNorm(32, channels), weight_standardization).weights == ["head.fc"]
    assert convert(timm.create_model("nf_resnet26"), None, weight_standardization).weights == []


class _Shaped(nn.Module):
    """A norm of somebody's own: gamma as (C, 1, 1), and a bias that is one number."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels, 1, 1))
        self.bias = nn.Parameter(torch.full((1,), 7.0))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return x_NCHW * self.weight + self.bias


def test_gammas_go_into_another_shape_and_what_has_no_place_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(4.0))
    convert(model, _Shaped)
    assert model[1].weight.shape == (4, 1, 1) and torch.equal(model[1].weight.flatten(), torch.arange(4.0))
    assert model[1].bias.item() == 7
