"""By what a run was computed: the code, torch, the kernels. Other code may give other numbers, so records say it."""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from normlab.config import Config
from normlab.norm.kernels import backend

_PACKAGE = Path(__file__).resolve().parents[1]
# What has a say in a run's numbers; reports, figures, records and how processes are started have none.
_COMPUTE = (
    "norm",
    "models",
    "data",
    "tasks",
    "dynamics",
    "engine",
    "replicas.py",
    "seeding.py",
    "processes/devices.py",
)
_SOURCES = (".py", ".cpp", ".h")


def made_by(config: Config, device: torch.device) -> str:
    """code 1a2b3c4d, torch 2.14.1, C++ kernels. The code is normlab's, and the modules of the run's own targets."""
    own = sorted({t.rpartition(".")[0] for t in config.targets() if not t.startswith("normlab.")})
    kernels = backend(device).name.partition(":")[0]
    return f"code {_code(tuple(own))}, torch {torch.__version__}, {kernels}"


@cache
def _code(modules: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for file in [*_own(), *(Path(str(spec.origin)) for module in modules if (spec := find_spec(module)))]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:8]


def _own() -> list[Path]:
    places = [_PACKAGE / name for name in _COMPUTE]
    files = [f for place in places for f in ([place] if place.is_file() else place.rglob("*"))]
    return sorted(file for file in files if file.suffix in _SOURCES)
