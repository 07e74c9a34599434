"""The networks: shapes, counts checked by hand, initialisation, names, and refusals in one line."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml
from norm_files import images
from torch import nn

from normlab.errors import UserError
from normlab.models.classifier import find_classifier
from normlab.models.library import resnet_ssn, timm_model, torchvision_model
from normlab.models.mlp import mlp
from normlab.models.names import check_model_name, model_names
from normlab.models.resnet import (
    PadShortcut,
    digits_resnet,
    digits_resnet_deep,
    digits_resnext,
    resnet_cifar,
    resnet_small,
)
from normlab.models.small_images import densenet_small, mobilenetv2_small, shufflenet_v2_small

CONF = Path(__file__).parents[1] / "conf" / "model"
NORMS = (nn.modules.batchnorm._BatchNorm,)


def norms_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NORMS)]


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


CLASSIFIERS = [
    file for file in sorted(CONF.glob("*.yaml")) if not re.search("^_kind_: (?!classifier)", file.read_text(), re.M)
]


@pytest.mark.parametrize("file", CLASSIFIERS, ids=lambda file: file.stem)
def test_every_config_builds_and_trains(file):
    torch.manual_seed(0)
    text = file.read_text()
    options = yaml.safe_load(text)
    options.pop("_kind_", None)  # what tasks it is for; no setting
    module, _, function = options.pop("_target_").rpartition(".")
    shape = {"inception_v3": (3, 75, 75), "mlp": (1, 28, 28)}.get(file.stem, (3, 32, 32))
    model = getattr(importlib.import_module(module), function)(shape, 7, **options)

    assert text.startswith("# ")
    assert model.training
    gammas = [model.get_submodule(name).weight for name in norms_of(model)]
    assert bool(gammas) == (file.stem != "scenes_vgg")  # a loss network, as VGG, has none
    assert all(gamma.eq(1).all() for gamma in gammas)
    scores = model(torch.randn(2, *shape))
    scores.logsumexp(1).sum().backward()
    assert scores.shape == (2, 7)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.get_submodule(find_classifier(model)).out_features == 7


def test_digits_resnet():
    model = digits_resnet((1, 8, 8), 10)
    assert norms_of(model) == [
        "bn1",
        *(f"layer1.0.bn{k}" for k in (1, 2)),
        *(f"layer{s}.0.{n}" for s in (2, 3) for n in ("bn1", "bn2", "downsample.1")),
    ]
    convolutions = 9 * (1 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64
    assert num_parameters(model) == convolutions + 2 * (3 * 16 + 3 * 32 + 3 * 64) + 64 * 10 + 10
    sizes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 1, 8, 8))
    assert sizes == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert num_parameters(digits_resnet((1, 8, 8), 10, width=8)) < num_parameters(model) / 3


def test_digits_resnet_deep_has_two_blocks_a_stage():
    one, two = digits_resnet((1, 8, 8), 10), digits_resnet_deep((1, 8, 8), 10)
    assert len(norms_of(two)) == 15
    second = {w: 2 * 9 * w * w + 4 * w for w in (16, 32, 64)}  # two convolutions and two norms
    assert num_parameters(two) == num_parameters(one) + sum(second.values())


@pytest.mark.parametrize(("blocks", "norms"), [(1, 12), (2, 21)])
def test_digits_resnext(blocks, norms):
    """Xie et al. 2017, Table 1: grouped 3x3 convolutions inside, of half the channels that leave the block."""
    model = digits_resnext((1, 8, 8), 10, width=16, blocks=blocks, groups=8)
    assert len(norms_of(model)) == 1 + 3 * 3 * blocks + 2 == norms  # the first stage keeps its 32 channels
    grouped = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)][1:]
    assert [(m.groups, m.in_channels) for m in grouped] == [(8, w) for w in (16, 32, 64) for _ in range(blocks)]
    assert [m.stride for m in grouped[::blocks]] == [(1, 1), (2, 2), (2, 2)]
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(UserError, match=r"groups=5 does not divide model.width=16"):
        digits_resnext((1, 8, 8), 10, groups=5)


@pytest.mark.parametrize(
    ("small", "large", "features"),
    [
        (lambda: mobilenetv2_small((3, 32, 32), 10, width="x0_35"), "mobilenetv2_035", "conv_head"),
        (lambda: shufflenet_v2_small((3, 32, 32), 10), "shufflenet_v2_x1_5", "conv5"),
        (lambda: densenet_small((3, 32, 32), 10), "densenet121", "features"),
    ],
)
def test_networks_for_small_images_end_at_4x4(small, large, features):
    """All is as in the network for ImageNet but strides, and DenseNet's stem, 3x3 in place of 7x7."""
    model = small()
    library = timm_model if large.startswith("mobilenet") else torchvision_model
    reference = library((3, 32, 32), 10, name=large)
    changed = {
        name: (p.shape, dict(reference.named_parameters())[name].shape)
        for name, p in model.named_parameters()
        if p.shape != dict(reference.named_parameters())[name].shape
    }
    stem = {"features.conv0.weight": ((64, 3, 3, 3), (64, 3, 7, 7))}
    assert changed == (stem if large == "densenet121" else {})
    assert len(list(model.parameters())) == len(list(reference.parameters()))
    sizes = []
    for network in (model, reference):
        network.get_submodule(features).register_forward_hook(lambda m, i, output: sizes.append(output.shape[2:]))
        network(torch.randn(2, 3, 32, 32))
    assert sizes == [(4, 4), (1, 1)]


