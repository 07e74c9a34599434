"""Which classifiers timm and torchvision have, read from their source files: importing them would import torch."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from normlab.errors import UserError, unknown

Library = Literal["timm", "torchvision"]
LIBRARIES: tuple[Library, ...] = ("timm", "torchvision")

_REGISTERED = re.compile(r"^@register_model\b(?:.*\n)*?def (\w+)\(", re.MULTILINE)


@cache
def model_names(library: Library) -> frozenset[str]:
    """Names of all classifiers of the installed library; the same as its own list_models(), in a tenth of a second.

    torchvision keeps other tasks in subfolders of its models. Raises UserError if the library is not installed.
    """
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise UserError(f"{library} is not installed; install it, or choose another model")
    sources = (Path(spec.origin).parent / "models").glob("*.py")
    return frozenset(name for file in sources for name in _REGISTERED.findall(file.read_text(encoding="utf-8")))


def check_model_name(library: Library, name: str) -> None:
    """Raise UserError unless the library has this classifier; timm's may carry a weight tag (resnet50.a1_in1k)."""
    architecture = name.split(".")[0] if library == "timm" else name
    if architecture not in model_names(library):
        raise unknown(f"{library} model", name, model_names(library))
