"""Which versions of packages, and which commit of the source, a record was made with."""

import importlib.metadata
import subprocess
from pathlib import Path

PACKAGES = ("normlab", "torch", "torchvision", "timm", "numpy")


def version(package: str) -> str | None:
    """Of an installed package; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Commit of the source tree, with + if it was changed; None where normlab is installed without one."""
    source = Path(__file__).resolve().parents[1]
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")
