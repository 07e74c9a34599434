"""From the words of a command line to one checked, fully resolved configuration; no torch here.

load(["norm=sn", "batch=8x2"]) -> Config        composed by Hydra, checked against schemas, defaults filled in
identity(config) -> "1a2b3c4d"                  hash of what makes it another experiment
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from normlab import schema
from normlab.checks import check_paths, check_values
from normlab.errors import UserError, nearest
from normlab.initial import Initial
from normlab.reading import read_yaml

# What the engine calls a group's `_target_` with; its settings follow as keywords.
CALLS = {
    "norm": ("num_channels",),
    "weight": ("conv",),
    "model": ("shape", "num_classes"),
    "data": ("split", "seed"),
    "task": ("model", "data", "seed"),
    "optim": ("model", "update_samples"),
    "schedule": ("update", "total", "per_epoch"),
    "tracker": ("run", "run_id", "name", "config"),
    "launch": ("folder", "devices", "progress"),
}
GROUPS = tuple(CALLS)

# Settings that say how a run is executed; they do not make it another experiment.
EXECUTION = (
    *("tracker", "launch", "devices", "replicas_per_pass", "workers", "threads", "channels_last", "compile"),
    *("out", "rerun", "log_every", "ratios_every", "record", "snapshots", "figures", "checkpoint"),
)


# Settings that came after runs were recorded: at these values a run is what it was before, and keeps its id.
LATER = {"profile": "paper"}


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
    """When a run saves what it needs to go on (see engine/checkpoint.py)."""

    every: float  # epochs
    keep: int


@dataclass
class Record:
    """What a run records beside metrics and ratios (see engine/observe.py); training is the same with it."""

    statistics: int
    gradients: bool
    estimators: bool


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
    accumulate: int
    epochs: float
    iterations: int | None
    seed: int
    precision: Literal["fp32", "bf16", "fp16", "fp64"]
    init: str
    parts: dict[str, Any]
    norm_dropout: float
    estimator: Literal["paper", "moving_average", "batch_average"]
    batch_average: BatchAverage
    devices: int | Literal["auto"]
    replicas_per_pass: int | None
    workers: int
    threads: int | None
    channels_last: bool
    compile: bool
    out: str
    rerun: bool
    log_every: int
    ratios_every: int | Literal["epoch"]
    record: Record
    snapshots: list[float]
    figures: Literal["auto", "all", "summary"]
    checkpoint: Checkpoint
    choices: dict[str, str]  # group -> the file chosen, for names people read; not part of the identity

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "Config":
        """The inverse of `to_dict`, for a run's own file: checked like words, since it may come from anyone.

        Raises UserError on what cannot work, and on a `_target_` that the user does not trust (see schema.py).
        """
        config = _check_types(settings, foreign=True)
        config.parts = {part: _check_part(part, nodes) for part, nodes in config.parts.items()}
        check_values(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def targets(self) -> list[str]:
        """Every `_target_` of the run."""
        nodes = [getattr(self, group) for group in GROUPS] + [n for part in self.parts.values() for n in part.values()]
        return [node["_target_"] for node in nodes if node is not None]

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


def conf_dir() -> Path:
    """conf/ of the repository, or of the installed package."""
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "conf", here.parent / "conf") if (folder / "config.yaml").is_file())


def choices(group: str) -> dict[str, str]:
    """Files of a config group and the comment that opens each."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    first_lines = {file.stem: file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] for file in files}
    return {name: line.lstrip("# ") for name, line in first_lines.items()}


def load(overrides: list[str]) -> Config:
    """Compose, check and resolve. Raises UserError, in one line, on anything that cannot run."""
    composed, chosen = _compose(overrides)
    config = _check_types(composed | {"choices": chosen})
    config.parts = {part: _resolve_part(part, value) for part, value in config.parts.items()}
    check_values(config)
    check_paths(config)
    return config


