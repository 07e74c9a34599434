"""The files of conf/, which names on a command line stand for."""

from pathlib import Path


def conf_dir() -> Path:
    """conf/ of the repository, or of the installed package."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if (folder / "config.yaml").is_file())


def choices(group: str) -> dict[str, str]:
    """Files of a config group and the comment that opens each."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    first_lines = {file.stem: file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] for file in files}
    return {name: line.lstrip("# ") for name, line in first_lines.items()}