def test_he_initialisation_by_fan_out():
    torch.manual_seed(0)
    for model in (resnet_cifar((3, 32, 32), 10), resnet_small((1, 32, 32), 10)):
        for name in ("conv1", "layer3.1.conv2"):
            conv = model.get_submodule(name)
            assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.15)


def test_resnet20_has_the_papers_size():
    # He et al. 2016, Table 6: 0.27 M parameters; projections add 16*32 + 32*64 weights and two norm layers
    model = resnet_cifar((3, 32, 32), 10)
    assert len(norms_of(model)) == 19
    assert num_parameters(model) == 269_722
    projected = resnet_cifar((3, 32, 32), 10, shortcut="projection")
    assert num_parameters(projected) - num_parameters(model) == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert len(norms_of(projected)) == 21
    assert num_parameters(resnet_cifar((3, 32, 32), 10, depth=110)) == 1_727_962  # "1.7M"


def test_pad_shortcut():
    x = torch.arange(2 * 25.0).view(1, 2, 5, 5)
    y = PadShortcut(new_channels=2, stride=2)(x)
    assert y.shape == (1, 4, 3, 3)
    assert torch.equal(y[:, :2], x[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert y[:, 2:].eq(0).all()


@pytest.mark.parametrize("depth,norms", [(18, 20), (34, 36), (50, 53)])
def test_resnet_small_keeps_the_resolution_of_its_input(depth, norms):
    model = resnet_small((1, 16, 16), 10, depth=depth)
    assert len(norms_of(model)) == norms
    sizes = []
    model.layer1.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    assert sizes == [(16, 16)]


def test_impossible_depths_are_refused():
    with pytest.raises(UserError, match=r"depth=21 is not 6n \+ 2.*nearest: 20"):
        resnet_cifar((3, 32, 32), 10, depth=21)
    with pytest.raises(UserError, match=r"depth=19.*18, 34, 50.*nearest: 18"):
        resnet_small((3, 32, 32), 10, depth=19)


def test_the_stem_of_sparse_sn_pools_other_pixels_of_maps_of_one_size():
    torch.manual_seed(0)
    theirs, ours = (build((3, 64, 60), 10, name="resnet18").eval() for build in (torchvision_model, resnet_ssn))
    ours.load_state_dict(theirs.state_dict())
    x = images(2, 3, 64, 60, dtype=torch.float32)
    for model, pool in ((theirs, nn.MaxPool2d(3, 2, 1)), (ours, nn.MaxPool2d(3, 2, ceil_mode=True))):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu)
        assert torch.equal(model.maxpool(stem(x)), pool(stem(x))) and model.maxpool(stem(x)).shape[2:] == (16, 15)
    with pytest.raises(UserError, match=r"model\.name=densenet121 is no ResNet; allowed: resnet50"):
        resnet_ssn((3, 64, 64), 10, name="densenet121")


def test_mlp_is_four_layers_of_128():
    model = mlp((1, 28, 28), 10)
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Flatten"] + ["Linear", "BatchNorm1d", "ReLU"] * 4 + ["Linear"]
    assert num_parameters(model) == (784 + 1) * 128 + 3 * 129 * 128 + 4 * 256 + 129 * 10
    assert [type(module).__name__ for module in mlp((1, 2, 2), 3, depth=0)] == ["Flatten", "Linear"]


# ---- timm and torchvision --------------------------------------------------------------------------------------


def test_names_agree_with_the_libraries():
    assert model_names("timm") == set(timm.list_models())
    assert model_names("torchvision") == set(torchvision.models.list_models(module=torchvision.models))


def test_names_are_read_without_importing_torch():
    code = (
        "import sys; from normlab.models.names import check_model_name; check_model_name('timm', 'resnet50');"
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_misspelt_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"torchvision model 'resnet5O'.*did you mean 'resnet50'"):
        torchvision_model((3, 32, 32), 10, name="resnet5O")
    with pytest.raises(UserError, match=r"timm model 'mobilenetv2-100'.*did you mean 'mobilenetv2_100'"):
        timm_model((3, 32, 32), 10, name="mobilenetv2-100")
    check_model_name("timm", "resnet50.a1_in1k")
    with pytest.raises(UserError, match="cannot be built"):
        timm_model((3, 32, 32), 10, name="resnet50.no_such_tag")


def test_an_image_too_small_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"'inception_v3' cannot be built for images of 1x8x8") as caught:
        torchvision_model((1, 8, 8), 10, name="inception_v3")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("build,name", [(torchvision_model, "densenet121"), (timm_model, "resnet18")])
