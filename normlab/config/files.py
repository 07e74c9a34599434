"""The files of conf/, and of a user's own folder beside it, which names on a command line stand for.

`--config-dir FOLDER` is Hydra's: FOLDER/norm/mine.yaml is norm=mine then, and modules in FOLDER can be targets.
"""

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from normlab.errors import UserError
from normlab.reading import naming, read_mapping
from normlab.values import coerce, shown

OWN = "NORMLAB_CONFIG_DIR"  # the environment variable
EXPERIMENT = "experiment"  # the group of +experiment=NAME: files of the user's that set what they like


def conf_dir() -> Path:
    """conf/ of the repository, or of the installed package."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if (folder / "config.yaml").is_file())


def own_dir() -> Path | None:
    """The folder that the command names, or that it was started with."""
    named = os.environ.get(OWN)
    return Path(named) if named else None


def use_own_dir(folder: str) -> None:
    """Take a user's folder in, for this process and all that it starts.

    Raises UserError where it is none, or where it has a file whose name conf/ has taken.
    """
    if not os.path.isdir(folder):
        word = f"{OWN}=" if os.environ.get(OWN) == folder else "--config-dir "
        raise UserError(f"{word}{folder}: there is no such folder")
    for file in sorted(Path(folder).glob("*/*.yaml")):
        if (conf_dir() / file.parent.name / file.name).is_file():
            raise UserError(f"{file}: normlab has a {file.parent.name} of this name; give yours another")
    os.environ[OWN] = os.path.abspath(folder)
    default_choice.cache_clear()
    import_own_modules()


def import_own_modules() -> None:
    """Let modules of the user's folder be imported; behind all others, so that none of them hides one."""
    own = own_dir()
    if own is not None and str(own) not in sys.path:
        sys.path.append(str(own))


def choices(group: str) -> dict[str, str]:
    """Files of a config group and the comment that opens each."""
    first_lines = {
        name: file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        for name, file in files_of(group).items()
    }
    return {name: line.lstrip("# ") for name, line in first_lines.items()}


def files_of(group: str) -> dict[str, Path]:
    """Name -> file, by name."""
    folders = [folder for folder in (conf_dir(), own_dir()) if folder is not None]
    return {file.stem: file for file in sorted(f for at in folders for f in (at / group).glob("*.yaml"))}


def file_of(group: str, name: str) -> Path:
    return files_of(group).get(name, conf_dir() / group / f"{name}.yaml")


def node_of(group: str, name: str) -> dict[str, Any]:
    """What a file says: a `_target_` and its settings, as they are written. Raises UserError, with the file.

    The files of other groups that it brings (`defaults`, as a task's model) are no part of that.
    """
    file = file_of(group, name)
    node = read_mapping(file)
    node.pop("defaults", None)
    with naming(file):
        if "_target_" not in node:
            raise UserError("no _target_ says what builds it")
        if not isinstance(node["_target_"], str | None):
            raise UserError(f"_target_={shown(node['_target_'])}: expected package.module.name or null")
        coerce(node.get("_kind_", ""), str | list[str], "_kind_")
    return node


def target_of(group: str, name: str) -> str | None:
    """The `_target_` of a file."""
    return node_of(group, name)["_target_"]


def kinds_of(group: str, name: str) -> list[str]:
    """What a model or dataset is for (`_kind_`), as tasks know it; nothing where its file does not say."""
    return kinds(node_of(group, name).get("_kind_", ()))


def kinds(said: Any) -> list[str]:
    """`_kind_` may be one word or several."""
    return [str(kind) for kind in (said if isinstance(said, list | tuple) else [said])]


@cache
def default_choice(group: str) -> str:
    """The file of a group that conf/config.yaml chooses."""
    file = conf_dir() / "config.yaml"
    with naming(file):
        defaults = coerce(read_mapping(file).get("defaults"), list[Any], "defaults")
        chosen = {key: value for entry in defaults if isinstance(entry, Mapping) for key, value in entry.items()}
        if not isinstance(chosen.get(group), str) or chosen[group] not in choices(group):
            raise UserError(f"defaults: expected a {group}, as {group}: NAME of a file in conf/{group}")
    return chosen[group]


def experiment(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What it sets, and the files of groups that it chooses (`- override /model: NAME`)."""
    file = file_of(EXPERIMENT, name)
    body = read_mapping(file)
    with naming(file):
        entries = coerce(body.pop("defaults", []), list[Any], "defaults")
    chosen = {str(key): value for entry in entries if isinstance(entry, Mapping) for key, value in entry.items()}
    return body, {key.removeprefix("override ").lstrip("/"): value for key, value in chosen.items()}


def of_experiment(name: str) -> Callable[[str], bool]:
    """Whether an experiment's own file says something of a setting or group; then it counts, and the scale does not."""
    body, groups = experiment(name)

    def says(key: str) -> bool:
        node: Any = body
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return key.partition(".")[0] in groups or node is not None

    return says
