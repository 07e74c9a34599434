"""The checkpoints that the papers' authors released: what their tensors are called here, and what run they tell of.

| layout    | told by                   | what it is                                                             |
|-----------|---------------------------|------------------------------------------------------------------------|
| sn        | `module.sn1.mean_weight`  | SN's ResNets: of IN and LN if it has two numbers; v2 if there is sn_out |
| ssn       | `...mean_fixed`, `radius` | sparse SN                                                              |
| detection | `Conv_Body.res1.sn1.*`    | SN in the backbone of a detector                                       |
| detector  | and `Box_Outs.*`          | SN in a whole detector (detectors.py)                                  |
| ws        | `module.bn1.weight`       | Weight Standardization with GN, which is called bn                     |

Only names and shapes are known of them; the classes that made them are not needed, and nothing in a file is executed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from normlab.config import choices
from normlab.errors import UserError
from normlab.exchange import detectors
from normlab.exchange.detectors import POOLS
from normlab.models.tensor_files import read_tensors

Tensors = dict[str, Tensor]

_DEPTHS = {6: 50, 23: 101, 36: 152}  # blocks of the third stage -> layers, of networks with bottlenecks
_BASIC_DEPTHS = {2: 18, 6: 34}
_RENAMED = (
    (r"^module\.", ""),
    (r"^Conv_Body\.(conv_body\.)?", ""),
    (r"^res1\.", ""),
    (r"^res([2-5])\.", lambda match: f"layer{int(match[1]) - 1}."),
    (r"(^|\.)sn(\d+|_out)\.", r"\1bn\2."),
    (r"\.(mean|var)_weight$", r".\1_logits"),
)
_OF_SPARSE = ("mean_fixed", "var_fixed", "radius")  # its schedule, which an outcome does not need


@dataclass
class Released:
    """A released checkpoint.

    Attributes:
        layout: sn, ssn, detection, detector or ws.
        tensors: by the names and in the shapes of torchvision's networks, logits as mean_logits and var_logits.
        names: what the file calls each of them.
        words: of a command line, that set up the model it belongs to.
        left_out: tensors that are not of the backbone and its classifier.
        undecided: norm layers whose sparse ratios were still mixed; here the largest counts.
    """

    layout: str
    tensors: Tensors
    names: dict[str, str]
    words: list[str]
    left_out: int
    undecided: int


def read(path: Path) -> Released:
    """Raises UserError if the file cannot be read without executing something, or is none of the layouts."""
    raw = read_tensors(path)
    layout = _layout(raw)
    if layout is None:
        some = ", ".join(list(raw)[:3])
        raise UserError(f"{path}: this is none of the released layouts (SN, SSN, SN in a detector, WS); it has {some}")
    of_backbone = {name: t for name, t in raw.items() if layout != "detection" or _is_backbone(name)}
    schedule = {name: t for name, t in of_backbone.items() if name.rpartition(".")[2] in _OF_SPARSE}
    undecided = {name.rpartition(".")[0] for name, t in schedule.items() if name.endswith("_fixed") and not t.any()}
    names: dict[str, str] = {}
    for name in of_backbone.keys() - schedule.keys():
        here = _renamed(detectors.renamed(name, raw) if layout == "detector" else name)
        if (other := names.setdefault(here, name)) != name:
            raise UserError(f"{path}: {name} and {other} are both {here} here")
    tensors = {own: _reshaped(raw[name]) for own, name in names.items()}
    return Released(layout, tensors, names, _words(layout, tensors), len(raw) - len(of_backbone), len(undecided))


def _layout(names: Mapping[str, Tensor]) -> str | None:
    if any(name.startswith("Conv_Body.") for name in names):
        return "detector" if detectors.is_whole(names) else "detection"
    if any(name.endswith("_fixed") for name in names):
        return "ssn"
    if any(name.endswith(".mean_weight") for name in names):
        return "sn"
    return "ws" if {"module.conv1.weight", "module.bn1.weight"} <= names.keys() else None


def _is_backbone(name: str) -> bool:
    return re.match(r"Conv_Body\.(conv_body\.)?res[1-5]\.", name) is not None


def _renamed(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return name


def _reshaped(tensor: Tensor) -> Tensor:
    """[1, C, 1, 1] and [1, C, 1] are (C,) here; weights of convolutions are never so: they have C > 1 filters."""
    return tensor.flatten() if tensor.ndim >= 3 and tensor.numel() == tensor.shape[1] else tensor


def _words(layout: str, tensors: Tensors) -> list[str]:
    """The model and normalizer that the tensors tell of, as far as they do."""
    if layout == "detector":
        body = "backbone.body."
        own = {name.removeprefix(body): t for name, t in tensors.items() if name.startswith(body)}
        return ["task=detection", *detectors.words(tensors, _resnet(own))]
    words = ["norm=gn", "weight=ws", "weight.profile=official"]
    if layout != "ws":
        logits = next((t.numel() for name, t in tensors.items() if name.endswith(".mean_logits")), 0)
        words = ["norm=sn_hard" if layout == "ssn" else f"norm={POOLS.get(logits, 'sn')}", "norm.profile=official"]
        if layout == "ssn" and logits == 2:
            words += ["norm.mean=[in,ln]", "norm.var=[in,ln]"]
    return words + _model_words(tensors, sparse=layout == "ssn")


def _model_words(tensors: Tensors, sparse: bool) -> list[str]:
    name = _resnet(tensors)
    if "bn_out.weight" in tensors:
        return ["model=resnet50_v2", f"model.depth={_depth(tensors)}"]
    if not sparse and name in choices("model"):
        return [f"model={name}"]
    return ["model=resnet50_ssn" if sparse else "model=torchvision", f"model.name={name}"]


def _resnet(tensors: Tensors) -> str:
    """What torchvision calls the network of these tensors."""
    middle = tensors.get("layer1.0.conv2.weight", torch.empty(0))
    grouped = middle.ndim == 4 and middle.shape[1] < middle.shape[0]
    return f"resnext{_depth(tensors)}_32x4d" if grouped else f"resnet{_depth(tensors)}"


def _depth(tensors: Tensors) -> int:
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("layer3.")})
    return (_DEPTHS if "layer1.0.conv3.weight" in tensors else _BASIC_DEPTHS).get(blocks, 50)
