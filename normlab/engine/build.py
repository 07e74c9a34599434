"""From a config to a task and its model, with the declared normalizer and weight in each part."""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normlab.config import Config
from normlab.dynamics import ratios
from normlab.dynamics.receptive_field import NormSite
from normlab.engine.check import check_task
from normlab.engine.initialize import initialize
from normlab.errors import UserError
from normlab.models.library import nothing_fetched
from normlab.norm.convert import NothingReplacedWarning, convert, parametrize_weights
from normlab.norm.layer import Normalizer
from normlab.replicas import seed_dropout
from normlab.schema import bind, signature
from normlab.tasks.metrics import metrics_of
from normlab.tasks.parts import Parts
from normlab.tasks.task import Declaration, Task

_log = logging.getLogger(__name__)


@dataclass
class Experiment:
    """A task, its model on the CPU, and where its norm layers sit.

    Attributes:
        sites: of the norm layers, those with a receptive field first, in the network's order.
        unused: of what `init` holds, the tensors that found no place.
        trainable: names of the parameters that are trained, in whichever phase.
        weights_follow: whether it was built to have other weights loaded, so that nothing was fetched for it.
    """

    task: Task
    model: nn.Module
    parts: Parts
    sites: list[NormSite]
    unused: list[str]
    trainable: frozenset[str]
    weights_follow: bool = False

    def ratios(self) -> list[ratios.Row]:
        """Of every norm layer, now."""
        return ratios.snapshot(self.model, self.sites, self.parts.of)


def build_task(config: Config) -> Task:
    """Raises UserError on a task that says nothing of its metrics."""
    metrics_of(config.task["_target_"])
    return bind(config.task)(config.model, config.data, config.seed)


def build(config: Config, *, weights_follow: bool = False) -> Experiment:
    """The same for the same config, everywhere: the model starts from config.seed. Raises UserError.

    Where other weights will be loaded into it anyway (`weights_follow`), no pretrained ones are fetched.
    """
    task = build_task(config)
    before = Parts(task.parts, config.parts)
    torch.manual_seed(config.seed)
    declared = {part: _declaration(before.declared(part), config) for part in before.prefixes}
    with nothing_fetched() if weights_follow else nullcontext():
        model = task.build(declared)
    parts = Parts(task.parts, config.parts)  # building may have told where they begin
    _convert(model, task, parts, config)
    for name, layer in model.named_modules():
        if isinstance(layer, Normalizer):
            layer.name = name
    seed_dropout(model)
    unused = initialize(model, task, parts, config)
    task.helpers()  # says what they lack before any work
    for name, parameter in model.named_parameters():
        if parts.settings_of(name).get("frozen") or task.frozen(name):
            parameter.requires_grad_(False)
    trainable = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if not trainable:
        raise UserError("parts: all parameters are frozen; a run trains some of them")
    check_task(task, config.task["_target_"], parts, trainable)
    return Experiment(task, model, parts, _sites(task, model), unused, trainable, weights_follow)


def _declaration(settings: Mapping[str, Any], config: Config) -> Declaration:
    norm = settings.get("norm", config.norm)
    weight = settings.get("weight", config.weight)
    if norm and "momentum" in settings:
        if "momentum" not in signature(norm["_target_"]):
            raise UserError(f"parts: a momentum is set, and {norm['_target_']} has none")
        norm = norm | {"momentum": settings["momentum"]}
    return Declaration(norm and bind(norm), weight and bind(weight))


def _convert(model: nn.Module, task: Task, parts: Parts, config: Config) -> None:
    """Give each part its normalizer and weight; layers that the task built with its norm already stay."""
    order = {part: k for k, part in enumerate(parts.prefixes)}
    chains = {parts.chain(name) for name, _ in model.named_modules()} - {()}
    asked, found = False, set[str]()  # parts with normalizers
    for chain in sorted(chains, key=lambda chain: order[chain[-1]]):
        declared = _declaration(parts.merged(chain), config)
        asked = asked or declared.norm is not None

        def inside(name: str, chain: tuple[str, ...] = chain) -> bool:
            return parts.chain(name) == chain

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingReplacedWarning)  # said below, of all parts together
            converted = convert(model, declared.norm, None, select=inside).norms
        built = [name for name, module in model.named_modules() if isinstance(module, Normalizer) and inside(name)]
        if declared.weight is not None:
            parametrize_weights(model, declared.weight, lambda name: inside(name) and task.weighted(name), task.weighs)
        if config.norm_dropout and declared.norm is not None:
            for name in dict.fromkeys([*converted, *built]):
                layer = OrderedDict(norm=model.get_submodule(name), dropout=nn.Dropout(config.norm_dropout))
                model.set_submodule(name, nn.Sequential(layer))
        if declared.norm is not None and (converted or built):
            found |= set(chain)
    if asked and not found:  # as of a vision transformer: the run would be called norm=sn and have none
        raise UserError(
            f"norm={config.choices['norm']}: the model has no batch, instance or group norm that it could replace; "
            "norm=none leaves the model as it is"
        )
    for part, own in config.parts.items():
        if own.get("norm") and part not in found:
            _log.warning("parts.%s.norm: the part has no batch, instance or group norm that it could replace", part)


def _sites(task: Task, model: nn.Module) -> list[NormSite]:
    """Of all norm layers; receptive fields are there where the task's network can be traced, and never end a run."""
    try:
        sites = task.sites(model)
    except Exception as error:  # whatever an unusual network provokes
        _log.warning("no receptive fields: the network cannot be traced (%s)", " ".join(str(error).split())[:200])
        sites = []
    traced = {site.name for site in sites}
    others = [n for n, m in model.named_modules() if isinstance(m, Normalizer) and n not in traced]
    return [*sites, *(NormSite(name, None, False, None) for name in others)]
