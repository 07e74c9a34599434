"""The settings of a run, as one dataclass, and what makes two runs the same experiment; no torch here.

identity(config) -> "1a2b3c4d"                  hash of what makes it another experiment
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from normlab import schema
from normlab.config.initial import Initial
from normlab.errors import UserError

# Groups of conf/ that every run chooses a file of.
GROUPS = ("norm", "weight", "model", "data", "task", "optim", "schedule", "tracker", "launch")

# Settings that say how a run is executed; they do not make it another experiment.
EXECUTION = (
    *("tracker", "launch", "devices", "replicas_per_pass", "workers", "threads", "channels_last", "compile"),
    *("out", "rerun", "log_every", "ratios_every", "evaluate_every", "record", "snapshots", "figures", "checkpoint"),
)


# Settings that came after runs were recorded: at these values a run is what it was before, and keeps its id.
LATER = {
    "profile": "paper",
    "group_channels": None,
    "start": None,
    "halve_momentum": None,
    "anchor_centres": "corner",
    "pooled_norm": False,
    "zero_init_residual": False,
}


class Batch:
    """`8x2`: 8 replicas of 2 samples each."""

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"([1-9][0-9]{0,17})x([1-9][0-9]{0,17})", text)
        if match is None:
            numbers = [n for n in re.findall(r"[0-9]{1,18}", text) if int(n) > 0]
            near = f"did you mean '{numbers[0]}x{numbers[1]}'?" if len(numbers) == 2 else "for example 8x2"
            raise UserError(
                f"batch={text}: expected replicas x samples per replica, both whole numbers above 0; {near}"
            )
        self.replicas, self.per_replica = int(match[1]), int(match[2])

    @property
    def total(self) -> int:
        return self.replicas * self.per_replica

    def __str__(self) -> str:
        return f"{self.replicas}x{self.per_replica}"


@dataclass
class BatchAverage:
    """How batch-average statistics are measured (see engine/batch_average.py)."""

    samples: int | str
    variance: Literal["mean", "population"]
    augment: bool

    @property
    def num_samples(self) -> int | None:
        """None stands for all training samples. Raises UserError on text that is no count."""
        text = str(self.samples)
        if text == "all":
            return None
        match = re.fullmatch(r"([1-9][0-9]{0,17})(k?)", text)
        if match is None:
            raise UserError(f"batch_average.samples={text}: expected a number above 0, 50k or all")
        return int(match[1]) * (1000 if match[2] else 1)


@dataclass
class Checkpoint:
    """When a run saves what it needs to go on (see runs/checkpoint.py)."""

    every: Annotated[float, Gt(0)]  # epochs
    keep: Annotated[int, Ge(1)]


@dataclass
class Record:
    """What a run records beside metrics and ratios (see engine/observe.py); training is the same with it."""

    statistics: Annotated[int, Ge(0)]
    gradients: bool
    estimators: bool
    validation: Annotated[int, Ge(1)] | None = None  # None: all; runs were recorded before it could be a part


@dataclass
class Part:
    """What a part of a model can have of its own; what is not given is the run's (see normlab/tasks/parts.py)."""

    norm: Any  # settings with a `_target_`, or None
    weight: Any
    momentum: Annotated[float, Ge(0), Le(1)] | None  # of its norm layers
    frozen: bool  # its parameters are constants; statistics go on, unless its norm is bn_frozen
    lr: Annotated[float, Ge(0)]  # factor of its learning rate
    init: str


@dataclass
class PhaseSettings:
    """What a phase of a task can have of its own; what is not given is the run's (see normlab/tasks/task.py)."""

    optim: Any
    schedule: Any
    updates: Annotated[int, Ge(1)]  # in an epoch


