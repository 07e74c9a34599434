"""normlab import of whole detectors: files in the layout of the released ones, and what their modules compute."""

from functools import partial
from pathlib import Path

import pytest
import released
import torch
from released import BoxHead, BoxOuts, MaskHead, MaskOuts, Proposals, Pyramid, ResNet, SwitchNorm, prefixed
from test_import import BASIC, DEEP, imported, refusal
from torch import nn

from normlab.cli import main
from normlab.config import load
from normlab.engine.build import build
from normlab.engine.saved import open_run
from normlab.runs.folder import RunFolder

CHANNELS, HIDDEN, CLASSES = 32, 12, 5
FAST = ("data.size=64", "data.length=8", "data.val_length=4", "model.min_size=64", "model.max_size=64")
INSTANCE_LAYER = partial(SwitchNorm, logits=2)


class Parts(nn.Module):
    """A detector by its parts; norms of the pyramid, the box head and the mask head are given."""

    def __init__(self, fpn=SwitchNorm, box=SwitchNorm, mask=SwitchNorm, body=SwitchNorm) -> None:
        super().__init__()
        self.body = ResNet(BASIC, wide=False, norm=body)
        self.pyramid, self.rpn = Pyramid([64, 128, 256, 512], CHANNELS, fpn), Proposals(CHANNELS)
        self.box, self.outs = BoxHead(CHANNELS, HIDDEN, box), BoxOuts(HIDDEN, CLASSES + 1)
        self.mask, self.masks = MaskHead(CHANNELS, mask), MaskOuts(CHANNELS, CLASSES + 1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.body.pool(self.body.sn1(self.body.conv1(x)).relu()), []
        for stage in range(4):
            maps.append(x := self.body.get_submodule(f"layer{stage + 1}")(x))
        return self.pyramid(maps)

    def state(self) -> dict[str, torch.Tensor]:
        whole = released.detector(self.body)
        state = {name: t for name, t in whole.items() if ".conv_body." in name}
        named = {"Conv_Body": self.pyramid, "RPN": self.rpn, "Box_Head": self.box, "Box_Outs": self.outs,
                 "Mask_Head": self.mask, "Mask_Outs": self.masks}  # fmt: skip
        for prefix, module in named.items():
            state |= prefixed(prefix, module)
        return state


CASES = {
    "SN everywhere": ({}, "model=mask_rcnn_fpn model.backbone=resnet18 model.anchor_centres=middle"),
    "IN and LN in heads": (
        {"box": INSTANCE_LAYER, "mask": INSTANCE_LAYER},
        "parts.box.norm.mean=[in,ln] parts.box.norm.var=[in,ln] parts.mask.norm.mean=[in,ln]",
    ),
    "no norm but in the backbone": (
        {"fpn": None, "box": None, "mask": None},
        "parts.fpn=none parts.box=none parts.mask=none",
    ),
    "IN and LN everywhere": (dict.fromkeys(("body", "fpn", "box", "mask"), INSTANCE_LAYER), "norm=sn_in_ln"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_module_computes_what_it_did(case: str, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    norms, words = CASES[case]
    network = Parts(**norms).double().eval()
    torch.save({"model": network.state(), "step": 3}, tmp_path / "model.pth")
    assert main(["import", str(tmp_path / "model.pth"), f"out={tmp_path}", "precision=fp64", *FAST]) == 0
    said = capsys.readouterr().out
    assert words in said and "left out" not in said and "random" not in said
    ours = open_run(imported(tmp_path)).experiment.model.eval()
    x, boxes, shapes = (torch.randn(2, *size, dtype=torch.float64) for size in ((3, 64, 64), (CHANNELS, 7, 7),
                                                                               (CHANNELS, 14, 14)))  # fmt: skip
    with torch.no_grad():
        maps = list(ours.backbone(x).values())
        expected = network.maps(x)
        for one, other in zip(maps[:4], expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        assert torch.equal(maps[4], maps[3][..., ::2, ::2])
        scores, deltas = ours.rpn.head(maps[:4])
        for level, x in enumerate(expected):
            torch.testing.assert_close((scores[level], deltas[level]), network.rpn(x), rtol=1e-9, atol=1e-9)
        hidden = network.box(boxes)
        torch.testing.assert_close(ours.roi_heads.box_head(boxes), hidden, rtol=1e-9, atol=1e-9)
        classes = network.outs.cls_score(hidden), network.outs.bbox_pred(hidden)
        torch.testing.assert_close(ours.roi_heads.box_predictor(hidden), classes, rtol=1e-9, atol=1e-9)
        masks = network.masks.classify(network.mask(shapes))
        found = ours.roi_heads.mask_predictor(ours.roi_heads.mask_head(shapes))
        torch.testing.assert_close(found, masks, rtol=1e-9, atol=1e-9)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save({"model": Parts().state()}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_the_run_is_shown_evaluated_and_begun_from(file: Path, tmp_path: Path, capsys) -> None:
    assert main(["import", str(file), f"out={tmp_path}", *FAST]) == 0
    folder = imported(tmp_path)
    assert main(["show", str(folder.path)]) == 0
    assert main(["eval", str(folder.path)]) == 0
    assert main(["figure", "layers", str(folder.path), f"out={tmp_path / 'layers.png'}"]) == 0
    said = capsys.readouterr().out
    assert "imported" in said and "in backbone" in said and "mask_ap" in said
    words = ["task=detection", "data=synthetic_boxes", "data.num_classes=5", "model=mask_rcnn_fpn", "norm=sn",
             "norm.profile=official", "model.backbone=resnet18", f"model.channels={CHANNELS}",
             f"model.hidden={HIDDEN}", *FAST, "batch=1x2", "iterations=1", "batch_average.samples=2", "tracker=none",
             f"init={folder.path}", f"out={tmp_path / 'runs'}"]  # fmt: skip
    assert build(load(words)).unused == []
    assert main(["train", *words]) == 0
    assert RunFolder.of(load(words)).status()["status"] == "finished"


def test_one_whose_head_is_the_last_stage(tmp_path: Path, capsys) -> None:
    """C4: no pyramid, ResNet-50's fourth stage, 15 anchors."""
    torch.manual_seed(0)
    network = ResNet(DEEP, wide=True)
    state = {name: t for name, t in released.detector(network, "").items() if name.startswith("Conv_Body.res")}
    state = {name.replace("Conv_Body.res5.", "Box_Head.res5."): t for name, t in state.items()}
    layers = {"RPN_conv": nn.Conv2d(1024, 1024, 3), "RPN_cls_score": nn.Conv2d(1024, 15, 1),
              "RPN_bbox_pred": nn.Conv2d(1024, 60, 1)}  # fmt: skip
    state |= prefixed("RPN", nn.ModuleDict(layers)) | prefixed("Box_Outs", BoxOuts(2048, CLASSES + 1))
    torch.save({"model": state}, tmp_path / "model.pth")
    assert main(["import", str(tmp_path / "model.pth"), f"out={tmp_path}", *FAST]) == 0
    assert "model=faster_rcnn_c4 model.backbone=resnet50" in capsys.readouterr().out
    ours = open_run(imported(tmp_path)).experiment.model
    head = ours.roi_heads.box_head.layer4
    assert torch.equal(head[2].conv3.weight, network.layer4[2].conv3.weight)
    assert torch.equal(head[0].downsample[1].mean_logits, network.layer4[0].downsample[1].mean_weight)
    assert torch.equal(ours.rpn.head.bbox_pred.weight, layers["RPN_bbox_pred"].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Keypoint_Head.conv.weight": torch.zeros(2)}, "not in the model: Keypoint_Head.conv.weight"),
        ({"RPN.FPN_RPN_cls_score.bias": torch.zeros(6)}, r"rpn.head.cls_logits.bias (6,), not (3,)"),
        ({"Mask_Head.upconv.bias": None}, "not in the file: roi_heads.mask_predictor.conv5_mask.bias"),
        ({"Conv_Body.posthoc_modules.7.0.weight": torch.zeros(2)}, "not in the model: backbone.fpn.layer_blocks.-4"),
        ({"Box_Head.convs.x.weight": torch.zeros(2)}, "not in the model: roi_heads.box_head.x.weight"),
        ({"Box_Outs.cls_score.bias": torch.zeros(())}, "roi_heads.box_predictor.cls_score.bias (), not"),
        (
            {"Conv_Body.posthoc_modules.3.0.weight": torch.zeros(())},
            "backbone.fpn.inner_blocks.0.0.weight (32, 64, 1, 1), not (256, 64, 1, 1)",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(file: Path, tmp_path: Path, capsys, change: dict, message: str) -> None:
    state = torch.load(file)["model"] | change
    torch.save({"model": {name: t for name, t in state.items() if t is not None}}, file)
    assert message in refusal(capsys, "import", str(file), f"out={tmp_path / 'runs'}", *FAST)
    assert not list((tmp_path / "runs").glob("*/run.json"))


def test_anchors_around_the_middle_of_a_cell() -> None:
    """Half a stride from torchvision's, of the same sides."""
    words = ["task=detection", "data=synthetic_boxes", "model=faster_rcnn_fpn", "model.backbone=resnet18", "norm=gn"]
    images = [torch.zeros(3, 128, 128)]
    found = []
    for more in ((), ("model.anchor_centres=middle",)):
        model = build(load([*words, "model.min_size=128", "model.max_size=128", *more])).model.eval()
        padded, _ = model.transform(images)
        maps = list(model.backbone(padded.tensors).values())
        (anchors_A4,) = model.rpn.anchor_generator(padded, maps)
        found.append(anchors_A4.split([3 * x.shape[-2] * x.shape[-1] for x in maps]))
    for k, (corner_A4, middle_A4) in enumerate(zip(*found, strict=True)):
        stride = 4 * 2**k
        torch.testing.assert_close(middle_A4, corner_A4 + stride / 2)
        centres_A2 = (middle_A4[:, :2] + middle_A4[:, 2:]) / 2
        torch.testing.assert_close(centres_A2[:3], torch.full((3, 2), stride / 2))
        torch.testing.assert_close(centres_A2 % stride, torch.full_like(centres_A2, stride / 2))
