"""SN's released detectors: what their tensors are called here, and what network they tell of.

They were made by a Detectron in PyTorch whose modules are (SwitchNorm_Detection, lib/modeling: FPN.py, ResNet.py,
fast_rcnn_heads.py, mask_rcnn_heads.py, rpn_heads.py of what it is built on)

    Conv_Body.[conv_body.]res1 to res5                  the backbone; with a pyramid it is inside of that
    Conv_Body.conv_top, topdown_lateral_modules.K.conv_lateral, posthoc_modules.K
                                                        the pyramid, from its coarsest level on
    RPN.[FPN_]RPN_conv, _cls_score, _bbox_pred          proposals; the score is one sigmoid an anchor
    Box_Head.convs.K, fc | fc1, fc2 | res5              the box head: convolutions, layers, or the last stage (C4)
    Box_Outs.cls_score, bbox_pred                       background first, as here
    Mask_Head.conv_fcn.K, upconv; Mask_Outs.classify    the mask head

Their anchors lie around the middle of a cell, torchvision's around its corner: model.anchor_centres=middle.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

Names = Iterable[str]
_LEVELS = 4  # of a pyramid
_LAST_LAYER = "roi_heads.box_head.5."  # behind four convolutions and what flattens them
_Place = str | Callable[[re.Match[str]], str]
_MODULES: tuple[tuple[str, _Place], ...] = (
    (r"Conv_Body\.(?:conv_body\.)?res1\.", "backbone.body."),
    (r"Conv_Body\.(?:conv_body\.)?res([2-5])\.", lambda found: f"backbone.body.layer{int(found[1]) - 1}."),
    (r"Conv_Body\.conv_top\.", f"backbone.fpn.inner_blocks.{_LEVELS - 1}."),
    (
        r"Conv_Body\.topdown_lateral_modules\.(\d)\.conv_lateral\.",
        lambda found: f"backbone.fpn.inner_blocks.{_LEVELS - 2 - int(found[1])}.",
    ),
    (r"Conv_Body\.posthoc_modules\.(\d)\.", lambda found: f"backbone.fpn.layer_blocks.{_LEVELS - 1 - int(found[1])}."),
    (r"RPN\.(?:FPN_)?RPN_conv\.", "rpn.head.conv.0.0."),
    (r"RPN\.(?:FPN_)?RPN_cls_score\.", "rpn.head.cls_logits."),
    (r"RPN\.(?:FPN_)?RPN_bbox_pred\.", "rpn.head.bbox_pred."),
    (r"Box_Head\.convs\.", "roi_heads.box_head."),
    (r"Box_Head\.fc\.", _LAST_LAYER),
    (r"Box_Head\.fc1\.", "roi_heads.box_head.fc6."),
    (r"Box_Head\.fc2\.", "roi_heads.box_head.fc7."),
    (r"Box_Head\.res5\.", "roi_heads.box_head.layer4."),
    (r"Box_Outs\.", "roi_heads.box_predictor."),
    (r"Mask_Head\.conv_fcn\.", "roi_heads.mask_head."),
    (r"Mask_Head\.upconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"Mask_Outs\.classify\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
_PYRAMID = "backbone.fpn."
_PARTS = {  # whose norm a file tells of -> what its tensors begin with
    "backbone": "backbone.body.",
    "fpn": _PYRAMID,
    "box": "roi_heads.box_head.",
    "mask": "roi_heads.mask_head.",
}
POOLS = {2: "sn_in_ln", 3: "sn"}  # number of logits -> norm; the order is IN, LN, BN
_SCOPES = {2: "[in,ln]", 3: "[in,ln,bn]"}


def is_whole(names: Names) -> bool:
    """Whether a file has a detector, beyond the backbone of one."""
    return any(name.startswith("Box_Outs.") for name in names)


def renamed(name: str, names: Names) -> str:
    """What a tensor is called in torchvision's detectors; one of a module that they lack keeps its name.

    `names` are all of the file: in a head whose convolutions have norms, these are three modules apart, else two.
    """
    for pattern, place in _MODULES:
        found = re.match(pattern, name)
        if found is None:
            continue
        prefix = place if isinstance(place, str) else place(found)
        rest = name[found.end() :]
        if found[0] in ("Box_Head.convs.", "Mask_Head.conv_fcn."):
            number, _, inside = rest.partition(".")
            apart = 3 if any(other.startswith(f"{found[0]}1.") for other in names) else 2
            if number.isdecimal():
                rest = f"{int(number) // apart}.{int(number) % apart}.{inside}"
        if prefix.startswith(_PYRAMID) and rest in ("weight", "bias"):  # a convolution without a norm
            rest = f"0.{rest}"
        return prefix + rest
    return name


def words(tensors: Mapping[str, Tensor], backbone: str) -> list[str]:
    """Settings of the detector that tensors tell of, by their names here; `backbone` is a ResNet's."""
    pyramid = any(name.startswith(_PYRAMID) for name in tensors)
    mask = any(name.startswith("roi_heads.mask_head.") for name in tensors)
    found = [f"model={'mask_rcnn_fpn' if mask else 'faster_rcnn_fpn' if pyramid else 'faster_rcnn_c4'}"]
    found += [f"model.backbone={backbone}", "model.anchor_centres=middle"]
    if pyramid:
        plain = "roi_heads.box_head.fc6.weight" in tensors
        found += ["model.box_head=2fc"] if plain else []
        sizes = {
            "channels": f"{_PYRAMID}layer_blocks.0.0.weight",
            "hidden": "roi_heads.box_head.fc6.weight" if plain else f"{_LAST_LAYER}weight",
        }
        there = {setting: tensors[name] for setting, name in sizes.items() if name in tensors and tensors[name].ndim}
        found += [f"model.{setting}={len(tensor)}" for setting, tensor in there.items()]
    return found + _norm_words(tensors, parts=["fpn", "box", "mask"] if pyramid else [])


def _norm_words(tensors: Mapping[str, Tensor], parts: Iterable[str]) -> list[str]:
    """What each part has in the place of the backbone's norm: none, or another choice of scopes."""
    logits = {
        part: next(
            (t.numel() for name, t in tensors.items() if name.startswith(own) and name.endswith(".mean_logits")), 0
        )
        for part, own in _PARTS.items()
    }
    found = [f"norm={POOLS.get(logits['backbone'], 'sn')}", "norm.profile=official"]
    for part in parts:
        if logits[part] == 0 and any(name.startswith(_PARTS[part]) for name in tensors):
            found.append(f"parts.{part}=none")
        elif logits[part] in _SCOPES and logits[part] != logits["backbone"]:
            found += [f"parts.{part}.norm.{moment}={_SCOPES[logits[part]]}" for moment in ("mean", "var")]
    return found