def test_any_number_of_channels(build, name, channels):
    model = build((channels, 32, 32), 5, name=name)
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, 5)


def test_one_channel_stands_for_three_equal_ones():
    torch.manual_seed(0)
    grey = torchvision_model((1, 32, 32), 10, name="resnet18").eval()
    torch.manual_seed(0)
    colour = torchvision_model((3, 32, 32), 10, name="resnet18").eval()
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_transformers_take_the_size_of_the_images():
    model = timm_model((3, 32, 32), 10, name="vit_tiny_patch16_224")
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_pretrained_weights_stay_under_a_new_last_layer(monkeypatch):
    trained = torchvision.models.resnet18()
    nn.init.constant_(trained.bn1.weight, 0.5)
    weights = type(torchvision.models.ResNet18_Weights.DEFAULT)
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *args, **kwargs: trained.state_dict())
    model = torchvision_model((3, 32, 32), 10, name="resnet18", pretrained=True)
    assert torch.equal(model.conv1.weight, trained.conv1.weight)
    assert model.bn1.weight.eq(0.5).all()
    assert model.fc.out_features == 10
    same_classes = torchvision_model((3, 32, 32), 1000, name="resnet18", pretrained=True)
    assert torch.equal(same_classes.fc.weight, trained.fc.weight)


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host\nat all")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(UserError, match=r"'resnet18' cannot be built.*: no route to host$"):
        torchvision_model((3, 32, 32), 10, name="resnet18", pretrained=True)


@pytest.mark.parametrize(
    "build,name,classifier",
    [
        (torchvision_model, "vgg11", "classifier.6"),
        (torchvision_model, "mobilenet_v3_small", "classifier.3"),
        (torchvision_model, "squeezenet1_1", "classifier.1"),
        (timm_model, "resnet18", "fc"),
        (timm_model, "mobilenetv2_035", "classifier"),
        (timm_model, "regnetx_002", "head.fc"),
        (timm_model, "convnext_atto", "head.fc"),
    ],
)
def test_find_classifier(build, name, classifier):
    assert find_classifier(build((3, 64, 64), 7, name=name)) == classifier


def test_a_model_without_a_single_classifier_is_refused():
    with pytest.raises(UserError, match="'Sequential' has no single final linear layer"):
        find_classifier(nn.Sequential(nn.ReLU()))
    with pytest.raises(UserError, match="no single final linear layer"):
        find_classifier(timm.create_model("deit_tiny_distilled_patch16_224"))
