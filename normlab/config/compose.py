"""From the words of a command line to one checked, fully resolved configuration; no torch here.

load(["norm=sn", "batch=8x2"]) -> Config        composed by Hydra, checked against schemas, defaults filled in
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab import schema
from normlab.config import files
from normlab.config.checks import check_paths, check_values
from normlab.config.files import EXPERIMENT, choices, own_dir
from normlab.config.settings import GROUPS, SETTINGS, BatchAverage, Checkpoint, Config, Part, PhaseSettings, Record
from normlab.errors import UserError, nearest
from normlab.models.names import LIBRARIES, model_names
from normlab.reading import naming, read_mapping
from normlab.values import coerce, shown

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

_OWNERS = 4  # more of them say nothing: a setting of many models

# Targets that runs were recorded with, and that have another place now. (All others that make a run stayed.)
_MOVED = {
    "launch": {"normlab.engine.launch.launch": "normlab.launch.elastic.launch"},
    "tracker": {
        "normlab.tracker.WandB": "normlab.trackers.wandb.WandB",
        "normlab.tracker.NoTracker": "normlab.trackers.tracker.NoTracker",
    },
}


def load(overrides: list[str]) -> Config:
    """Compose, check and resolve. Raises UserError, in one line, on anything that cannot run."""
    try:
        config, kinds = _typed(overrides)
    except UserError as error:
        raise _of_file(error, overrides) from None
    _check_kinds(config, kinds)
    config.parts = {part: _resolve_part(part, value, config) for part, value in config.parts.items()}
    config.phases = {phase: _resolve_phase(phase, value, config) for phase, value in config.phases.items()}
    if _is_several(config.tracker):
        config.tracker["settings"] = _resolve_trackers(config.tracker["of"], config.tracker["settings"])
    check_values(config)
    check_paths(config)
    return config


def settings_of(group: str, name: str, words: Sequence[str] = ()) -> dict[str, Any] | None:
    """The settings of one file, as no run has it: some changed by words, as group.KEY=VALUE. Raises UserError."""
    node = _compose([f"{group}={name}", *words])[0][group]
    node.pop("_kind_", None)
    return _check_node(node, group, group, False)


def recorded(settings: dict[str, Any]) -> Config:
    """The inverse of `Config.to_dict`, for a run's own file: checked like words, since it may come from anyone.

    Raises UserError on what cannot work, and on a `_target_` that the user does not trust (see schema.py).
    """
    settings = {"phases": {}} | settings
    for group, moved in _MOVED.items():
        node = settings.get(group)
        if isinstance(node, dict) and node.get("_target_") in moved:
            settings[group] = node | {"_target_": moved[node["_target_"]]}
    config = _check_types(settings, foreign=True)
    if _is_several(config.tracker):
        own = config.tracker["settings"]
        config.tracker["settings"] = {n: _recorded_node(v, "tracker", f"tracker.settings.{n}") for n, v in own.items()}
    config.parts = {part: _check_own("parts", part, v, Part, _recorded_node) for part, v in config.parts.items()}
    config.phases = {
        phase: _check_own("phases", phase, v, PhaseSettings, _recorded_node) for phase, v in config.phases.items()
    }
    check_values(config)
    return config


def _typed(words: list[str]) -> tuple[Config, dict[str, list[str]]]:
    """Settings whose types and ranges are right, and the kinds that files of groups say. Raises UserError."""
    composed, chosen = _compose(words)
    _import_from_here(composed)
    nodes = {group: node for group in GROUPS if isinstance(node := composed.get(group), dict)}
    kinds = {group: files.kinds(node.pop("_kind_", ())) for group, node in nodes.items()}
    return _check_types(composed | {"choices": chosen}), kinds


def _import_from_here(composed: Mapping[str, Any]) -> None:
    """Let targets of the command at hand be found in the working folder, where they are nowhere else."""
    targets = [node.get("_target_") for group in GROUPS if isinstance(node := composed.get(group), dict)]
    packages = {target.partition(".")[0] for target in targets if isinstance(target, str)}
    here = os.getcwd()
    if packages - {"normlab"} and here not in sys.path:
        sys.path.append(here)


def _of_file(error: UserError, words: list[str]) -> UserError:
    """With the file's name, where a file of conf/ alone has the same error."""
    group = str(error).partition("=")[0].partition(".")[0]
    named = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    alone: list[tuple[Path, list[str]]] = [(files.conf_dir() / "config.yaml", [])]
    for key in ("scale", group):
        if named.get(key) in choices(key):
            alone.append((files.file_of(key, named[key]), [f"{key}={named[key]}"]))
        elif key in GROUPS:
            alone.append((files.file_of(key, files.default_choice(key)), []))
    for file, own in reversed(alone):
        try:
            _typed(own)
        except UserError as same:
            if str(same) == str(error) and str(file) not in str(error):
                return UserError(f"{file}: {error}")
    return error


