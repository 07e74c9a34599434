"""The files of conf/, which names on a command line stand for."""

from functools import cache
from pathlib import Path

from normlab.reading import read_yaml


def conf_dir() -> Path:
    """conf/ of the repository, or of the installed package."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if (folder / "config.yaml").is_file())


def choices(group: str) -> dict[str, str]:
    """Files of a config group and the comment that opens each."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    first_lines = {file.stem: file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] for file in files}
    return {name: line.lstrip("# ") for name, line in first_lines.items()}


def target_of(group: str, name: str) -> str:
    """The `_target_` of a file."""
    return read_yaml(conf_dir() / group / f"{name}.yaml")["_target_"]


def kinds_of(group: str, name: str) -> list[str]:
    """What a model or dataset is for (`_kind_`), as tasks know it; nothing where its file does not say."""
    kind = read_yaml(conf_dir() / group / f"{name}.yaml").get("_kind_", ())
    return [kind] if isinstance(kind, str) else list(kind)


@cache
def default_choice(group: str) -> str:
    """The file of a group that conf/config.yaml chooses."""
    defaults = read_yaml(conf_dir() / "config.yaml")["defaults"]
    return next(str(node[group]) for node in defaults if isinstance(node, dict) and group in node)
