"""From a config to a task and its model, with the declared normalizer and weight in each part."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normlab.config import Config
from normlab.dynamics.receptive_field import NormSite, trace
from normlab.engine.checkpoint import load_tensors
from normlab.errors import UserError, unknown
from normlab.norm.convert import convert
from normlab.norm.layer import Normalizer
from normlab.replicas import seed_dropout
from normlab.schema import bind
from normlab.tasks.task import Declaration, Task


@dataclass
class Experiment:
    """A task, its model on the CPU, and where its norm layers sit, in the network's order."""

    task: Task
    model: nn.Module
    sites: list[NormSite]
    unused: list[str]  # of what `init` holds, the tensors that found no place


def build_task(config: Config) -> Task:
    return bind(config.task)(config.model, config.data, config.seed)


def build(config: Config, task: Task | None = None) -> Experiment:
    """The same for the same config, everywhere: the model starts from config.seed. Raises UserError."""
    task = task or build_task(config)
    torch.manual_seed(config.seed)
    model = task.build()
    _convert_parts(model, task, config)
    seed_dropout(model)
    unused = [] if config.init == "none" else _initialize(model, Path(config.init))
    sites = trace(model, task.example, lambda module: isinstance(module, Normalizer))
    return Experiment(task, model, sites, unused)


def _declaration(settings: dict[str, Any]) -> Declaration:
    norm, weight = settings["norm"], settings["weight"]
    return Declaration(norm and bind(norm), weight and bind(weight))


def _convert_parts(model: nn.Module, task: Task, config: Config) -> None:
    parts = dict(task.parts)
    for part in config.parts:
        if part not in parts:
            raise unknown("parts: part", part, parts)
    defaults = {"norm": config.norm, "weight": config.weight}
    for part in parts:
        declared = _declaration(defaults | config.parts.get(part, {}))
        norms = convert(model, declared.norm, declared.weight, select=_selects(part, parts)).norms
        if config.norm_dropout and declared.norm is not None:
            for name in norms:
                layer = OrderedDict(norm=model.get_submodule(name), dropout=nn.Dropout(config.norm_dropout))
                model.set_submodule(name, nn.Sequential(layer))


def _selects(part: str, parts: dict[str, str]):
    """Whether a module belongs to `part`: of all parts whose prefix fits its name, the one with the longest."""

    def fits(prefix: str, name: str) -> bool:
        return not prefix or name == prefix or name.startswith(f"{prefix}.")

    def selects(name: str) -> bool:
        return max((p for p in parts if fits(parts[p], name)), key=lambda p: len(parts[p]), default=None) == part

    return selects


def _initialize(model: nn.Module, path: Path) -> list[str]:
    """Load what fits by name and shape from a run or a safetensors file; returns the names that did not."""
    file = path / "checkpoints" / "weights.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"init={path}: the run has no weights yet; finish it first")
    if file.suffix != ".safetensors":
        raise UserError(f"init={path}: expected a run's folder or a .safetensors file")
    state, own = load_tensors(file), model.state_dict()
    fitting = {name: t for name, t in state.items() if name in own and own[name].shape == t.shape}
    if not fitting:
        raise UserError(f"init={path}: none of its {len(state)} tensors fits the model")
    model.load_state_dict(fitting, strict=False)
    return sorted(state.keys() - fitting.keys())
