"""From a config to a task and its model, with the declared normalizer and weight in each part."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normlab.config import Config
from normlab.config.initial import Initial
from normlab.dynamics.receptive_field import NormSite, trace
from normlab.errors import UserError, unknown
from normlab.norm.convert import convert
from normlab.norm.layer import Normalizer
from normlab.replicas import seed_dropout
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder
from normlab.schema import bind
from normlab.tasks.task import Declaration, Task

LOGITS = ("mean_logits", "var_logits")  # parameters of a norm layer whose ratios they are


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
    unused = [] if config.init == "none" else _initialize(model, config)
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
    asked, found = False, 0
    for part in parts:
        declared = _declaration(defaults | config.parts.get(part, {}))
        norms = convert(model, declared.norm, declared.weight, select=_selects(part, parts)).norms
        asked, found = asked or declared.norm is not None, found + len(norms)
        if config.norm_dropout and declared.norm is not None:
            for name in norms:
                layer = OrderedDict(norm=model.get_submodule(name), dropout=nn.Dropout(config.norm_dropout))
                model.set_submodule(name, nn.Sequential(layer))
    if asked and not found:  # as of a vision transformer: the run would be called norm=sn and have none
        raise UserError(
            f"norm={config.choices['norm']}: the model has no batch, instance or group norm that it could replace; "
            "norm=none leaves the model as it is"
        )


def _selects(part: str, parts: dict[str, str]):
    """Whether a module belongs to `part`: of all parts whose prefix fits its name, the one with the longest."""

    def fits(prefix: str, name: str) -> bool:
        return not prefix or name == prefix or name.startswith(f"{prefix}.")

    def selects(name: str) -> bool:
        return max((p for p in parts if fits(parts[p], name)), key=lambda p: len(parts[p]), default=None) == part

    return selects


def _initialize(model: nn.Module, config: Config) -> list[str]:
    """Load what fits by name and shape of what `init` names; returns the names of what did not.

    Raises UserError if there are no such weights, if none fits, or if a layer with hard ratios gets no logits: what it
    would choose then, nothing has learned.
    """
    state, own = load_tensors(_weights(config)), model.state_dict()
    if Initial.parse(config.init).only_ratios:
        state = {name: t for name, t in state.items() if name.rpartition(".")[2] in LOGITS}
    fitting = {name: t for name, t in state.items() if name in own and own[name].shape == t.shape}
    if not fitting:
        raise UserError(f"init={config.init}: none of its {len(state)} tensors fits the model")
    hard = [name for name, layer in model.named_modules() if isinstance(layer, Normalizer) and layer.hard]
    for missing in sorted({f"{name}.{logits}" for name in hard for logits in LOGITS} & own.keys() - fitting.keys()):
        raise UserError(
            f"init={config.init}: {missing} is not in it, or of another shape; hard ratios are chosen by it"
        )
    model.load_state_dict(fitting, strict=False)
    return sorted(state.keys() - fitting.keys())


def _weights(config: Config) -> Path:
    """The file that `init` names. Raises UserError if it is not there."""
    init = Initial.parse(config.init)
    path = init.path(Path(config.out))
    if path is None:
        raise UserError(f"init={config.init}: there is no run of this id in {config.out}")
    if path.is_dir():
        run, path = path, RunFolder(path).weights_at(init.at)
        if not path.is_file() and init.at == 1:
            raise UserError(f"init={config.init}: the run has no weights yet; finish it first")
        if not path.is_file():
            kept = ", ".join(sorted(file.stem for file in RunFolder(run).snapshots.glob("*.safetensors")))
            raise UserError(
                f"init={config.init}: {run.name} has kept {kept or 'no snapshots'}; "
                f"train it with snapshots=[{init.at:g}], and rerun=true if it is past that"
            )
    if path.suffix != ".safetensors":
        raise UserError(f"init={config.init}: expected a run, or a .safetensors file")
    return path