def identity(config: Config) -> str:
    """Eight hex digits of what makes this another experiment: all but EXECUTION, names and folders."""
    scientific = {k: v for k, v in config.to_dict().items() if k not in (*EXECUTION, "choices")}
    scientific["batch_average"]["samples"] = config.batch_average.num_samples  # 50k and 50000 are the same
    # Data that are all good give the same result under either on_error, and a run that bad data stopped goes on.
    scientific["data"] = {k: v for k, v in config.data.items() if k not in ("root", "on_error")}
    if config.init != "none":
        scientific["init"] = Initial.parse(config.init).identity(Path(config.out))
    for nodes in (scientific, *scientific["parts"].values()):
        for group in ("norm", "weight"):
            if nodes.get(group):
                nodes[group] = {key: value for key, value in nodes[group].items() if LATER.get(key, ...) != value}
    if config.iterations is not None:
        scientific.pop("epochs")
    return hashlib.sha256(json.dumps(scientific, sort_keys=True).encode()).hexdigest()[:8]


def run_name(config: Config) -> str:
    """A name that people can read: digits-digits_resnet-sn-8x2-s0."""
    parts = [config.choices["data"], config.choices["model"], config.choices["norm"]]
    parts += [config.choices["weight"]] * (config.weight is not None)
    parts += [config.batch + (f"x{config.accumulate}" if config.accumulate > 1 else ""), f"s{config.seed}"]
    return "-".join(parts)


# ---- composing ---------------------------------------------------------------------------------------------------


