"""The files of conf/, which names on a command line stand for."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from normlab import schema
from normlab.errors import UserError
from normlab.reading import naming, read_mapping


def conf_dir() -> Path:
    """conf/ of the repository, or of the installed package."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if (folder / "config.yaml").is_file())


def choices(group: str) -> dict[str, str]:
    """Files of a config group and the comment that opens each."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    first_lines = {file.stem: file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] for file in files}
    return {name: line.lstrip("# ") for name, line in first_lines.items()}


def file_of(group: str, name: str) -> Path:
    return conf_dir() / group / f"{name}.yaml"


def node_of(group: str, name: str) -> dict[str, Any]:
    """What a file says: a `_target_` and its settings, as they are written. Raises UserError, with the file."""
    file = file_of(group, name)
    node = read_mapping(file)
    with naming(file):
        if "_target_" not in node:
            raise UserError("no _target_ says what builds it")
        if not isinstance(node["_target_"], str | None):
            raise UserError(f"_target_={schema.shown(node['_target_'])}: expected package.module.name or null")
        schema.coerce(node.get("_kind_", ""), str | list[str], "_kind_")
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
        defaults = schema.coerce(read_mapping(file).get("defaults"), list[Any], "defaults")
        chosen = {key: value for entry in defaults if isinstance(entry, Mapping) for key, value in entry.items()}
        if not isinstance(chosen.get(group), str) or chosen[group] not in choices(group):
            raise UserError(f"defaults: expected a {group}, as {group}: NAME of a file in conf/{group}")
    return chosen[group]