# ---- composing ---------------------------------------------------------------------------------------------------


def _compose(words: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings as plain containers, interpolations resolved, and the file chosen in each group. Raises UserError."""
    overrides = [parse(word) for word in _with_scale(words)]
    chosen = [o for o in overrides if o.key_or_group in (*GROUPS, EXPERIMENT)]
    files_chosen = [f"{o.key_or_group}={_choice(o.key_or_group, o.value(), o.key_or_group)}" for o in chosen]
    own = own_dir()
    composed = _compose_files(tuple(f"+{w}" if w.startswith(EXPERIMENT) else w for w in files_chosen), own)
    for key in composed:
        if key == EXPERIMENT:
            file = files.file_of(EXPERIMENT, dict(word.split("=", 1) for word in files_chosen)[EXPERIMENT])
            raise UserError(f"{file}: its first line is to be `# @package _global_`, for it sets all of a run")
        if str(key) not in (*SETTINGS, "hydra"):
            raise UserError(f"{key!s}: there is no such setting; {nearest(str(key), SETTINGS)}")
    names = {group: composed.hydra.runtime.choices[group] for group in GROUPS}
    settings = OmegaConf.masked_copy(composed, list(SETTINGS))
    OmegaConf.set_struct(settings, False)
    others = [o for o in overrides if o not in chosen]
    for override in sorted(others, key=lambda o: not o.key_or_group.endswith("._target_")):  # these come first
        _set(settings, override)
    for group in GROUPS:
        names[group] = _name_of(settings.get(group), group, names[group])
    try:
        container = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}") from None
    return {str(key): value for key, value in dict(container).items()}, names  # type: ignore[arg-type]


def _name_of(node: Any, group: str, chosen: str) -> str:
    """What a run is called by: the file that was chosen, or the target that was set in its place."""
    target = node.get("_target_") if OmegaConf.is_dict(node) else None
    if not isinstance(target, str) or target == files.target_of(group, chosen):
        return chosen
    return target.rpartition(".")[2].lower()


@cache
def _compose_files(words: tuple[str, ...], own: Path | None) -> DictConfig:
    """The chosen files put together by Hydra; the cells of a sweep share most choices, and this takes the time.

    `own` is the user's folder, by which the same words stand for other files.
    """
    chosen = {group: files.default_choice(group) for group in GROUPS} | dict(word.split("=", 1) for word in words)
    experiment = chosen.pop(f"+{EXPERIMENT}", None)
    for group, name in chosen.items():
        files.node_of(group, name)  # says what is wrong with a file, where Hydra would not
    if experiment is not None:
        _, overridden = files.experiment(experiment)
        with naming(files.file_of(EXPERIMENT, experiment)):
            for group, name in overridden.items():
                if group in GROUPS:
                    _choice(group, name, group)
    try:
        with _hydra():
            return compose("config", [*words, *search_path()], return_hydra_config=True)
    except Exception as error:  # Hydra raises whatever a file happens to provoke
        file = files.conf_dir() if experiment is None else files.file_of(EXPERIMENT, experiment)
        raise UserError(f"{file}: {str(error).strip() or type(error).__name__}") from None


def _with_scale(words: list[str]) -> list[str]:
    """`scale=NAME` stands for the overrides in conf/scale/NAME.yaml, before all others; the last one given counts."""
    overrides, rest = [], []
    for word in words:
        override = parse(word)
        if override.key_or_group == "scale":
            overrides = _scale_words(_choice("scale", override.value(), "scale"))
        else:
            rest.append(word)
    for word in rest:
        override = parse(word)
        if override.key_or_group == EXPERIMENT:
            says = files.of_experiment(_choice(EXPERIMENT, override.value(), EXPERIMENT))
            overrides = [w for w in overrides if not says(parse(w).key_or_group)]
    return [*overrides, *rest]


def _scale_words(name: str) -> list[str]:
    file = files.file_of("scale", name)
    with naming(file):
        words = coerce(read_mapping(file).get("overrides"), list[str], "overrides")
        for word in words:
            parse(word)
    return words


def search_path() -> list[str]:
    """The word for Hydra that adds the user's folder."""
    own = own_dir()
    quoted = str(own).replace("\\", "\\\\").replace("'", "\\'")
    return [] if own is None else [f"hydra.searchpath=['file://{quoted}']"]


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra on conf/, also from inside a job that Hydra itself runs."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(files.conf_dir()), version_base="1.3"):
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
    if top == EXPERIMENT:
        return _experiment_word(override)
    if top.partition("/")[0] == "hydra":
        raise UserError(f"{key}: Hydra's own settings are for sweeps, with -m; a run has its folder in out=FOLDER")
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


def _experiment_word(override: Override) -> Override:
    if not override.is_add() or override.key_or_group != EXPERIMENT:
        raise UserError(
            f"{override.input_line}: expected +{EXPERIMENT}=NAME, a file of --config-dir FOLDER/{EXPERIMENT}"
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
        nested[group] = {setting for name in choices(group) for setting in _settings_of(group, name)}
    return nested


def _settings_of(group: str, name: str) -> Iterable[str]:
    """None of a file that is wrong, or whose target cannot be found: that matters only to a run that asks for it."""
    try:
        target = _target_of(group, name)
        return schema.signature(target) if target is not None else ()
    except UserError:
        return ()


def _choice(group: str, value: Any, path: str) -> str:
    """The name of a group's file; null stands for none. Raises UserError."""
    name = "none" if value is None else shown(value)
    if not isinstance(value, str | int | None) or name not in choices(group):
        elsewhere = _elsewhere(group, name)
        known = choices(group)
        hint = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, known)
        if not known:  # of experiments, which are the user's alone
            hint = f"--config-dir=FOLDER has them, in FOLDER/{group}"
        raise UserError(f"{path}={name}: there is no such {group}; {hint}")
    return name


def _elsewhere(group: str, name: str) -> list[str]:
    """Words that name something of another group, or of a library of models; many groups have none."""
    if name == "none":
        return []
    others = [f"{other}={name}" for other in GROUPS if other != group and name in choices(other)]
    if group == "model":
        others += [f"model={library} model.name={name}" for library in LIBRARIES if name in model_names(library)]
    return others


def _set(settings: DictConfig, override: Override) -> None:
    group, _, setting = override.key_or_group.partition(".")
    if group in GROUPS and setting == "_target_" and settings[group].get("_target_") != override.value():
        settings[group] = {}  # the settings were the other target's
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
    if not foreign:
        _check_owner(node, group, path)
    checked = schema.check_target(node, path, _targets_of(group) if foreign else None)
    if checked is not None:
        schema.check_call(checked["_target_"], CALLS[group], path)
    return checked


def _check_owner(node: Any, group: str, path: str) -> None:
    """Raise UserError on a setting that what was chosen lacks and a few others of its group have: it names those."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        return
    own = {"_target_", *schema.signature(target)}
    for key in (key for key in node if key not in own):
        owners = [f"{group}={name}" for name in choices(group) if key in _settings_of(group, name)]
        if 0 < len(owners) <= _OWNERS:
            raise UserError(f"{path}.{key}: there is no such setting; it belongs to {' and '.join(owners)}")


def _targets_of(group: str) -> set[str]:
    """What the files of a group name: all that a run's own file may name there. A file that is wrong names nothing."""
    return {target for name in choices(group) if (target := _target_of(group, name)) is not None}


def _target_of(group: str, name: str) -> str | None:
    try:
        return files.target_of(group, name)
    except UserError:
        return None


def _check_kinds(config: Config, kinds: Mapping[str, list[str]]) -> None:
    """Raise UserError unless the task takes the kinds of the model and of the data, as far as both say (`_kind_`)."""
    if config.task is None:
        return
    takes = schema.class_attribute(config.task["_target_"], "takes") or {}
    for group, wanted in takes.items():
        given = kinds.get(group, [])
        if given and not {*given} & {*wanted}:
            fitting = [name for name in choices(group) if {*files.kinds_of(group, name)} & {*wanted}]
            raise UserError(
                f"{group}={config.choices[group]}: this is for {' and '.join(given)}, and "
                f"task={config.choices['task']} takes {' or '.join(wanted)}; "
                f"allowed: {', '.join(fitting) or f'none in conf/{group}'}"
            )


def _check_own(key: str, name: str, given: Any, settings: type, node: Callable[[Any, str, str], Any]) -> dict[str, Any]:
    """What a part or a phase (`key`) has of its own, by settings of a dataclass; `node` makes a group's settings.

    Raises UserError on what it cannot have.
    """
    path, known = f"{key}.{name}", schema.parameters_of(settings)
    checked = coerce(given, dict[str, Any], path)
    for setting in checked:
        if setting not in known:
            raise UserError(f"{path}.{setting}: there is no such setting; {nearest(setting, known)}")
    plain = schema.check(
        {k: v for k, v in checked.items() if k not in GROUPS}, {k: known[k] for k in checked if k not in GROUPS}, path
    )
    return {k: node(v, k, f"{path}.{k}") if k in GROUPS else plain[k] for k, v in checked.items()}


def _recorded_node(node: Any, group: str, path: str) -> dict[str, Any] | None:
    """Of a run's own file. Raises UserError."""
    if node is None and group not in ("norm", "weight"):
        raise UserError(f"{path}=null: expected settings with a _target_")
    return None if node is None else _check_node(node, group, path, True)


def _resolve_part(part: str, value: Any, config: Config) -> dict[str, Any]:
    """`head: none` or `head: {norm: none, weight: ws}` -> {"norm": settings, ...}."""
    given = value if isinstance(value, dict) else {"norm": value}
    return _check_own("parts", part, given, Part, partial(_chosen, config))


def _resolve_phase(phase: str, value: Any, config: Config) -> dict[str, Any]:
    """`search: {optim: adam}` or `search: {optim: {lr: 0.1}}` -> {"optim": settings}."""
    return _check_own("phases", phase, value, PhaseSettings, partial(_chosen, config))


def _is_several(tracker: Mapping[str, Any] | None) -> bool:
    return tracker is not None and tracker["_target_"] == "normlab.trackers.tracker.Several"


def _resolve_trackers(of: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`[wandb, csv]`, {"wandb": {"project": "mine"}} -> name -> settings with a target. Raises UserError."""
    for name in settings:
        if name not in of:
            raise UserError(f"tracker.settings.{name}: it is none of tracker.of; {nearest(name, of)}")
    if not of or len(set(of)) < len(of):
        raise UserError(f"tracker.of=[{','.join(of)}]: expected one tracker or more, each once")
    found = {}
    for name in of:
        path = f"tracker.settings.{name}"
        file = settings_of("tracker", _choice("tracker", name, "tracker.of")) or {}
        found[name] = _check_node(file | coerce(settings.get(name, {}), dict[str, Any], path), "tracker", path, False)
        if _is_several(found[name]):
            raise UserError(f"tracker.of={name}: several trackers are none of several")
    return found


def _chosen(config: Config, value: Any, group: str, path: str) -> dict[str, Any] | None:
    """The settings in a group's file, or the run's own with some changed; `name` beside these chooses a file."""
    changes = dict(value) if isinstance(value, dict) else {"name": value}
    node = getattr(config, group)
    if "name" in changes:
        name = _choice(group, changes.pop("name"), path)
        with naming(files.file_of(group, name)):
            node = settings_of(group, name)
    return _check_node((node or {"_target_": None}) | changes, group, path, False)
