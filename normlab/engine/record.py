"""A run's folder: the files that say what was run and what came out. They are the truth; W&B mirrors them.

config.yaml      the resolved settings, for people
run.json         id, name, settings, versions, commit: what the ranks read
status.json      running | finished | diverged | failed | interrupted, with the reason
metrics.jsonl    a line per update (loss, learning rate) and per epoch (accuracies)
ratios.jsonl     a line per recorded moment: the ratios of every norm layer
summary.json     the outcome: metrics under each estimator, versions, commit, seconds
checkpoints/     last.pt (to resume), weights.safetensors, batch_average.safetensors
"""

import importlib.metadata
import json
import os
import secrets
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from normlab.config import Config, identity, run_name
from normlab.errors import UserError, nearest

PACKAGES = ("normlab", "torch", "torchvision", "timm", "numpy")


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.json"
        self.metrics, self.ratios = path / "metrics.jsonl", path / "ratios.jsonl"
        self.summary_file, self.status_file = path / "summary.json", path / "status.json"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.weights = self.checkpoints / "weights.safetensors"
        self.batch_average = self.checkpoints / "batch_average.safetensors"

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """The folder of this experiment; one that holds the same experiment under another name is taken."""
        out, run_id = Path(config.out), identity(config)
        existing = sorted(out.glob(f"*-{run_id}"))
        return cls(existing[0] if existing else out / f"{run_name(config)}-{run_id}")

    @classmethod
    def find(cls, name: str, out: Path) -> "RunFolder":
        """A run by its folder, or by its name or id in `out`. Raises UserError if there is none, or several."""
        if (Path(name) / "run.json").is_file():
            return cls(Path(name))
        runs = [p.parent for p in sorted(out.glob("*/run.json"))]
        matching = [p for p in runs if p.name == name or p.name.endswith(f"-{name}")]
        if len(matching) == 1:
            return cls(matching[0])
        if not runs:
            raise UserError(f"run '{name}': there are no runs in {out}; out=FOLDER names another place")
        raise UserError(f"run '{name}': there is no such run in {out}; {nearest(name, [p.name for p in runs])}")

    def create(self, config: Config) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.status_file.unlink(missing_ok=True)  # what an earlier attempt came to
        record = {
            "id": identity(config),
            "name": self.path.name,
            "config": config.to_dict(),
            "versions": {package: _version(package) for package in PACKAGES},
            "commit": _commit(),
        }
        write_json(self.run_file, record)
        write_text(self.path / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))

    def run(self) -> dict[str, Any]:
        """run.json."""
        return read_json(self.run_file)

    def config(self) -> Config:
        return Config.from_dict(self.run()["config"])

    def status(self) -> dict[str, Any]:
        """status.json; {"status": "new"} before the run was started."""
        return read_json(self.status_file) if self.status_file.is_file() else {"status": "new"}

    @property
    def is_over(self) -> bool:
        """Whether the run has its outcome: finished, or diverged, which is one too."""
        return self.status()["status"] in ("finished", "diverged")

    def updates_done(self) -> int:
        """Updates in metrics.jsonl."""
        if not self.metrics.is_file():
            return 0
        with self.metrics.open("rb") as file:
            file.seek(max(0, self.metrics.stat().st_size - 4096))
            whole = file.read().split(b"\n")[:-1]
        return json.loads(whole[-1])["step"] if whole else 0

    def set_status(self, status: str, **details: Any) -> None:
        write_json(self.status_file, {"status": status} | details)

    def summary(self) -> dict[str, Any]:
        return read_json(self.summary_file)


def write_text(path: Path, text: str) -> None:
    """Replace a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # ranks and nodes may write side by side
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a kill may have cut the last one."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def cut_jsonl(path: Path, step: int) -> None:
    """Drop the rows after `step`, which a resumed run writes again."""
    if path.is_file():
        rows = [row for row in read_jsonl(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree, with + if it was changed; None where normlab is installed without one."""
    source = Path(__file__).resolve().parents[2]
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")
