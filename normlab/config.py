"""From the words of a command line to one checked, fully resolved configuration; no torch here.

load(["norm=sn", "batch=8x2"]) -> Config        composed by Hydra, checked against schemas, defaults filled in
identity(config) -> "1a2b3c4d"                  hash of what makes it another experiment
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab import schema
from normlab.errors import UserError, nearest, unknown
from normlab.models.names import Library, check_model_name
from normlab.norm.scopes import check_declaration

_MODEL_LIBRARIES: dict[str, Library] = {
    "normlab.models.library.timm_model": "timm",
    "normlab.models.library.torchvision_model": "torchvision",
}

GROUPS = ("norm", "weight", "model", "data", "task", "optim", "schedule", "tracker", "launch")

# Settings that say how a run is executed; they do not make it another experiment.
EXECUTION = (
    *("tracker", "launch", "devices", "replicas_per_pass", "workers", "threads", "channels_last", "compile"),
    *("out", "rerun", "log_every", "ratios_every", "checkpoint_every"),
)


class Batch:
    """`8x2`: 8 replicas of 2 samples each."""

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        if match is None:
            numbers = [n for n in re.findall(r"\d+", text) if int(n) > 0]
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
        match = re.fullmatch(r"([1-9]\d*)(k?)", text)
        if match is None:
            raise UserError(f"batch_average.samples={text}: expected a number above 0, 50k or all")
        return int(match[1]) * (1000 if match[2] else 1)


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
    checkpoint_every: int
    choices: dict[str, str]  # group -> the file chosen, for names people read; not part of the identity

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "Config":
        """The inverse of `to_dict`, for a run's own file."""
        return cls(**settings | {"batch_average": BatchAverage(**settings["batch_average"])})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

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


def conf_dir() -> Path:
    """conf/ of the repository, or of the installed package."""
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "conf", here.parent / "conf") if (folder / "config.yaml").is_file())


def choices(group: str) -> dict[str, str]:
    """Files of a config group and the comment that opens each."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files}


def load(overrides: list[str]) -> Config:
    """Compose, check and resolve. Raises UserError, in one line, on anything that cannot run."""
    composed = _compose(_normalize(overrides))
    chosen = composed.pop("choices")
    config = _check_types(composed)
    config.choices = chosen
    config.parts = {part: _resolve_part(part, value) for part, value in config.parts.items()}
    _check_values(config)
    return config


def identity(config: Config) -> str:
    """Eight hex digits of what makes this another experiment: all but EXECUTION, names and folders."""
    scientific = {k: v for k, v in config.to_dict().items() if k not in (*EXECUTION, "choices")}
    scientific["data"] = {k: v for k, v in config.data.items() if k != "root"}
    if config.init != "none":
        scientific["init"] = _init_identity(Path(config.init))
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


def _normalize(overrides: list[str]) -> list[str]:
    """Check every override's form and key; values of settings become `++key=value`, since the schema is ours."""
    parser, normalized = OverridesParser.create(), []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0].strip()
            raise UserError(f"{text}: expected KEY=VALUE ({reason})") from None
        key = override.key_or_group
        top = key.split(".")[0]
        if override.is_delete():
            raise UserError(f"{text}: settings cannot be removed; set {top}=none or another value")
        if top not in Config.__dataclass_fields__ or top == "choices":
            raise UserError(f"{key}: there is no such setting; {nearest(top, set(Config.__dataclass_fields__))}")
        if override.is_sweep_override():
            raise UserError(f"{text}: one run takes one value; quote it if the comma belongs to the value")
        if key in GROUPS:
            value = override.value()
            if not isinstance(value, str | int | None):
                raise UserError(f"{text}: expected the name of a {key}; {nearest('', choices(key))}")
            name = "none" if value is None else str(value)
            if name not in choices(key):
                raise unknown(key, name, choices(key))
            normalized.append(f"{key}={name}")
        else:
            normalized.append(f"++{text.lstrip('+')}")
    return normalized