@dataclass
class Config:
    """A run's settings; groups hold `_target_` and its keyword arguments (None: nothing). See conf/config.yaml."""

    norm: Any
    weight: Any
    model: Any
    data: Any
    task: Any
    optim: Any
    schedule: Any
    tracker: Any
    launch: Any
    batch: str
    accumulate: Annotated[int, Ge(1)]
    epochs: Annotated[float, Le(10**9)]  # above 0 unless iterations replace them (checks.py)
    iterations: Annotated[int, Ge(1), Le(10**15)] | None
    seed: Annotated[int, Ge(0), Le(2**63 - 1)]  # torch's generators take 64 bits
    precision: Literal["fp32", "bf16", "fp16", "fp64"]
    init: str
    parts: dict[str, Any]  # part -> the PART settings that are given
    phases: dict[str, Any]  # phase -> the PHASE settings that are given
    norm_dropout: Annotated[float, Ge(0), Lt(1)]
    estimator: Literal["paper", "moving_average", "batch_average"]
    batch_average: BatchAverage
    devices: int | Literal["auto"]
    replicas_per_pass: Annotated[int, Ge(1)] | None
    workers: Annotated[int, Ge(0)]
    threads: Annotated[int, Ge(1), Le(2**15)] | None
    channels_last: bool
    compile: bool
    out: str
    rerun: bool
    log_every: Annotated[int, Ge(1)]
    ratios_every: Annotated[int, Ge(1)] | Literal["epoch"]
    evaluate_every: Annotated[int, Ge(1)] | Literal["epoch"]
    record: Record
    snapshots: list[Annotated[float, Gt(0), Lt(1)]]
    figures: Literal["auto", "all", "summary"]
    checkpoint: Checkpoint
    choices: dict[str, str]  # group -> the file chosen, for names people read; not part of the identity

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def targets(self) -> list[str]:
        """Every `_target_` of the run."""
        own = [(group, getattr(self, group)) for group in GROUPS]
        inner = [item for settings in (*self.parts.values(), *self.phases.values()) for item in settings.items()]
        return [node["_target_"] for group, node in (*own, *inner) if group in GROUPS and node is not None]

    @property
    def replicas(self) -> int:
        return Batch(self.batch).replicas

    @property
    def per_replica(self) -> int:
        return Batch(self.batch).per_replica

    @property
    def update_samples(self) -> int:
        """Samples per optimizer update, which the learning rate scales with."""
        return Batch(self.batch).total * self.accumulate


SETTINGS = tuple(field.name for field in dataclasses.fields(Config) if field.name != "choices")


def identity(config: Config) -> str:
    """Eight hex digits of what makes this another experiment: all but EXECUTION, names and folders."""
    scientific = {k: v for k, v in config.to_dict().items() if k not in (*EXECUTION, "choices")}
    scientific["batch_average"]["samples"] = config.batch_average.num_samples  # 50k and 50000 are the same
    for group in GROUPS:  # where something lies makes no other experiment; what lies there does (inputs.py)
        if scientific.get(group):
            left_out = places(scientific[group])
            scientific[group] = {k: v for k, v in scientific[group].items() if k not in left_out}
    # Data that are all good give the same result under either on_error, and a run that bad data stopped goes on.
    scientific["data"].pop("on_error", None)
    if not config.phases:
        scientific.pop("phases")  # runs were recorded before there were phases
    for nodes in (scientific, *scientific["parts"].values()):
        if nodes.get("init", "none") != "none":
            nodes["init"] = Initial.parse(nodes["init"]).identity(Path(config.out))
        for group in ("norm", "weight", "model", "task"):
            if nodes.get(group):
                nodes[group] = {key: value for key, value in nodes[group].items() if LATER.get(key, ...) != value}
    if config.iterations is not None:
        scientific.pop("epochs")
    return hashlib.sha256(json.dumps(scientific, sort_keys=True).encode()).hexdigest()[:8]


def places(node: dict[str, Any] | None) -> list[str]:
    """The settings of a group that say where something lies: `root`, and those which are a Path, or a Path or null."""
    if node is None:
        return []
    parameters = schema.signature(node["_target_"])
    return [name for name in node if name == "root" or (name in parameters and parameters[name].is_place)]


def run_name(config: Config) -> str:
    """A name that people can read: digits-digits_resnet-sn-8x2-s0."""
    parts = [config.choices["data"], config.choices["model"], config.choices["norm"]]
    parts += [config.choices["weight"]] * (config.weight is not None)
    parts += [config.batch + (f"x{config.accumulate}" if config.accumulate > 1 else ""), f"s{config.seed}"]
    return "-".join(parts)
