"""The one place that imports torchvision and what stands on it: `from normlab.vision import timm, torchvision`.

torchvision's wheel holds operators compiled against one build of torch (CUDA or CPU). Beside the other build they do
not load, and `import torchvision` then fails on fake kernels of two detection operators that nobody here calls.
Declaring those two lets the rest of torchvision, and timm and torchmetrics, which import it, work with any build.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_DETECTION_OPERATORS = ("nms", "qnms")


def _declare_missing_operators() -> torch.library.Library | None:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed")
    for binary in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(binary))
            return None
        except OSError:
            pass
    library = torch.library.Library("torchvision", "DEF")
    for operator in _DETECTION_OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_operators = _declare_missing_operators()  # operators live as long as their library object
has_own_operators = _operators is None

import torchvision  # noqa: E402

__all__ = ["timm", "torchmetrics", "torchvision"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name in ("timm", "torchmetrics"):  # a second each to import, so only where they are asked for
        return import_module(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