def _compose(overrides: list[str]) -> dict[str, Any]:
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            composed = compose("config", overrides, return_hydra_config=True)
        chosen = {group: composed.hydra.runtime.choices[group] for group in GROUPS}
        settings = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        container = OmegaConf.to_container(settings, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from None
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()} | {"choices": chosen}


def _check_types(composed: dict[str, Any]) -> Config:
    parameters = schema.parameters_of(Config)
    del parameters["choices"]
    checked = schema.check(composed, parameters)
    for group in GROUPS:
        checked[group] = schema.check_target(checked[group], group)
    return Config(**checked, choices={})


def _resolve_part(part: str, value: Any) -> dict[str, Any]:
    """`head: none` or `head: {norm: none, weight: ws}` -> {"norm": settings, ...}."""
    chosen = value if isinstance(value, dict) else {"norm": value}
    for key in chosen:
        if key not in ("norm", "weight"):
            raise UserError(f"parts.{part}.{key}: there is no such setting; {nearest(key, ('norm', 'weight'))}")
    chosen = {group: "none" if name is None else str(name) for group, name in chosen.items()}
    composed = _compose(_normalize([f"{group}={name}" for group, name in chosen.items()]))
    return {group: schema.check_target(composed[group], group) for group in chosen}


# ---- checking ----------------------------------------------------------------------------------------------------


def _check_values(config: Config) -> None:
    batch = Batch(config.batch)
    _at_least("accumulate", config.accumulate, 1)
    _at_least("seed", config.seed, 0)
    _at_least("workers", config.workers, 0)
    for key in ("checkpoint_every", "log_every", "threads", "replicas_per_pass"):
        if getattr(config, key) is not None:
            _at_least(key, getattr(config, key), 1)
    if not 0 <= config.norm_dropout < 1:
        raise UserError(f"norm_dropout={config.norm_dropout:g}: expected a number from 0 to below 1")
    if config.iterations is not None:
        _at_least("iterations", config.iterations, 1)
    elif config.epochs <= 0:
        raise UserError(f"epochs={config.epochs:g}: expected a number above 0")
    if config.ratios_every != "epoch":
        _at_least("ratios_every", config.ratios_every, 1)
    _ = config.batch_average.num_samples
    _check_devices(config, batch)
    for node in (config.norm, *(part.get("norm") for part in config.parts.values())):
        _check_norm(node, config)
    _check_model(config.model)
    root = (config.data or {}).get("root")
    if root is not None and not Path(root).is_dir():
        name = config.choices["data"]
        raise UserError(f"data.root={root}: there is no such folder; `normlab data prepare {name}` makes it")
    if config.init != "none" and not Path(config.init).exists():
        raise UserError(f"init={config.init}: there is no such run or file; allowed: none, a run's folder, a file")
    for group in ("model", "data", "task", "optim", "schedule", "launch"):
        if getattr(config, group) is None:
            raise UserError(f"{group}=none: a run needs a {group}; {nearest('', choices(group))}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{key}={value}: expected a whole number of {least} or more")


def _check_devices(config: Config, batch: Batch) -> None:
    if config.devices != "auto":
        shares = [d for d in range(1, batch.replicas + 1) if batch.replicas % d == 0]
        if config.devices not in shares:
            raise UserError(
                f"devices={config.devices} cannot share the {batch.replicas} replicas of batch={batch} equally; "
                f"allowed: {', '.join(map(str, shares))}"
            )


def _check_norm(node: dict[str, Any] | None, config: Config) -> None:
    if node is None:
        return
    if "mean" in node and "var" in node:
        check_declaration(node["mean"], node["var"], node.get("groups", 1), node.get("tied", False))
    if node.get("sync") and config.replicas_per_pass is not None:
        raise UserError(
            f"replicas_per_pass={config.replicas_per_pass}: norm.sync=true needs all replicas of a device in one pass; "
            "leave it out, or use more devices"
        )


def _check_model(node: dict[str, Any]) -> None:
    if node is not None and node["_target_"] in _MODEL_LIBRARIES:
        check_model_name(_MODEL_LIBRARIES[node["_target_"]], node["name"])


def _init_identity(path: Path) -> str:
    """A run stands for itself by its id, a file by its bytes."""
    record = path / "run.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))["id"]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
