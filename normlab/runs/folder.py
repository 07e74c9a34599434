"""A run's folder: the files that say what was run and what came out. They are the truth; W&B mirrors them.

config.yaml      the resolved settings, for people
run.json         id, name, settings, versions, commit: what the ranks read
status.json      running | finished | diverged | failed | interrupted, with the reason
metrics.jsonl    a line per update (loss, learning rate) and per epoch (accuracies)
ratios.jsonl     a line per recorded moment: the ratios of every norm layer
statistics.jsonl a line per update, of the last ones: BN's and EN's statistics (record.statistics)
gradients.jsonl  a line per epoch: what Weight Standardization takes from gradients (record.gradients)
summary.json     the outcome: metrics under each estimator, versions, commit, seconds
checkpoints/     000120.pt (after 120 updates, to go on), weights.safetensors, batch_average.safetensors
snapshots/       0.3.safetensors: the weights at 30% of training (snapshots)
lock             who works on the run, while someone does
error.txt        the traceback, where the run failed
"""

import re
from pathlib import Path
from typing import Any

import yaml

from normlab.config import Config, identity, recorded, run_name
from normlab.config.initial import RUN_ID, find_runs
from normlab.errors import DiskFullError, UserError, nearest
from normlab.reading import RUN, STATUS, STEP, SUMMARY, last_json, read_json
from normlab.versions import PACKAGES, commit, version
from normlab.writing import TEMPORARY, overwrite_json, write_json, write_text

# Of summary.json and checkpoints: all that two runs of one experiment may differ in.
TIME_FIELDS = ("seconds",)


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.json"
        self.metrics, self.ratios = path / "metrics.jsonl", path / "ratios.jsonl"
        self.statistics, self.gradients = path / "statistics.jsonl", path / "gradients.jsonl"
        self.rows = (self.metrics, self.ratios, self.statistics, self.gradients)
        self.summary_file, self.status_file = path / "summary.json", path / "status.json"
        self.traceback = path / "error.txt"
        self.checkpoints = path / "checkpoints"
        self.weights = self.checkpoints / "weights.safetensors"
        self.batch_average = self.checkpoints / "batch_average.safetensors"
        self.snapshots = path / "snapshots"

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """The folder of this experiment; one that holds the same experiment under another name is taken."""
        out, run_id = Path(config.out), identity(config)
        existing = sorted(out.glob(f"*-{run_id}"))
        return cls(existing[0] if existing else out / f"{run_name(config)}-{run_id}")

    @classmethod
    def find(cls, name: str, out: Path, key: str = "out") -> "RunFolder":
        """A run by its folder, or by its name or id in `out`, which the option `key` sets.

        Raises UserError if there is none, or several.
        """
        if (Path(name) / "run.json").is_file():
            path = Path(name)
            return cls(path if path.name not in ("", "..") else path.resolve())  # a run is called by its folder's name
        matching = find_runs(name, out)
        if len(matching) == 1:
            return cls(matching[0])
        names = [p.parent.name for p in sorted(out.glob("*/run.json"))]
        if not names:
            raise UserError(f"run '{name}': there are no runs in {out}; {key}=FOLDER names another place")
        ids = [run.rpartition("-")[2] for run in names]
        raise UserError(
            f"run '{name}': there is no such run in {out}; {nearest(name, ids if RUN_ID.fullmatch(name) else names)}"
        )

    def weights_at(self, share: float) -> Path:
        """The file of the weights after this share of training; 1: the final ones."""
        return self.snapshots / f"{share:g}.safetensors" if share < 1 else self.weights

    def create(self, config: Config, run_id: str | None = None) -> None:
        """Make the folder of a run to come; an imported one has an id beside that of its config.

        Raises UserError where a folder in it is a symbolic link: files that are not the run's would be removed there.
        """
        for inside in (self.checkpoints, self.snapshots):
            if inside.is_symlink():
                raise UserError(f"{inside} is a symbolic link, and folders of a run are its own; remove it")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.status_file.unlink(missing_ok=True)  # what an earlier attempt came to
        record = {
            "id": run_id or identity(config),
            "name": self.path.name,
            "config": config.to_dict(),
            "versions": {package: version(package) for package in PACKAGES},
            "commit": commit(),
        }
        write_json(self.run_file, record)
        write_text(self.path / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))

    def run(self) -> dict[str, Any]:
        """run.json."""
        return read_json(self.run_file, RUN)

    def config(self) -> Config:
        return recorded(self.run()["config"])

    def status(self) -> dict[str, Any]:
        """status.json; {"status": "new"} before the run was started."""
        return read_json(self.status_file, STATUS) if self.status_file.is_file() else {"status": "new"}

    @property
    def is_over(self) -> bool:
        """Whether the run has its outcome: finished, or diverged, which is one too."""
        return self.status()["status"] in ("finished", "diverged")

    def updates_done(self) -> int:
        """Updates in metrics.jsonl."""
        row = last_json(self.metrics, STEP)
        return row["step"] if row else 0

    def set_status(self, status: str, **details: Any) -> None:
        record = {"status": status} | details
        try:
            write_json(self.status_file, record)
        except DiskFullError:
            if not self.status_file.is_file():
                raise
            overwrite_json(self.status_file, record)  # or it would say running for ever

    def begin(self) -> None:
        """Note that an attempt at the run is under way; what is left of an earlier one, or half written, goes."""
        for place in (self.path, self.checkpoints, self.snapshots):
            for path in place.glob(TEMPORARY):
                path.unlink(missing_ok=True)
        self.traceback.unlink(missing_ok=True)
        self.set_status("running")

    def interrupted(self, number: int) -> str:
        """Note that a signal ended the run, and where it will go on from; returns its status: it may be over."""
        if not self.is_over:
            saved = checkpoint_files(self.checkpoints)
            self.set_status("interrupted", updates=int(saved[-1].stem) if saved else 0, signal=number)
        return self.status()["status"]

    def summary(self) -> dict[str, Any]:
        return read_json(self.summary_file, SUMMARY)


def checkpoint_file(folder: Path, updates: int) -> Path:
    """Of the checkpoint after so many updates, in the folder of a run's checkpoints."""
    return folder / f"{updates:06d}.pt"


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their updates."""
    return sorted((p for p in folder.glob("*.pt") if re.fullmatch("[0-9]+", p.stem)), key=lambda p: int(p.stem))
