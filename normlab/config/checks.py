"""What the type and range of a setting cannot tell: settings that do not go together, names, paths. No torch here."""

import os
from pathlib import Path
from typing import Any

from normlab.config.initial import Initial
from normlab.config.settings import GROUPS, Config, places
from normlab.data.published import is_absent
from normlab.errors import UserError
from normlab.models.names import Library, check_model_name
from normlab.norm.scopes import check_declaration, check_profile
from normlab.values import shown

_MODEL_LIBRARIES: dict[str, Library] = {
    "normlab.models.library.timm_model": "timm",
    "normlab.models.library.torchvision_model": "torchvision",
}
_MANY_DEVICES = 4096  # shares of the replicas are listed up to here


def check_values(config: Config) -> None:
    """Raise UserError, in one line, on the first value that cannot work."""
    if config.iterations is None and config.epochs <= 0:
        raise UserError(f"epochs={config.epochs:g}: expected a number above 0")
    _ = config.batch_average.num_samples
    _check_records(config)
    _check_devices(config)
    _check_needed(config)
    _check_learning(config.optim, config.schedule)
    _check_norm(config.norm, config, "norm")
    for part, nodes in config.parts.items():
        _check_norm(nodes.get("norm"), config, f"parts.{part}.norm")
    if config.model["_target_"] in _MODEL_LIBRARIES:
        check_model_name(_MODEL_LIBRARIES[config.model["_target_"]], config.model["name"])


def _check_records(config: Config) -> None:
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


def _check_learning(optim: dict[str, Any], schedule: dict[str, Any]) -> None:
    if optim["_target_"] == "normlab.engine.optim.sgd" and optim["nesterov"] and optim["momentum"] == 0:
        raise UserError("optim.nesterov=true: it looks ahead by the momentum; expected optim.momentum above 0")
    milestones = schedule["milestones"] if schedule["_target_"] == "normlab.engine.schedule.step" else []
    if milestones != sorted(milestones):
        raise UserError(f"schedule.milestones={shown(milestones)}: expected them in ascending order")


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
    if root is not None and not os.path.isdir(root) and not is_absent(config.data):
        name = config.choices["data"]
        raise UserError(f"data.root={root}: there is no such folder; `normlab data prepare {name}` makes it")
    for group in GROUPS:
        node = getattr(config, group)
        for name in places(node):
            if node[name] is not None and not os.path.exists(node[name]) and not (group == "data" and is_absent(node)):
                raise UserError(f"{group}.{name}={node[name]}: there is no such file or folder")
    if not config.out:
        raise UserError("out=: expected the folder of the runs")
    if config.init != "none":
        Initial.parse(config.init).path(Path(config.out))
    out = Path(config.out).absolute()
    exists = next(folder for folder in (out, *out.parents) if os.path.exists(folder))
    if not os.path.isdir(exists) or not os.access(exists, os.W_OK):
        raise UserError(f"out={config.out}: {exists} is no folder that can be written to")