def _compose(words: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings as plain containers, interpolations resolved, and the file chosen in each group. Raises UserError."""
    overrides = [parse(word) for word in _with_scale(words)]
    chosen = [o for o in overrides if o.key_or_group in GROUPS]
    files = [f"{o.key_or_group}={_choice(o.key_or_group, o.value(), o.key_or_group)}" for o in chosen]
    composed = _compose_files(tuple(files))
    names = {group: composed.hydra.runtime.choices[group] for group in GROUPS}
    settings = OmegaConf.masked_copy(composed, list(SETTINGS))
    OmegaConf.set_struct(settings, False)
    for override in overrides:
        if override not in chosen:
            _set(settings, override)
    try:
        container = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}") from None
    return {str(key): value for key, value in dict(container).items()}, names  # type: ignore[arg-type]


@cache
def _compose_files(files: tuple[str, ...]) -> DictConfig:
    """The chosen files put together by Hydra; the cells of a sweep share most choices, and this takes the time."""
    try:
        with _hydra():
            return compose("config", list(files), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        for file in ("config", *(choice.replace("=", "/") for choice in files)):
            read_yaml(conf_dir() / f"{file}.yaml")  # says which one it is, where Hydra does not
        raise UserError(f"{conf_dir()}: {error}") from None


def _with_scale(words: list[str]) -> list[str]:
    """`scale=NAME` stands for the overrides in conf/scale/NAME.yaml, before all others; the last one given counts."""
    overrides, rest = [], []
    for word in words:
        override = parse(word)
        if override.key_or_group == "scale":
            name = _choice("scale", override.value(), "scale")
            overrides = list(read_yaml(conf_dir() / "scale" / f"{name}.yaml")["overrides"])
        else:
            rest.append(word)
    return [*overrides, *rest]


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra on conf/, also from inside a job that Hydra itself runs."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def check_hydra(words: list[str]) -> None:
    """Raise UserError on words for Hydra itself, as hydra/launcher=NAME, that it would refuse."""
    try:
        with _hydra():
            compose("config", words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"{' '.join(words)}: {error}") from None


@cache
def parse(word: str, sweep: bool = False) -> Override:
    """A word of the command line as Hydra reads it.

    Raises UserError unless it sets an existing key, to one value if it is not for a sweep.
    """
    if word.startswith("-"):
        raise UserError(f"{word}: there is no such option; allowed: -m, --cfg job, --help")
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, RecursionError):  # brackets a thousand deep, a number of thousands of digits
        raise UserError(f"'{word}': expected KEY=VALUE; quotes hold any character, as in 'out=\"my runs\"'") from None
    key = override.get_key_element().lstrip("+~")
    top = key.split(".")[0]
    if top not in (*SETTINGS, "scale") or override.package is not None:
        inside = [f"{outer}.{key}" for outer, settings in _nested_settings().items() if key in settings]
        hint = f"did you mean {' or '.join(map(repr, inside))}?" if inside else nearest(top, (*SETTINGS, "scale"))
        raise UserError(f"{key}: there is no such setting; {hint}")
    if override.is_delete():
        raise UserError(f"{word}: a setting cannot be removed; give it another value")
    if override.is_sweep_override() and not sweep:
        raise UserError(
            f"{word}: one run takes one value of {key}; -m sweeps over several, and a list stands in brackets, as [a,b]"
        )
    return override


def _nested_settings() -> dict[str, set[str]]:
    """Group -> the settings that any of its files has."""
    nested = {
        "batch_average": set(schema.parameters_of(BatchAverage)),
        "checkpoint": set(schema.parameters_of(Checkpoint)),
        "record": set(schema.parameters_of(Record)),
    }
    for group in GROUPS:
        files = [read_yaml(conf_dir() / group / f"{name}.yaml") for name in choices(group)]
        targets = [file["_target_"] for file in files if file["_target_"] is not None]
        nested[group] = {name for target in targets for name in schema.signature(target)}
    return nested


def _choice(group: str, value: Any, path: str) -> str:
    """The name of a group's file; null stands for none. Raises UserError."""
    name = "none" if value is None else schema.shown(value)
    if not isinstance(value, str | int | None) or name not in choices(group):
        raise UserError(f"{path}={name}: there is no such {group}; {nearest(name, choices(group))}")
    return name


def _set(settings: DictConfig, override: Override) -> None:
    try:
        OmegaConf.update(settings, override.key_or_group, override.value(), merge=True, force_add=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(
            f"{override.input_line}: {_first_line(error)}; `normlab train --cfg job` shows what can be set"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_types(settings: dict[str, Any], foreign: bool = False) -> Config:
    checked = schema.check(settings, schema.parameters_of(Config))
    for group in GROUPS:
        if not (foreign and checked[group] is None):  # how a run's own file writes a group without a target
            checked[group] = _check_node(checked[group], group, group, foreign)
    schema.check(checked["choices"], {group: schema.Parameter(str) for group in GROUPS}, "choices")
    return Config(**checked)


def _check_node(node: Any, group: str, path: str, foreign: bool) -> dict[str, Any] | None:
    checked = schema.check_target(node, path, foreign)
    if checked is not None:
        schema.check_call(checked["_target_"], CALLS[group], path)
    return checked


def _check_part(part: str, nodes: Any) -> dict[str, Any]:
    """A part's nodes in a run's own file. Raises UserError."""
    checked = schema.coerce(nodes, dict[str, Any], f"parts.{part}")
    _check_keys(part, checked)
    targets = {group: node for group, node in checked.items() if node is not None}
    return checked | {group: _check_node(n, group, f"parts.{part}.{group}", True) for group, n in targets.items()}


def _check_keys(part: str, nodes: Mapping[str, Any]) -> None:
    for key in nodes:
        if key not in ("norm", "weight"):
            raise UserError(f"parts.{part}.{key}: there is no such setting; {nearest(key, ('norm', 'weight'))}")


def _resolve_part(part: str, value: Any) -> dict[str, Any]:
    """`head: none` or `head: {norm: none, weight: ws}` -> {"norm": settings, ...}."""
    chosen = value if isinstance(value, dict) else {"norm": value}
    _check_keys(part, chosen)
    names = {group: _choice(group, name, f"parts.{part}.{group}") for group, name in chosen.items()}
    composed, _ = _compose([f"{group}={name}" for group, name in names.items()])
    return {group: schema.check_target(composed[group], group) for group in names}
