"""The networks of segmentation against torchvision's, and against what dilation means."""

import warnings

import pytest
import torch
import torchvision
from torch import nn

from normlab.config import choices, kinds_of, load
from normlab.errors import UserError
from normlab.models.segmenters import PyramidPooling, deeplabv3, dilated_deeplab, scenes_segmenter
from normlab.norm import layer
from normlab.norm.convert import convert, is_replaceable
from normlab.schema import bind

TORCHVISIONS = {"stride": 8, "rates": (12, 24, 36), "fuse": True, "dropout": 0.5, "auxiliary": True}


def norms(model: nn.Module) -> int:
    return sum(is_replaceable(module) for module in model.modules())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "number"),
    [("deeplab_resnet50", 55), ("pspnet_resnet50", 59), ("deeplabv3_resnet101", 110), ("scenes_segmenter", 14)],
)
def test_norm_layers(name, number):
    assert norms(bind(load([f"model={name}", "task=segmentation"]).model)((3, 32, 32), 21)) == number


def test_every_segmenter_has_a_test_of_its_norm_layers():
    assert {name for name in choices("model") if "segmenter" in kinds_of("model", name)} == {
        "deeplab_resnet50", "pspnet_resnet50", "deeplabv3_resnet101", "scenes_segmenter"
    }  # fmt: skip


def test_deeplabv3_is_torchvisions():
    """All parameters, and the same logits of both heads from the same weights."""
    theirs = torchvision.models.get_model("deeplabv3_resnet101", weights=None, weights_backbone=None, aux_loss=True)
    ours = deeplabv3((3, 65, 65), 21, **TORCHVISIONS)
    assert parameters(ours) == parameters(theirs) == 60_996_202
    assert norms(ours) == norms(theirs) == 112
    own = {"classifier": "decoder", "aux_classifier": "auxiliary", "backbone": "backbone"}
    state = {".".join([own[(w := name.split("."))[0]], *w[1:]]): t for name, t in theirs.state_dict().items()}
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 65, 65)
    for model in (ours, theirs):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
    expected = theirs(x)
    for mine, key in zip(ours(x), ("out", "aux"), strict=True):
        enlarged = nn.functional.interpolate(mine, (65, 65), mode="bilinear", align_corners=False)
        torch.testing.assert_close(enlarged, expected[key], rtol=1e-4, atol=1e-5)
    assert isinstance(ours.eval()(x), torch.Tensor)


def test_weight_standardizations_network():
    model = deeplabv3((3, 64, 64), 21).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 21, 4, 4) and model.auxiliary is None
    rates = [block.conv2.dilation[0] for block in model.backbone.layer4]
    assert rates == [1, 2, 2]
    graded = deeplabv3((3, 64, 64), 21, multi_grid=(1, 2, 4))
    assert [block.conv2.dilation[0] for block in graded.backbone.layer4] == [2, 4, 8]


@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_maps_hold_the_undilated_ones(stride):
    """What dilation is for: every so many positions, the maps are those of the classifier with its strides."""
    segmenter = dilated_deeplab((3, 64, 64), 5, stride=stride)
    whole = torchvision.models.resnet50(num_classes=2)
    whole.load_state_dict(segmenter.backbone.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    segmenter.eval(), whole.eval()
    seen = {}
    whole.layer4.register_forward_hook(lambda module, inputs, output: seen.update(last=output))
    whole(x)
    step = 32 // stride
    torch.testing.assert_close(segmenter.backbone(x)["last"][..., ::step, ::step], seen["last"], rtol=1e-4, atol=1e-4)


def test_the_scenes_network_holds_its_classifiers_maps():
    segmenter = scenes_segmenter((1, 64, 64), 11)
    classifier = bind(load(["model=scenes_resnet"]).model)((1, 64, 64), 10)
    missing, unexpected = classifier.load_state_dict(segmenter.backbone.state_dict(), strict=False)
    assert unexpected == [] and missing == ["fc.weight", "fc.bias"]
    x, seen = torch.randn(2, 1, 64, 64), {}
    classifier.layer4.register_forward_hook(lambda module, inputs, output: seen.update(last=output))
    segmenter.eval(), classifier.eval()(x)
    torch.testing.assert_close(segmenter.backbone(x)["last"][..., ::4, ::4], seen["last"], rtol=1e-4, atol=1e-5)
    assert segmenter(x).shape == (2, 11, 16, 16) and 150_000 < parameters(segmenter) < 170_000


def test_the_scenes_network_may_have_a_pyramid():
    model = scenes_segmenter((1, 48, 48), 11, pyramid=True)
    assert norms(model) == 18 and model.eval()(torch.randn(2, 1, 48, 48)).shape == (2, 11, 12, 12)


@pytest.mark.parametrize(("norm", "works"), [("sn", True), ("ln", True), ("gn", True), ("in", False), ("bn", False)])
def test_pooling_to_one_bin(norm, works):
    """IN has no variance in a 1x1 map, and BN of one sample neither; mixtures stay finite."""
    pooling = PyramidPooling(8, 4)
    convert(pooling, bind(load([f"norm={norm}"]).norm))
    x = torch.randn(1, 8, 12, 12, requires_grad=True)
    if not works:
        with pytest.raises(UserError, match="one value"):
            pooling(x)
        return
    layer._warn_of_single_values.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = pooling(x)
        pooling(x)
    assert [str(w.message).partition(",")[0] for w in said] == (
        ["a mixture's scope 'bn+in' holds one value in each of its pixel sets"] if norm == "sn" else []
    )
    found.square().sum().backward()
    assert found.shape == (1, 24, 12, 12) and found.isfinite().all() and x.grad.isfinite().all()


def test_a_backbone_that_cannot_be_dilated():
    with pytest.raises(UserError, match=r"model\.backbone=resnet18: expected a ResNet or ResNeXt of bottlenecks"):
        dilated_deeplab((3, 64, 64), 5, backbone="resnet18")
