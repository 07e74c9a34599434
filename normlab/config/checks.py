"""What a setting's type cannot tell: values out of range, and settings that do not go together. No torch here."""

import math
import os
from pathlib import Path
from typing import Any

from normlab.config.initial import Initial
from normlab.config.settings import Config
from normlab.errors import UserError
from normlab.models.names import Library, check_model_name
from normlab.norm.scopes import check_declaration, check_profile

_AT_LEAST = {
    **{"seed": 0, "workers": 0},
    **{"accumulate": 1, "iterations": 1, "replicas_per_pass": 1, "threads": 1},
    **{"log_every": 1, "ratios_every": 1},
}
# What a setting of a group means does not depend on the file that has it.
_WHOLE_FROM_ONE = {
    *{"model.width", "model.depth", "model.blocks", "model.groups", "model.growth"},
    *{"norm.groups", "norm.ratio_groups", "optim.lr_batch", "data.length"},
}
_ABOVE_ZERO = {"optim.lr", "norm.eps", "weight.eps", "schedule.factor", "schedule.power", "data.fraction"}
_NOT_NEGATIVE = {
    *{"optim.momentum", "optim.weight_decay", "optim.eps", "optim.alpha", "norm.momentum", "norm.d_max"},
    *{"schedule.milestones", "schedule.warmup", "data.shift", "data.padding", "norm.warmup", "launch.max_restarts"},
}
_UP_TO_ONE = {"optim.alpha", "norm.momentum", "data.fraction"}
_AT_MOST = {  # beyond these, no machine has the room, and building only fails late
    **{"model.width": 2**16, "model.depth": 2**12, "model.blocks": 2**10, "model.growth": 2**10},
    **{"data.size": 2**12, "data.channels": 2**12, "data.length": 2**27},
}
_MODEL_LIBRARIES: dict[str, Library] = {
    "normlab.models.library.timm_model": "timm",
    "normlab.models.library.torchvision_model": "torchvision",
}
_MAX_SEED = 2**63 - 1  # torch's generators take 64 bits
_MANY_DEVICES = 4096  # shares of the replicas are listed up to here


def check_values(config: Config) -> None:
    """Raise UserError, in one line, on the first value that cannot work."""
    for key, least in _AT_LEAST.items():
        value = getattr(config, key)
        if isinstance(value, int) and value < least:
            raise UserError(f"{key}={value}: expected a whole number of {least} or more")
    if config.seed > _MAX_SEED:
        raise UserError(f"seed={config.seed}: expected a whole number up to {_MAX_SEED}")
    if config.iterations is None and config.epochs <= 0:
        raise UserError(f"epochs={config.epochs:g}: expected a number above 0")
    if not 0 <= config.norm_dropout < 1:
        raise UserError(f"norm_dropout={config.norm_dropout:g}: expected a number from 0 to below 1")
    _ = config.batch_average.num_samples
    if config.checkpoint.every <= 0:
        raise UserError(f"checkpoint.every={config.checkpoint.every:g}: expected a number of epochs above 0")
    if config.checkpoint.keep < 1:
        raise UserError(f"checkpoint.keep={config.checkpoint.keep}: expected a whole number of 1 or more")
    _check_records(config)
    _check_devices(config)
    _check_needed(config)
    for group in config.choices:
        _check_ranges(group, getattr(config, group) or {})
    _check_norm(config.norm, config, "norm")
    for part, nodes in config.parts.items():
        _check_norm(nodes.get("norm"), config, f"parts.{part}.norm")
    if config.model["_target_"] in _MODEL_LIBRARIES:
        check_model_name(_MODEL_LIBRARIES[config.model["_target_"]], config.model["name"])


def _check_records(config: Config) -> None:
    for share in config.snapshots:
        if not 0 < share < 1:
            raise UserError(f"snapshots={share:g}: expected shares of training between 0 and 1; its end is always kept")
    if config.record.statistics < 0:
        raise UserError(f"record.statistics={config.record.statistics}: expected a number of updates, 0 or more")
    for key in ("statistics", "gradients"):
        if config.compile and getattr(config.record, key):
            raise UserError(f"record.{key}: compile=true shows no single layers to look at; leave one of them out")


def _check_devices(config: Config) -> None:
    replicas, devices = config.replicas, config.devices
    if devices != "auto" and (devices < 1 or replicas % devices):
        shares = [str(d) for d in range(1, min(replicas, _MANY_DEVICES) + 1) if replicas % d == 0]
        raise UserError(
            f"devices={devices} cannot share the {replicas} replicas of batch={config.batch} equally; "
            f"allowed: {', '.join(shares)}"
        )


def _check_needed(config: Config) -> None:
    for group in ("model", "data", "task", "optim", "schedule", "launch"):
        if getattr(config, group) is None:
            raise UserError(f"{group}._target_=null: a run needs a {group}; `normlab list {group}` names them")


def _check_ranges(group: str, node: dict[str, Any]) -> None:
    for key, given in node.items():
        name = f"{group}.{key}"
        for value in given if isinstance(given, list) else [given]:
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if name in _WHOLE_FROM_ONE and value < 1:
                raise UserError(f"{name}={value}: expected a whole number of 1 or more")
            if name in _ABOVE_ZERO and value <= 0:
                raise UserError(f"{name}={value:g}: expected a number above 0")
            if name in _NOT_NEGATIVE and value < 0:
                raise UserError(f"{name}={value:g}: expected a number of 0 or more")
            if value > _AT_MOST.get(name, math.inf):
                raise UserError(f"{name}={value}: expected a whole number up to {_AT_MOST[name]}")
            if name in _UP_TO_ONE and value > 1:
                raise UserError(f"{name}={value:g}: expected a number up to 1")


def _check_norm(node: dict[str, Any] | None, config: Config, path: str) -> None:
    if node is None:
        return
    if "mean" in node and "var" in node:
        check_declaration(node["mean"], node["var"], node.get("tied", False), path)
        check_profile(node.get("profile", "paper"), node["mean"], node["var"], node.get("sync", False), path)
    if node.get("sync") and config.replicas_per_pass is not None:
        raise UserError(
            f"replicas_per_pass={config.replicas_per_pass}: norm.sync=true needs all replicas of a device in one pass; "
            "leave it out, or use more devices"
        )


def check_paths(config: Config) -> None:
    """Raise UserError, in one line, on a file or folder that a run needs and does not find."""
    root = config.data.get("root")
    if root is not None and not os.path.isdir(root):
        name = config.choices["data"]
        raise UserError(f"data.root={root}: there is no such folder; `normlab data prepare {name}` makes it")
    if not config.out:
        raise UserError("out=: expected the folder of the runs")
    if config.init != "none":
        Initial.parse(config.init).path(Path(config.out))
    out = Path(config.out).absolute()
    exists = next(folder for folder in (out, *out.parents) if os.path.exists(folder))
    if not os.path.isdir(exists) or not os.access(exists, os.W_OK):
        raise UserError(f"out={config.out}: {exists} is no folder that can be written to")
