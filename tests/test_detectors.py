"""Networks that detect: torchvision's, part by part."""

import pytest
import torch
from torch import nn
from torchvision.models import detection as theirs

from normlab.cli import main
from normlab.config import load
from normlab.engine.build import build
from normlab.norm.layer import Normalizer
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder

SMALL = ("task=detection", "data.length=32", "data.val_length=12", "model.channels=8", "model.hidden=16",
         "model.box_samples=8", "model.anchor_samples=16", "tracker=none", "threads=1",
         "batch_average.samples=8")  # fmt: skip
C4 = (*(word for word in SMALL if "channels" not in word), "model=scenes_detector_c4")
MASK = "model.mask=true"


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def norms(model: nn.Module, prefix: str) -> int:
    return sum(isinstance(m, Normalizer) for name, m in model.named_modules() if name.startswith(prefix))


@pytest.fixture(scope="module")
def papers() -> dict[str, nn.Module]:
    """The papers' networks, for the 91 outputs of torchvision's."""
    coco = ("task=detection", "data=scene_boxes", "data.channels=3", "data.size=32")
    words = {
        "c4": ["model=faster_rcnn_c4", "norm=sn"],
        "fpn": ["model=faster_rcnn_fpn", "norm=sn"],
        "mask": ["model=mask_rcnn_fpn", "norm=sn"],
        "v1": ["model=faster_rcnn_fpn", "model.box_head=2fc", "norm=none", "parts.backbone=bn_frozen"],
        "v1_mask": ["model=mask_rcnn_fpn", "model.box_head=2fc", "norm=none", "parts.backbone=bn_frozen"],
        "v2": ["model=faster_rcnn_fpn", "norm=bn"],
        "v2_mask": ["model=mask_rcnn_fpn", "norm=bn"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("normlab.data.scenes.Scenes.num_classes", 90)
        return {name: build(load([*coco, *more])).model for name, more in words.items()}


def test_parameters_are_those_that_torchvision_states(papers):
    """Version 1 has a frozen batch norm in its backbone; version 2 one convolution more in its RPN."""
    stated = {
        "v1": theirs.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        "v1_mask": theirs.MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
        "v2": theirs.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
        "v2_mask": theirs.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    }
    convolution = 256 * 256 * 9 + 256
    for name, weights in stated.items():
        more = convolution if name.startswith("v2") else 0
        assert parameters(papers[name]) == weights.meta["num_params"] - more


def test_norm_layers_of_each_part(papers):
    expected = {"c4": (43, 0, 10, 0), "fpn": (53, 8, 4, 0), "mask": (53, 8, 4, 4)}
    prefixes = ("backbone.body", "backbone.fpn", "roi_heads.box_head", "roi_heads.mask_head")
    for name, counts in expected.items():
        assert tuple(norms(papers[name], prefix) for prefix in prefixes) == counts
        assert norms(papers[name], "") == sum(counts)


@pytest.mark.parametrize(("backbone", "layers"), [("scenes_resnet_deep", 20), ("scenes_resnext_deep", 28)])
def test_other_backbones(backbone, layers):
    model = build(load([*SMALL, f"model.backbone={backbone}", "norm=sn"])).model
    assert norms(model, "backbone.body") == layers


def test_parts_are_normalized_each_by_its_own():
    """A part without a norm has other convolutions: with a bias. `head` is all that is not the backbone."""
    model = build(load([*SMALL, MASK, "norm=sn", "parts.fpn=none", "parts.mask=gn"])).model
    assert norms(model, "backbone.fpn") == 0 and norms(model, "backbone.body") == 12
    assert model.backbone.fpn.layer_blocks[0][0].bias is not None
    assert model.roi_heads.mask_head[0][1].mean_scopes == ["gn"]
    assert model.roi_heads.box_head[0][1].mean_scopes == ["in", "ln", "bn"]
    model = build(load([*SMALL, MASK, "norm=sn", "parts.head=none"])).model
    assert norms(model, "") == norms(model, "backbone.body") == 12
    frozen = build(load([*SMALL, "norm=gn", "parts.backbone=bn_frozen"])).model
    assert all(m.frozen for m in frozen.backbone.body.modules() if isinstance(m, Normalizer))
    assert not list(frozen.backbone.body.bn1.parameters())


def test_weights_of_convolutions_that_a_norm_follows():
    """As the released WS code has it: stem, blocks, shortcuts, pyramid and heads; not the RPN, not the predictors."""
    model = build(load([*SMALL, MASK, "norm=gn", "weight=ws"])).model
    done = {name for name, m in model.named_modules() if hasattr(m, "parametrizations")}
    assert len(done) == 12 + 6 + 4 + 4
    assert not any(name.startswith(("rpn", "roi_heads.mask_predictor")) for name in done)
    model = build(load([*SMALL, "norm=gn", "weight=ws", "parts.head=none"])).model
    assert len({name for name, m in model.named_modules() if hasattr(m, "parametrizations")}) == 12


@pytest.mark.parametrize(("frozen", "pieces"), [(0, ()), (1, ("conv1", "bn1")), (2, ("conv1", "bn1", "layer1"))])
def test_frozen_stages(frozen, pieces):
    """All their parameters, SN's ratios too."""
    model = build(load([*SMALL, "norm=sn", f"task.frozen_stages={frozen}"])).model
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {n for n, _ in model.named_parameters() if n.split(".")[2:] and n.split(".")[2] in pieces}
    assert ("backbone.body.bn1.mean_logits" in still) == (frozen > 0)


@pytest.mark.parametrize("words", [SMALL, C4])
def test_it_begins_from_a_classifier(tmp_path, words):
    """Of C4 the head too; frozen batch norm takes the statistics of the classifier's."""
    own = ["data=scenes", "model=scenes_resnet", "norm=bn", "batch=2x2", "iterations=1", "tracker=none"]
    own += [f"out={tmp_path}", "data.val_length=8", "data.length=8"]
    assert main(["train", *own]) == 0
    folder = RunFolder.of(load(own))
    state = load_tensors(folder.weights)
    for norm in ("bn", "bn_frozen"):
        experiment = build(load([*words, f"init={folder.path}", f"out={tmp_path}", f"norm={norm}"]))
        model = experiment.model
        assert experiment.unused[:2] == ["fc.bias", "fc.weight"]
        last = model.roi_heads.box_head.layer4 if words == C4 else model.backbone.body.layer4
        assert torch.equal(last[0].conv2.weight, state["layer4.0.conv2.weight"])
        assert torch.equal(last[0].bn1.running_var, state["layer4.0.bn1.running_var"])


def test_receptive_fields_are_the_backbones():
    sites = {site.name: site.receptive_field for site in build(load([*SMALL, "norm=sn"])).sites}
    assert sites["backbone.body.bn1"] == 3 and sites["backbone.fpn.layer_blocks.0.1"] is None
    assert max(filter(None, sites.values())) == sites["backbone.body.layer4.0.bn2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=digits"], "data=digits: this is for images, and task=detection takes boxes"),
        (["model=resnet50"], "model=resnet50: this is for classifier, and task=detection takes detector"),
        (["model.backbone=vgg11"], "model.backbone=vgg11: expected a ResNet"),
        (["model.backbone=resnet5"], "resnet50"),
        (["model.anchors=[8,16]"], "model.anchors=[8,16]: expected a side for each of the pyramid's 4 levels"),
        (["model=scenes_detector_c4", "model.anchors=[]"], "model.anchors=[]: expected a side or more"),
        (["model.levels=[3,2]"], "model.levels=[3,2]: expected different numbers of stages, the smallest first"),
        (["model=scenes_detector_c4", "model.mask=true"], "model.mask=true: the head for masks needs model.pyramid"),
        (["parts.mask=gn"], "part 'mask' does not exist"),
        (["norm=syncbn"], "norm.sync=true: replicas have unequal numbers of boxes"),
        (["model.max_size=1"], "model.max_size=1: expected a whole number of 8 or more"),
        (["task.frozen_stages=6"], "task.frozen_stages=6"),
        (["model._target_=normlab.models.mlp.mlp"], "expected something to call as f(shape, num_classes, normalized"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(capsys, words, message):
    assert main(["plan", "task=detection", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_its_further_package_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("normlab.tasks.detection.find_spec", lambda name: None)
    assert main(["plan", "task=detection"]) == 2
    assert "pip install 'normlab[detection]'" in capsys.readouterr().err
